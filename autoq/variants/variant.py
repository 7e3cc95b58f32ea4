"""Variants: the compressed weights of one layer, with what is known of their cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Choice, Format, Granularity, Grid, Pattern, Pruning, Rounding
from autoq.core.digests import digest_json

ALGORITHM_VERSION = 6  # part of every key; raise it when the same choice gives another variant


@dataclass(frozen=True, slots=True)
class WeightChoice:
    """The part of a choice that its weights depend on: what variants are keyed by."""

    bits: int  # 2..8 on a grid, 16 or 32 for floats
    granularity: Granularity
    sparsity: float
    rounding: Rounding = Rounding.NONE
    grid: Grid = Grid.NONE
    pruning: Pruning = Pruning.NONE
    pattern: Pattern = Pattern.NONE
    keeps_outliers: bool = False  # weights of the input's outliers are zero: they stay float beside these

    @staticmethod
    def of(choice: Choice) -> WeightChoice:
        """Drop what concerns activations only."""
        return WeightChoice(
            choice.weight_bits,
            choice.granularity,
            choice.sparsity,
            choice.rounding,
            choice.grid,
            choice.pruning,
            choice.pattern,
            choice.format.keeps_outliers,
        )

    @property
    def is_float(self) -> bool:
        """Whether the weights stay floating-point numbers."""
        return self.granularity is Granularity.NONE

    @property
    def is_untouched(self) -> bool:
        """Whether the weights stay as they are."""
        return self == WeightChoice.of(Choice.of(Format.FP32))

    @property
    def is_plain(self) -> bool:
        """Whether the float weights alone decide the result, without any data."""
        return (
            self.rounding in (Rounding.NONE, Rounding.NEAREST)
            and self.grid is not Grid.CODEBOOK
            and self.pruning is not Pruning.SPARSEGPT
            and not self.keeps_outliers
        )


@dataclass(frozen=True, eq=False)
class Variant:
    """Compressed weights of one layer.

    `weights` is float32 in the layer's shape, or an int8 grid: in the layer's shape, or, for blocks,
    of shape (output channels, padded inputs). `scales` has shape () per tensor, (channels,) per
    channel, (channels, blocks) for blocks, and (0,) for floats; an LSTM's are those of `round_parts`.
    `correction` is added to the bias, (output channels,), or (0,) where nothing is known of the inputs.
    An embedding has no bias, so no correction, and its error is the uncorrected one.
    """

    weights: npt.NDArray[Any]
    scales: npt.NDArray[np.float32]
    correction: npt.NDArray[np.float32]
    bundle_bytes: int  # estimate of weights, scales and correction in the storage bundle
    error: float = 0.0  # tr(ΔW (A - E[x]E[x]ᵀ) ΔWᵀ): squared output error that the correction leaves
    energy: float = 0.0  # tr(W A Wᵀ), mean square of the float layer's output; 0 where A is not known

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(self.weights.nbytes + self.scales.nbytes + self.correction.nbytes)

    @property
    def relative_error(self) -> float:
        """Error as a share of the output's energy; 0 for a layer that puts nothing out."""
        return self.error / self.energy if self.energy > 0.0 else 0.0

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return what is stored, by name; `from_tensors` is its inverse."""
        return {
            "weights": self.weights,
            "scales": self.scales,
            "correction": self.correction,
            "bundle_bytes": np.array([self.bundle_bytes], np.int64),
            "errors": np.array([self.error, self.energy], np.float64),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> Variant:
        """Inverse of `tensors`."""
        error, energy = (float(value) for value in tensors["errors"])
        size = int(tensors["bundle_bytes"][0])
        return Variant(tensors["weights"], tensors["scales"], tensors["correction"], size, error, energy)


def variant_key(weight_digest: str, moments_digest: str, choice: WeightChoice) -> str:
    """Content address of a variant: equal weights, inputs and choice share it across layers and models.

    Args:
        weight_digest: Of the float weights and the layer's geometry.
        moments_digest: Of what is known of the layer's inputs; empty for nothing.
        choice: How the weights are treated.
    """
    return digest_json([ALGORITHM_VERSION, weight_digest, moments_digest, *map(_written, astuple(choice))])


def _written(value: object) -> object:
    return value if isinstance(value, int | float) else str(value)
