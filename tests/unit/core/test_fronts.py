from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from autoq.core.fronts import Points, dominates, front_rows, knee_row

# Few values, so that ties and equal rows are common.
POINTS = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).filter(lambda shape: shape[1] <= 3),
    elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")]),
)


@given(POINTS)
def test_the_front_is_what_comparing_every_pair_gives(points: Points) -> None:
    rows = [tuple(row) for row in points]
    expected = []
    for number, row in enumerate(rows):
        beaten = any(dominates(other, row) for other in rows if not np.isnan(other).any())
        if not np.isnan(row).any() and not beaten and row not in rows[:number]:
            expected.append(number)
    assert front_rows(points) == expected


@given(POINTS)
def test_every_row_off_the_front_is_matched_or_beaten_by_one_on_it(points: Points) -> None:
    front = front_rows(points)
    for row in points[~np.isnan(points).any(axis=1)]:
        assert any((points[kept] <= row).all() for kept in front)


def test_equal_points_do_not_dominate_each_other() -> None:
    assert not dominates([1.0, 2.0], [1.0, 2.0])
    assert dominates([1.0, 2.0], [1.0, 3.0])
    assert not dominates([0.0, 3.0], [1.0, 2.0])


def test_an_empty_front_has_no_rows_and_no_knee() -> None:
    assert front_rows(np.empty((0, 2))) == []
    with pytest.raises(ValueError, match="empty front"):
        knee_row(np.empty((0, 2)))


@pytest.mark.parametrize("points", [[[3.0, 1.0]], [[0.1, 0.7], [0.3, 0.2]], [[0.3, 0.2], [0.1, 0.7]]])
def test_fewer_than_three_points_have_their_first_as_knee(points: list[list[float]]) -> None:
    assert knee_row(np.array(points)) == 0


def test_the_knee_is_farthest_from_the_line_whatever_the_units() -> None:
    points = np.array([[0.0, 10.0], [1.0, 3.0], [2.0, 2.0], [8.0, 1.0], [10.0, 0.0]])
    assert knee_row(points) == 2
    assert knee_row(points * [1e6, 1e-6]) == 2


def test_the_line_of_a_knee_ends_at_the_best_of_the_second_objective() -> None:
    # The third objective keeps the slowest point on the front; it is not the most accurate.
    points = np.array([[0.0, 1.0, 1.0], [0.1, 0.1, 1.0], [0.5, 0.0, 1.0], [1.0, 0.9, 0.0]])
    assert knee_row(points) == 3
    assert knee_row(points[:3]) == 1


def test_a_point_best_in_both_objectives_is_the_knee() -> None:
    assert knee_row(np.array([[2.0, 2.0, 0.0], [1.0, 1.0, 5.0], [2.0, 3.0, 1.0]])) == 1


def test_points_along_one_objective_have_the_least_as_knee() -> None:
    assert knee_row(np.array([[3.0], [1.0], [2.0]])) == 1
