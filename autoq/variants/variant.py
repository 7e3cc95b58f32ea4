"""Variants: the compressed weights of one layer, and how one is built from float weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Choice, Granularity
from autoq.core.digests import digest_json
from autoq.core.layers import Layer
from autoq.variants.bundle_size import packed_float_bytes, packed_grid_bytes
from autoq.variants.rounding import round_blocks, round_weights
from autoq.variants.sparsity import prune_by_magnitude

ALGORITHM_VERSION = 1  # part of every key; raise it when the same choice gives other tensors


@dataclass(frozen=True, slots=True)
class WeightChoice:
    """The part of a choice that its weights depend on: what variants are keyed by."""

    bits: int
    granularity: Granularity
    sparsity: float

    @staticmethod
    def of(choice: Choice) -> WeightChoice:
        """Drop what concerns activations only."""
        return WeightChoice(choice.weight_bits, choice.granularity, choice.sparsity)

    @property
    def is_float(self) -> bool:
        """Whether the weights stay float32."""
        return self.granularity is Granularity.NONE


@dataclass(frozen=True, eq=False)
class Variant:
    """Compressed weights of one layer.

    `weights` is float32 in the layer's shape, or an int8 grid: in the layer's shape, or, for blocks,
    of shape (output channels, padded inputs). `scales` has shape () per tensor, (channels,) per
    channel, (channels, blocks) for blocks, and (0,) for float.
    """

    weights: npt.NDArray[Any]
    scales: npt.NDArray[np.float32]
    bundle_bytes: int  # estimate of weights and scales in the storage bundle

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(self.weights.nbytes + self.scales.nbytes)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return what is stored, by name; `from_tensors` is its inverse."""
        count = np.array([self.bundle_bytes], np.int64)
        return {"weights": self.weights, "scales": self.scales, "bundle_bytes": count}

    @staticmethod
    def from_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> Variant:
        """Inverse of `tensors`."""
        return Variant(tensors["weights"], tensors["scales"], int(tensors["bundle_bytes"][0]))


def variant_key(weight_digest: str, choice: WeightChoice) -> str:
    """Content address of a variant: equal weights and choice share it across layers and models."""
    return digest_json(
        [ALGORITHM_VERSION, weight_digest, choice.bits, str(choice.granularity), choice.sparsity]
    )


def build_variant(layer: Layer, weight: npt.NDArray[np.float32], choice: WeightChoice) -> Variant:
    """Prune by magnitude, then round to nearest. Pure: the same input gives the same bytes.

    Args:
        layer: Tells which axis of the weight runs over output channels.
        weight: Float weights in the layer's shape.
        choice: Bits, granularity and sparsity.
    """
    pruned = prune_by_magnitude(weight, choice.sparsity)
    if choice.is_float:
        return Variant(pruned, np.zeros(0, np.float32), packed_float_bytes(pruned))
    block_size = choice.granularity.block_size
    if block_size is not None:
        rows = pruned if layer.channel_axis == 0 else np.ascontiguousarray(pruned.T)
        integers, scales = round_blocks(rows, choice.bits, block_size)
    else:
        integers, scales = round_weights(pruned, choice.bits, choice.granularity, layer.channel_axis)
    return Variant(integers, scales, packed_grid_bytes(integers) + packed_float_bytes(scales))
