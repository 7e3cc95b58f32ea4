"""What one choice does to one layer's output, from statistics alone: no model is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoq.assembly.plan import RangeTable
from autoq.calibration.methods import activation_range, rounding_error
from autoq.calibration.statistics import Statistics
from autoq.core.choices import Choice, Format
from autoq.core.data import Array
from autoq.core.layers import Layer
from autoq.core.quantization import activation_params
from autoq.variants.variant import Variant

_INPUT_LIMIT = 127  # of the integers that inputs are rounded to


@dataclass(frozen=True, slots=True)
class LocalError:
    """Mean squared error of a layer's output, summed over its channels."""

    weight: float  # tr(ΔW (A - E[x]E[x]ᵀ) ΔWᵀ), once the bias is corrected
    activation: float  # what rounding and clipping the input adds
    energy: float  # mean square of the float output; 0 where nothing is known of the inputs

    @property
    def relative(self) -> float:
        """Both errors as a share of the output's energy."""
        return (self.weight + self.activation) / self.energy if self.energy > 0.0 else 0.0


def local_error(
    choice: Choice, variant: Variant, weight: Array, layer: Layer, source: str | None, ranges: RangeTable
) -> LocalError:
    """Add up what weights and input of a layer lose.

    Args:
        choice: Of the layer.
        variant: Its compressed weights.
        weight: Its float weights.
        layer: The layer.
        source: Name of the tensor it reads.
        ranges: Knows that tensor's histogram, and its outliers.

    Raises:
        TrialError: The choice keeps outliers, and the calibration pass has not seen them.
    """
    noise = _input_noise(choice, layer, source, ranges)
    energy = np.square(weight, dtype=np.float64)
    if noise.ndim:
        energy = energy.sum(axis=layer.channel_axis)
    return LocalError(variant.error, float((noise * energy).sum()), variant.energy)


def _input_noise(choice: Choice, layer: Layer, source: str | None, ranges: RangeTable) -> Array:
    """Mean squared error of an input value, () or (channels,); inputs are taken to err independently."""
    fmt = choice.format
    if fmt.keeps_outliers and source is not None:
        outliers = ranges.outliers(source)
        # No other channel was seen outside the range: nothing is clipped.
        noise = np.full(layer.weight_shape[1 - layer.channel_axis], outliers.params.scale**2 / 12.0)
        noise[list(outliers.channels)] = 0.0
        return noise
    maxima = None if source is None else ranges.statistics.channel_maxima.get(source)
    if fmt.is_weight_only and layer.is_matmul and maxima is not None:
        return _block_noise(maxima, choice.granularity.block_size or len(maxima))
    return np.array(_activation_error(choice, source, ranges.statistics))


def _block_noise(maxima: Array, block_size: int) -> Array:
    """What kernels of blocked weights add at most: they round each row of inputs to 8 bits, block by block.

    The steps are those of the largest value of each block that calibration saw, not of each row's own: with
    outliers several times what is added. How much of it counts is fitted layer by layer.
    """
    blocks = np.pad(maxima.astype(np.float64), (0, -len(maxima) % block_size)).reshape(-1, block_size)
    steps = np.repeat(blocks.max(axis=1), block_size)[: len(maxima)] / _INPUT_LIMIT
    return np.asarray(steps**2 / 12.0)


def _activation_error(choice: Choice, source: str | None, statistics: Statistics) -> float:
    summary = None if source is None else statistics.tensors.get(source)
    if source is None or summary is None:
        return 0.0
    if choice.format.is_static:
        low, high = activation_range(summary, choice.calibration)
    elif choice.format is Format.INT8_DYNAMIC:
        whole = statistics.extent(source)  # the widest it gets: kernels do not know of padding
        low, high = whole.low, whole.high
    else:
        return 0.0
    return rounding_error(summary, activation_params(low, high, signed=choice.format is Format.INT8_S8))
