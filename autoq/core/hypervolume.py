"""Hypervolume: how much of the space below a reference point a front dominates, and what points add.

The space is cut into columns along the last axis, at every coordinate that a front member has on the
others. What the front dominates of a column begins at one height, so n members on k axes take n^(k-1)
heights, and never the n^k cells of a grid.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import numpy.typing as npt

from autoq.core.fronts import front_rows

Points = npt.NDArray[np.float64]  # (points, axes), every axis minimised

_FAR = -1e3  # no logarithm of a ratio and no drop of an accuracy is below it
_AT_ONCE = 4_000_000  # numbers worked on at a time, which bounds the memory


def hypervolume(points: Points, reference: Points) -> float:
    """Volume of all that some point dominates and that lies below the reference (Zitzler 1999).

    Args:
        points: (n, k); those that do not beat the reference on every axis count for nothing.
        reference: (k,).
    """
    heights, edges = _columns(points, reference)
    bases = reduce(np.multiply.outer, [np.diff(one) for one in edges], np.ones(()))
    return float((bases * (reference[-1] - heights)).sum())


def hypervolume_gains(candidates: Points, points: Points, reference: Points) -> npt.NDArray[np.float64]:
    """What each candidate alone would add to the hypervolume of the points.

    It gains the part of each column that lies in the box between it and the reference, below where the
    front begins.

    Args:
        candidates: (m, k).
        points: (n, k), n >= 0.
        reference: (k,).

    Returns:
        (m,), zero for a candidate that is dominated or does not beat the reference.
    """
    heights, edges = _columns(points, reference)
    step = max(1, _AT_ONCE // heights.size)
    parts = [
        _gains(candidates[start : start + step], heights, edges) for start in range(0, len(candidates), step)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _gains(candidates: Points, heights: Points, edges: list[Points]) -> npt.NDArray[np.float64]:
    lowest = candidates[:, -1].reshape(-1, *[1] * heights.ndim)
    gains: npt.NDArray[np.float64] = np.clip(heights - lowest, 0.0, None)  # (m, columns...)
    for axis in reversed(range(heights.ndim)):
        low, high = edges[axis][:-1], edges[axis][1:]
        sides = np.clip(high - np.maximum(low, candidates[:, axis, None]), 0.0, None)  # (m, columns)
        gains = np.einsum("m...c,mc->m...", gains, sides)
    return gains


def _columns(points: Points, reference: Points) -> tuple[Points, list[Points]]:
    """Say where in each column dominance begins, with the edges of columns along all axes but the last."""
    inside = points[(points < reference).all(axis=1)]
    front = inside[front_rows(inside)]
    edges = [
        np.concatenate(([_FAR], np.unique(front[:, axis]), [top])) for axis, top in enumerate(reference[:-1])
    ]
    heights: Points = np.full([len(one) - 1 for one in edges], reference[-1])
    for point in front:
        place = tuple(int(np.searchsorted(one, at)) for one, at in zip(edges, point, strict=False))
        heights[place] = min(heights[place], point[-1])
    for axis in range(heights.ndim):  # a member dominates all columns beyond its own, too
        heights = np.minimum.accumulate(heights, axis=axis)
    return heights, edges
