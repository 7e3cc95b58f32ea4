"""What one choice does to one layer's output, from statistics alone: no model is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoq.calibration.methods import activation_range, rounding_error
from autoq.calibration.statistics import Statistics
from autoq.core.choices import Calibration, Choice, Format
from autoq.core.data import Array
from autoq.core.quantization import activation_params
from autoq.variants.variant import Variant


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
    choice: Choice, variant: Variant, weight: Array, source: str | None, statistics: Statistics
) -> LocalError:
    """Add up what weights and input of a layer lose.

    Args:
        choice: Of the layer.
        variant: Its compressed weights.
        weight: Its float weights.
        source: Name of the tensor it reads.
        statistics: Holds that tensor's histogram.
    """
    return LocalError(
        variant.error,
        _activation_error(choice, source, statistics) * float(np.square(weight, dtype=np.float64).sum()),
        variant.energy,
    )


def _activation_error(choice: Choice, source: str | None, statistics: Statistics) -> float:
    """Mean squared error of one input value: errors of different inputs are taken to be independent."""
    summary = None if source is None else statistics.tensors.get(source)
    if summary is None:
        return 0.0
    if choice.format.is_static:
        low, high = activation_range(summary, choice.calibration)
    elif choice.format is Format.INT8_DYNAMIC:
        low, high = activation_range(summary, Calibration.MINMAX)  # the widest it gets
    else:
        return 0.0
    return rounding_error(summary, activation_params(low, high, signed=choice.format is Format.INT8_S8))
