"""Outliers: the few channels of a tensor whose values would set the range of all others.

Transformers have them, the same ones whatever the input (LLM.int8(), Dettmers 2022, which looks for them
at run time). Without them the rest of a tensor has a much smaller range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoq.calibration.summaries import TensorSummary
from autoq.core.quantization import ActivationParams, activation_params

LEAST_CHANNELS = 32  # of a tensor that is split: with fewer, the float part is no small one
_SHARE, _AT_LEAST = 0.01, 4  # of the channels that are taken out


@dataclass(frozen=True)
class Outliers:
    """Channels of a tensor that stay float, and the grid that holds all others."""

    channels: tuple[int, ...]  # ascending, along the last axis
    params: ActivationParams


def n_outliers(n_channels: int) -> int:
    """How many of a tensor's channels stay float."""
    return max(_AT_LEAST, math.ceil(_SHARE * n_channels))


def outlier_channels(maxima: npt.NDArray[np.float32]) -> tuple[int, ...]:
    """Return the channels with the largest magnitudes, ascending; of equal ones the first.

    Args:
        maxima: Largest magnitude of each channel, (channels,).
    """
    largest = np.argsort(-maxima, kind="stable")[: n_outliers(len(maxima))]
    return tuple(sorted(int(channel) for channel in largest))


def find_outliers(summary: TensorSummary, maxima: npt.NDArray[np.float32] | None) -> Outliers:
    """Split a tensor; every value that calibration saw in the other channels is in the range of these.

    Without maxima there are no outliers, and the range is that of all values.
    """
    if maxima is None:
        return Outliers((), activation_params(summary.low, summary.high, signed=False))
    channels = outlier_channels(maxima)
    bound = float(np.delete(maxima, channels).max(initial=0.0))
    low, high = max(summary.low, -bound), min(summary.high, bound)
    return Outliers(channels, activation_params(low, high, signed=False))
