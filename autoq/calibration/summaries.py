"""Mergeable summaries of activation tensors: exact extremes and a histogram that widens itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS_PER_SIDE = 2048
_LOWEST = float(np.finfo(np.float32).min)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class TensorSummary:
    """Extremes and histogram of one tensor; `merge` is associative and commutative, exactly.

    Bins are aligned at zero and have a power of two for a width, the smallest that lets
    `BINS_PER_SIDE` bins a side hold the largest magnitude seen. So the width depends on the data and
    not on their order, and widening only adds neighbouring counts.
    """

    low: float
    high: float
    exponent: int  # bin width is 2 ** exponent
    counts: npt.NDArray[np.int64]  # (2 * BINS_PER_SIDE,), bin i covers [i - B, i - B + 1) * width

    @property
    def n_values(self) -> int:
        """How many values were summarised."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middle of every bin."""
        index = np.arange(2 * BINS_PER_SIDE, dtype=np.float64)
        return (index - (BINS_PER_SIDE - 0.5)) * self.width

    def merge(self, other: TensorSummary) -> TensorSummary:
        """Summarise the union of both."""
        exponent = max(self.exponent, other.exponent)
        counts = self._coarsened(exponent) + other._coarsened(exponent)
        return TensorSummary(min(self.low, other.low), max(self.high, other.high), exponent, counts)

    def _coarsened(self, exponent: int) -> npt.NDArray[np.int64]:
        steps = exponent - self.exponent
        if steps == 0:
            return self.counts
        # Floor division of the signed bin index keeps bins aligned at zero on both sides.
        index = (np.arange(2 * BINS_PER_SIDE) - BINS_PER_SIDE) >> min(steps, 62)
        out = np.zeros(2 * BINS_PER_SIDE, np.int64)
        np.add.at(out, index + BINS_PER_SIDE, self.counts)
        return out


def summarize(values: npt.NDArray[Any]) -> TensorSummary:
    """Summarise one non-empty array.

    What masks mark positions with, minus infinity or a float's lowest value, is left out: it saturates
    in any range, and would leave none for the rest.

    Raises:
        ValueError: A value is NaN.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    low, high = float(flat.min()), float(flat.max())
    if math.isnan(low):
        raise ValueError("NaN activations")
    if low <= _LOWEST or math.isinf(high):
        flat = flat[(flat > _LOWEST) & (flat < math.inf)]
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
    exponent = _exponent(max(-low, high))
    index = np.floor(flat * np.float32(math.ldexp(1.0, -exponent))).astype(np.int32)
    # -0.0 and the largest magnitude itself may fall one bin outside.
    np.clip(index, -BINS_PER_SIDE, BINS_PER_SIDE - 1, out=index)
    counts = np.bincount(index + BINS_PER_SIDE, minlength=2 * BINS_PER_SIDE).astype(np.int64)
    return TensorSummary(low, high, exponent, counts)


def _exponent(magnitude: float) -> int:
    """Smallest e with magnitude <= BINS_PER_SIDE * 2**e, bounded so that 2**-e fits float32."""
    _, exponent = math.frexp(max(magnitude, _TINY))  # magnitude <= 2**exponent
    return max(exponent - int(math.log2(BINS_PER_SIDE)), -120)
