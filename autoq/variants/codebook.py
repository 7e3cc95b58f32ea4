"""Non-uniform weights: a few levels chosen among those of int8, so that int8 kernels still run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.quantization import weight_limit

Floats = npt.NDArray[Any]  # float32 or float64
Levels = npt.NDArray[np.int8]

_LIMIT = weight_limit(8)


@dataclass(frozen=True, eq=False, slots=True)
class LevelGrid:
    """The values `scale * level` with levels among -127..127; scales are those of 8 bits."""

    scales: Floats  # broadcastable to (groups, rows, columns)
    levels: Levels  # (n_levels,), ascending

    def nearest(self, scaled: Floats) -> Floats:
        """Return the nearest level; half-way between two, the lower one."""
        ascending = self.levels.astype(scaled.dtype)
        middles = (ascending[1:] + ascending[:-1]) / 2
        found: Floats = ascending[np.searchsorted(middles, scaled)]
        return found

    def towards(self, integers: Floats, scaled: Floats) -> Floats:
        """Return the next level in the direction of a value, or the same one at the codebook's end."""
        ascending = self.levels.astype(scaled.dtype)
        place = np.searchsorted(ascending, integers) + np.sign(scaled - integers).astype(np.int64)
        found: Floats = ascending[np.clip(place, 0, ascending.size - 1)]
        return found

    def round(self, rows: Floats) -> Levels:
        """Put rows on their nearest levels."""
        return self.nearest(rows / self.scales).astype(np.int8)


def codebook(rows: Floats, diagonal: Floats, scales: Floats, *, bits: int, keep_zero: bool) -> LevelGrid:
    """Choose 2^bits levels with the smallest Σ A_jj·(ŵ_j − w_j)² over one layer.

    The weights are counted on the 8-bit grid, each as heavy as an error of one step in it weighs in
    the output; on those 255 places the levels are optimal.

    Args:
        rows: Float weights, shape (groups, rows, columns).
        diagonal: E[x_j²], shape (groups, columns).
        scales: Of the 8-bit grid, broadcastable to the rows.
        bits: Of the codebook, 1..7.
        keep_zero: Whether zero must be a level, as pruned weights need it to.
    """
    places = np.clip(np.rint(rows / scales), -_LIMIT, _LIMIT).astype(np.int64) + _LIMIT
    heaviness = np.broadcast_to(diagonal[:, None] * np.square(scales, dtype=np.float64), rows.shape)
    counts = np.zeros(2 * _LIMIT + 1)
    np.add.at(counts, places.reshape(-1), heaviness.reshape(-1))
    return LevelGrid(scales, codebook_levels(counts, 2**bits, keep_zero=keep_zero))


def codebook_levels(counts: npt.NDArray[np.float64], n_levels: int, *, keep_zero: bool) -> Levels:
    """Return the integers with the smallest weighted squared distance to a histogram: exact k-means.

    Optimal levels split the places into runs, and the best integer of a run is its rounded mean, so
    dynamic programming over run ends finds them (Wang & Song 2011). Runs never share a level.

    Args:
        counts: Weight of each integer -limit..limit, shape (2 * limit + 1,), none negative.
        n_levels: How many; at most one a place.
        keep_zero: Whether zero must be among them.

    Returns:
        Ascending int8 of shape (n_levels,). Of equally good ones those with longer first runs.

    Raises:
        ValueError: There are more levels than places.
    """
    n_places = counts.size
    if not 1 <= n_levels <= n_places:
        raise ValueError(f"{n_levels} levels do not fit {n_places} places")
    costs, best = _run_costs(counts, keep_zero=keep_zero)
    # total[stop]: cheapest way to cover the places before `stop` with the runs so far.
    total = np.concatenate([[0.0], np.full(n_places, np.inf)])
    starts = np.empty((n_levels, n_places + 1), np.int64)
    for index in range(n_levels):
        options = total[:-1, None] + costs
        starts[index, 1:] = n_places - 1 - options[::-1].argmin(axis=0)
        total = np.concatenate([[np.inf], options.min(axis=0)])
    levels, stop = [], n_places
    for index in reversed(range(n_levels)):
        start = int(starts[index, stop])
        levels.append(best[start, stop - 1])
        stop = start
    return np.array(levels[::-1], np.int8)


def _run_costs(
    counts: npt.NDArray[np.float64], *, keep_zero: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the cost and the level of every run [first, last] of places; infinite if last < first."""
    limit = (counts.size - 1) // 2
    places = np.arange(-limit, limit + 1, dtype=np.float64)
    total = max(float(counts.sum()), np.finfo(np.float64).tiny)
    sums = [_run_sums(counts / total * places**power) for power in range(3)]
    first, last = np.meshgrid(places, places, indexing="ij")
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(sums[0] > 0.0, sums[1] / sums[0], first)
    level = np.clip(np.rint(mean), first, np.maximum(first, last))
    if keep_zero:
        level[(first <= 0.0) & (last >= 0.0)] = 0.0
    costs = sums[2] - 2.0 * level * sums[1] + level**2 * sums[0]
    costs[last < first] = np.inf
    return costs, level


def _run_sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums over every run [first, last] of places, shape (first, last)."""
    before = np.concatenate([[0.0], np.cumsum(values)])
    sums: npt.NDArray[np.float64] = before[None, 1:] - before[:-1, None]
    return sums
