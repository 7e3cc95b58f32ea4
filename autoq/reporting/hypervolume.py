"""The area that a front covers in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence


def area_beyond(costs: Sequence[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Return the area between points, both costs minimised, and a corner that is worse than they are.

    Points that are no better than the corner in both costs add nothing.
    """
    area, lowest = 0.0, corner[1]
    for first, second in sorted(costs):
        if first >= corner[0]:
            break
        if second < lowest:
            area += (corner[0] - first) * (lowest - second)
            lowest = second
    return area
