from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.hypervolume import Points, hypervolume, hypervolume_gains

FAR = -1e3  # what the module takes for the lowest value of any axis


@st.composite
def fronts(draw: st.DrawFn, *, max_points: int = 6) -> tuple[Points, Points]:
    """Points, some of them beyond the reference, on a grid coarse enough for ties; and the reference."""
    n_axes = draw(st.integers(1, 4))
    n_points = draw(st.integers(0, max_points))
    coordinate = st.integers(-6, 3).map(lambda one: one / 2)
    rows = draw(st.lists(st.lists(coordinate, min_size=n_axes, max_size=n_axes), min_size=n_points))
    return np.array(rows, np.float64).reshape(len(rows), n_axes), np.ones(n_axes)


def by_inclusion_and_exclusion(points: Points, reference: Points) -> float:
    """Volume of the union of the boxes between points and reference."""
    inside = [point for point in points if (point < reference).all()]
    total = 0.0
    for n_boxes in range(1, len(inside) + 1):
        for boxes in combinations(inside, n_boxes):
            total -= (-1.0) ** n_boxes * float(np.prod(reference - np.max(boxes, axis=0)))
    return total


@settings(max_examples=60, deadline=None)
@given(fronts())
def test_the_volume_is_that_of_the_union_of_boxes(front: tuple[Points, Points]) -> None:
    points, reference = front
    points = points[:8]
    expected = by_inclusion_and_exclusion(points, reference)
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_volume_is_the_share_of_random_points_that_are_dominated() -> None:
    rng = np.random.default_rng(0)
    points, reference = rng.random((12, 3)), np.ones(3)
    drawn = rng.random((40_000, 3))
    dominated = (points[None] <= drawn[:, None]).all(axis=2).any(axis=1)
    assert hypervolume(points, reference) == pytest.approx(dominated.mean(), abs=4 * 0.5 / 200)


@settings(max_examples=60, deadline=None)
@given(fronts(), st.integers(0, 3))
def test_a_gain_is_the_difference_that_one_more_point_makes(
    front: tuple[Points, Points], n_known: int
) -> None:
    points, reference = front
    known = points[:n_known]
    gains = hypervolume_gains(points, known, reference)
    for point, gain in zip(points, gains, strict=True):
        more = hypervolume(np.concatenate((known, point[None])), reference)
        assert gain == pytest.approx(more - hypervolume(known, reference), abs=1e-9)


def test_points_at_or_beyond_the_reference_count_for_nothing() -> None:
    reference = np.array([1.0, 1.0])
    points = np.array([[1.0, -5.0], [-5.0, 1.0], [2.0, 0.0]])
    assert hypervolume(points, reference) == 0.0
    assert hypervolume_gains(points, np.zeros((0, 2)), reference).tolist() == [0.0, 0.0, 0.0]


def test_a_dominated_or_equal_candidate_gains_nothing() -> None:
    reference, known = np.ones(2), np.array([[0.0, 0.5]])
    gains = hypervolume_gains(np.array([[0.0, 0.5], [0.5, 0.5], [-0.5, 0.5]]), known, reference)
    assert gains.tolist() == [0.0, 0.0, pytest.approx(0.25)]


def test_logarithms_of_ratios_lie_far_above_the_end_of_space() -> None:
    smallest = np.array([[np.log(1e-300)]])
    assert smallest.min() > FAR
    assert hypervolume(smallest, np.zeros(1)) == pytest.approx(-smallest.item())


def test_dominated_points_cost_neither_memory_nor_time() -> None:
    rng = np.random.default_rng(0)
    front = np.array([[-1.0, -2.0, -2.0, -2.0], [-2.0, -2.0, -1.0, -1.0]])
    crowd = np.concatenate((front, rng.uniform(-0.9, -0.1, (400, 4))))  # a grid of them has 2.6e10 cells
    assert hypervolume(crowd, np.zeros(4)) == pytest.approx(hypervolume(front, np.zeros(4)))
    asked = rng.uniform(-3.0, 0.0, (50, 4))
    assert hypervolume_gains(asked, crowd, np.zeros(4)) == pytest.approx(
        hypervolume_gains(asked, front, np.zeros(4))
    )
