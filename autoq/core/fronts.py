"""Pareto arithmetic: dominance, the front, and the knee of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # (candidates, objectives), every objective minimised


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Say whether `a` is no worse than `b` everywhere and better somewhere (all minimised)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def front_rows(points: Points) -> list[int]:
    """Rows that no other row dominates, in their order; of equal rows the first stays.

    A row with a NaN is never on the front.
    """
    finite = [row for row in range(len(points)) if not np.isnan(points[row]).any()]
    kept: list[int] = []
    for row in finite:
        beaten = (points[finite] <= points[row]).all(axis=1) & (points[finite] < points[row]).any(axis=1)
        same_before = any((points[other] == points[row]).all() for other in kept)
        if not beaten.any() and not same_before:
            kept.append(row)
    return kept


def knee_row(points: Points) -> int:
    """Row farthest from the line between the best row of the first objective and that of the second.

    Axes are scaled to the range of the given points. Fewer than three rows have no knee: the first
    row is returned. A row that is best in both objectives is its own knee.

    Raises:
        ValueError: There are no rows.
    """
    if len(points) == 0:
        raise ValueError("an empty front has no knee")
    if len(points) < 3:
        return 0
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    first = int(scaled[:, 0].argmin())
    start, end = scaled[first], scaled[scaled[:, min(1, scaled.shape[1] - 1)].argmin()]
    chord = end - start
    length = float(np.linalg.norm(chord))
    if length == 0.0:
        return first
    along = (scaled - start) @ chord / length
    distance = np.linalg.norm(scaled - start - np.outer(along, chord) / length, axis=1)
    return int(distance.argmax())
