"""Hypervolume: how much of the space below a reference point a front dominates, and what points add."""

from __future__ import annotations

from functools import reduce

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # (points, axes), every axis minimised

_FAR = -1e3  # no logarithm of a ratio and no drop of an accuracy is below it


def hypervolume(points: Points, reference: Points) -> float:
    """Volume of all that some point dominates and that lies below the reference (Zitzler 1999).

    Args:
        points: (n, k); those that do not beat the reference on every axis count for nothing.
        reference: (k,).
    """
    free, edges = _undominated(points, reference)
    volumes = reduce(np.multiply.outer, [np.diff(one) for one in edges])
    return float(volumes[~free].sum())


def hypervolume_gains(candidates: Points, points: Points, reference: Points) -> npt.NDArray[np.float64]:
    """What each candidate alone would add to the hypervolume of the points.

    The space below the reference is cut along every coordinate of the front; a candidate gains the part
    of each undominated cell that lies in the box between it and the reference.

    Args:
        candidates: (m, k).
        points: (n, k), n >= 0.
        reference: (k,).

    Returns:
        (m,), zero for a candidate that is dominated or does not beat the reference.
    """
    free, edges = _undominated(points, reference)
    gains: npt.NDArray[np.float64] = np.broadcast_to(free.astype(np.float64), (len(candidates), *free.shape))
    for axis in reversed(range(free.ndim)):
        low, high = edges[axis][:-1], edges[axis][1:]
        sides = np.clip(high - np.maximum(low, candidates[:, axis, None]), 0.0, None)  # (m, cells)
        gains = np.einsum("m...c,mc->m...", gains, sides)
    return gains


def _undominated(points: Points, reference: Points) -> tuple[npt.NDArray[np.bool_], list[Points]]:
    """Say which cells no point dominates, with the edges of the cells along each axis."""
    inside = points[(points < reference).all(axis=1)]
    edges = [
        np.concatenate(([_FAR], np.unique(inside[:, axis]), [top])) for axis, top in enumerate(reference)
    ]
    free = np.ones([len(one) - 1 for one in edges], np.bool_)
    for point in inside:
        free[
            tuple(slice(int(np.searchsorted(one, at)), None) for one, at in zip(edges, point, strict=True))
        ] = False
    return free, edges
