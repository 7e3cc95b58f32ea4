"""Build the variants of one layer from its weights and what is known of its inputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.calibration.moments import WHOLE_COLUMNS, Moments
from autoq.core.digests import digest_arrays, digest_json
from autoq.core.errors import InfrastructureError
from autoq.core.layers import Layer
from autoq.variants.bundle_size import packed_float_bytes, packed_grid_bytes
from autoq.variants.by_moments import Compressed, MomentCompressor
from autoq.variants.local_error import (
    bias_correction,
    corrected_error,
    lookup_energy,
    row_errors,
    weight_error,
)
from autoq.variants.plain import compress_plainly, restore
from autoq.variants.rows import from_rows, to_rows
from autoq.variants.variant import Variant, WeightChoice, variant_key

Float = npt.NDArray[np.float32]

_log = logging.getLogger("autoq")


class LayerBuilder:
    """Builds variants of one layer; what they share is computed once."""

    def __init__(
        self,
        layer: Layer,
        weight: Float,
        load_moments: Callable[[], Moments | None] = lambda: None,
        moments_digest: str = "",
        load_outliers: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        """Remember where things come from; nothing is read yet.

        Args:
            layer: The layer.
            weight: Its float weights.
            load_moments: Reads the second moments of its inputs, or says that there are none.
            moments_digest: What they are known by; empty for none.
            load_outliers: Gives the input channels that stay float where a choice keeps outliers.
        """
        self.layer = layer
        self._weight = weight
        self._load_moments = load_moments
        self._moments_digest = moments_digest
        self._load_outliers = load_outliers

    @property
    def n_columns(self) -> int:
        """Inputs of an output channel; what second-order methods take memory for, its square."""
        if not self.layer.has_moments:
            return 1
        outputs = self.layer.weight_shape[self.layer.channel_axis]
        groups = self.layer.group if self.layer.op == "ConvTranspose" else 1
        return min(self.layer.n_params // (outputs * groups), WHOLE_COLUMNS)

    def key(self, choice: WeightChoice) -> str:
        """Content address of a variant."""
        known = self._moments_digest
        if choice.keeps_outliers:  # there may be outliers where there are no moments
            known = digest_json([known, list(self._load_outliers())])
        return variant_key(self._weight_digest, known, choice)

    def build(self, choices: Sequence[WeightChoice]) -> list[Variant]:
        """Build several variants; second-order ones share one factorisation.

        The same weights, moments and choice give the same weights whatever is built beside them, as
        long as products run on one thread; another machine may sum in another order, so recipes carry
        what does not follow from the float weights alone.

        Raises:
            InfrastructureError: The moments are gone from the disk.
        """
        moments = self._load_moments() if self._moments_digest else None
        if self._moments_digest and moments is None:
            raise InfrastructureError(
                f"the second moments of layer {self.layer.name!r} are damaged",
                hint="delete the cache folder of the home",
            )
        found: dict[WeightChoice, Variant] = {}
        if whole := [one for one in choices if not one.keeps_outliers]:
            found |= self._build(whole, self._weight, moments)
        if split := [one for one in choices if one.keeps_outliers]:
            found |= self._build_split(split, moments)
        return [found[choice] for choice in choices]

    def _build_split(
        self, choices: Sequence[WeightChoice], moments: Moments | None
    ) -> dict[WeightChoice, Variant]:
        """Treat outliers as inputs that are always zero and have no weight; theirs are stored as floats."""
        channels = np.array(self._load_outliers(), np.int64)
        rows = to_rows(self._weight, self.layer).copy()
        kept_bytes = packed_float_bytes(rows[:, :, channels])
        rows[:, :, channels] = 0.0
        rest = None if moments is None else moments.without(channels)
        found = self._build(choices, from_rows(rows, self.layer), rest)
        energy = _Assessor(self.layer, self._weight, moments).energy
        return {
            choice: replace(one, energy=energy, bundle_bytes=one.bundle_bytes + kept_bytes)
            for choice, one in found.items()
        }

    def _build(
        self, choices: Sequence[WeightChoice], weight: Float, moments: Moments | None
    ) -> dict[WeightChoice, Variant]:
        demanding = [choice for choice in choices if not choice.is_plain]
        found: dict[WeightChoice, Compressed] = {}
        if moments is not None and demanding and self.layer.has_moments:
            compressor = MomentCompressor(self.layer, weight, moments)
            found = {choice: compressor.compress(choice) for choice in demanding}
        if demanding and not found and self.layer.has_moments:
            _log.warning(
                "layer %s: nothing is known of its inputs, so it is rounded to nearest", self.layer.name
            )
        for choice in choices:
            if choice not in found:
                found[choice] = compress_plainly(self.layer, weight, choice)
        assess = _Assessor(self.layer, weight, moments)
        return {choice: assess(choice, *found[choice]) for choice in choices}

    @cached_property
    def _weight_digest(self) -> str:
        layer = self.layer
        geometry = [layer.op, layer.channel_axis, layer.group]
        return digest_json([geometry, digest_arrays({"weight": self._weight})])


class _Assessor:
    """Adds to compressed weights what they cost: bias correction, local error, bytes."""

    def __init__(self, layer: Layer, weight: Float, moments: Moments | None) -> None:
        self._layer, self._weight, self._moments = layer, weight, moments
        self._rows = to_rows(weight, layer) if moments is not None else None
        self._blocks = moments.merged() if moments is not None else ()

    @cached_property
    def energy(self) -> float:
        """Mean square of the layer's output; 0 where nothing is known of its inputs."""
        if self._moments is None or self._rows is None:
            return 0.0
        if self._layer.op == "Gather":
            return lookup_energy(self._weight, self._moments.mean[:, 0])
        return float(row_errors(self._rows, self._blocks).sum())

    def __call__(self, choice: WeightChoice, weights: npt.NDArray[Any], scales: Float) -> Variant:
        correction, error = np.zeros(0, np.float32), 0.0
        if self._moments is not None and self._rows is not None and not choice.is_untouched:
            restored = restore(self._layer, weights, scales, choice)
            if not np.isfinite(restored).all():  # a half-precision float holds no more than 65504
                error = math.inf
            elif self._layer.op == "Gather":  # it has no bias to correct
                error = lookup_energy(restored - self._weight, self._moments.mean[:, 0])
            elif choice.is_float and self._layer.op == "MatMul":  # it has no bias of its own either
                error = weight_error(self._rows, to_rows(restored, self._layer), self._blocks)
            else:
                rows, mean = to_rows(restored, self._layer), self._moments.mean
                correction = bias_correction(self._rows, rows, mean)
                error = corrected_error(self._rows, rows, self._blocks, mean)
        packed = packed_float_bytes(weights) if choice.is_float else packed_grid_bytes(weights)
        n_bytes = packed + packed_float_bytes(scales) + correction.nbytes
        return Variant(weights, scales, correction, n_bytes, error, self.energy)
