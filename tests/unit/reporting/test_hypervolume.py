from __future__ import annotations

import itertools

import numpy as np

from autoq.reporting.hypervolume import area_beyond


def test_the_area_is_the_number_of_unit_squares_that_some_point_covers() -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 7, 20):
        points = [(int(x), int(y)) for x, y in rng.integers(0, 14, (n, 2))]  # some beyond the corner
        covered = sum(
            any(px <= x and py <= y for px, py in points) for x, y in itertools.product(range(12), range(10))
        )
        assert area_beyond([(float(x), float(y)) for x, y in points], (12.0, 10.0)) == covered
