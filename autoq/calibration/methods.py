"""Calibration methods: a range for each tensor, derived from its histogram and nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autoq.calibration.summaries import TensorSummary
from autoq.core.choices import Calibration
from autoq.core.quantization import ActivationParams

_PERCENTILES = {
    Calibration.PERCENTILE_99_9: 0.999,
    Calibration.PERCENTILE_99_99: 0.9999,
    Calibration.PERCENTILE_99_999: 0.99999,
}
_LEVELS = 256
_STEPS = 64  # candidate clippings tried along each side
_BULK = 0.99  # of all values, which no entropy threshold may cut into
_NEIGHBOURS = 8  # bins on either side that say what a bin would hold without repeated values
_ATOM = 4.0  # times as much as its neighbours, and a bin holds repeated values
Range = tuple[float, float]


def activation_range(summary: TensorSummary, method: Calibration) -> Range:
    """Return the (low, high) that a method keeps; always inside the extremes seen.

    Raises:
        ValueError: The method is `none`.
    """
    if method is Calibration.MINMAX:
        return summary.low, summary.high
    if method in _PERCENTILES:
        return _percentile(summary, _PERCENTILES[method])
    if method is Calibration.ENTROPY:
        return _entropy(summary)
    if method is Calibration.MSE:
        return _mse(summary)
    raise ValueError("the method 'none' gives no range")


def rounding_error(summary: TensorSummary, params: ActivationParams) -> float:
    """Return E(x - Q(x))^2 of a tensor: clipping from its histogram, rounding as step^2 / 12.

    Bins are wider than a step where the range is narrow, so rounding is not read off their middles.
    """
    low = (params.low - params.zero_point) * params.scale
    high = (params.high - params.zero_point) * params.scale
    values, counts = summary.centers, summary.counts.astype(np.float64)
    inside = (values >= low) & (values <= high)
    clipped = np.square(values - np.clip(values, low, high)) @ counts
    rounded = params.scale**2 / 12.0 * counts[inside & (np.abs(values) > params.scale / 2)].sum()
    return float((clipped + rounded) / max(summary.n_values, 1))


def _percentile(summary: TensorSummary, fraction: float) -> Range:
    """Cut off at most 1 - fraction of the values at either end; a one-sided tensor keeps its zero."""
    up_to = np.cumsum(summary.counts)
    # Counts are compared as integers: 1 - 0.9999 is a little less than 0.0001.
    n_cut = int((1.0 - fraction) * summary.n_values + 1e-6)
    edges = summary.centers + summary.width / 2
    high = float(edges[int(np.searchsorted(up_to, summary.n_values - n_cut))])
    low = float(edges[int(np.searchsorted(up_to, n_cut, side="right"))] - summary.width)
    return max(low, summary.low) if summary.low < 0 else summary.low, min(high, summary.high)


def _mse(summary: TensorSummary) -> Range:
    """Minimise E(x - Q(x))^2 over both ends, one end at a time."""
    low, high = min(summary.low, 0.0), max(summary.high, 0.0)
    occupied = summary.counts > 0
    values, weights = summary.centers[occupied], summary.counts[occupied].astype(np.float64)
    shrink = np.linspace(1.0, 1.0 / _STEPS, _STEPS)
    for _ in range(2):
        highs = high * shrink if high > 0 else np.array([high])
        high = float(highs[_errors(values, weights, np.full_like(highs, low), highs).argmin()])
        lows = low * shrink if low < 0 else np.array([low])
        low = float(lows[_errors(values, weights, lows, np.full_like(lows, high)).argmin()])
    return low, high


def _errors(
    values: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    lows: npt.NDArray[np.float64],
    highs: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Squared error of 256-level grids over [low, high], one value a grid."""
    scale = np.maximum((highs - lows) / (_LEVELS - 1), np.finfo(np.float64).tiny)[:, None]
    clipped = np.clip(values, lows[:, None], highs[:, None])
    rounded = np.rint(clipped / scale) * scale
    squared: npt.NDArray[np.float64] = (rounded - values) ** 2 @ weights
    return squared


def _entropy(summary: TensorSummary) -> Range:
    """Threshold on |x| whose quantised histogram diverges least from the clipped one.

    After S. Migacz, "8-bit Inference with TensorRT" (2017): for each threshold the bins beyond it
    are added to the last one (P), P is merged into the quantiser's levels and spread again (Q), and
    KL(P || Q) is minimised. A two-sided tensor has half of the levels on each side.

    Differing from the talk, values that occur again and again (zero after ReLU, six after ReLU6, what
    a plain background makes of a channel) are flattened inside the threshold: spread over a level they
    cost the more the wider it is, which would reward clipping whatever the tail. Outside they count in
    full, as clipping really costs them.
    """
    half = len(summary.counts) // 2
    folded = summary.counts[half:] + summary.counts[:half][::-1]
    # The spike that ReLU leaves at zero is exact in every grid; it would drown the tail's divergence.
    folded[0] = folded[1]
    levels = _LEVELS if summary.low >= 0 else _LEVELS // 2
    occupied = np.flatnonzero(folded)
    n_used = int(occupied[-1]) + 1 if len(occupied) else 0
    if n_used <= levels:
        return summary.low, summary.high
    stops = np.unique(np.linspace(levels, n_used, _STEPS * 2).astype(int))
    # With the bulk beyond the threshold P is little more than its last bin, and any Q fits that.
    inside = np.cumsum(folded)
    stops = stops[inside[stops - 1] >= _BULK * inside[-1]]
    smooth = _without_atoms(folded)
    divergences = [_divergence(smooth, folded[stop:].sum(), int(stop), levels) for stop in stops]
    threshold = float(stops[int(np.argmin(divergences))]) * summary.width
    return max(summary.low, -threshold), min(summary.high, threshold)


def _without_atoms(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Bring bins that hold many times what their neighbours do down to the median of these."""
    padded = np.pad(counts, _NEIGHBOURS, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1)
    usual = np.median(windows, axis=1)
    is_atom = (usual > 0) & (counts > _ATOM * usual)
    return np.where(is_atom, usual, counts.astype(np.float64))


def _divergence(counts: npt.NDArray[np.float64], n_outside: float, stop: int, levels: int) -> float:
    reference = counts[:stop].copy()
    inside = reference.copy()
    reference[-1] += n_outside
    level = np.arange(stop) * levels // stop
    occupied = inside > 0
    mass = np.bincount(level, weights=inside, minlength=levels)
    width = np.bincount(level, weights=occupied.astype(np.float64), minlength=levels)
    spread = np.where(occupied, (mass / np.maximum(width, 1.0))[level], 0.0)
    return _kl(reference, spread)


def _kl(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """KL divergence of two histograms; where q is empty and p is not it gets a thousandth count."""
    q = np.where((q == 0) & (p > 0), 1e-3, q)
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / q[used])))
