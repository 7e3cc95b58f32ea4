from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.calibration.outliers import find_outliers, outlier_channels
from autoq.calibration.summaries import summarize


@pytest.mark.parametrize(("n_channels", "n_taken"), [(32, 4), (384, 4), (500, 5), (1536, 16)])
def test_one_percent_of_the_channels_is_taken_out_and_no_fewer_than_four(
    n_channels: int, n_taken: int
) -> None:
    maxima = np.random.default_rng(0).permutation(n_channels).astype(np.float32)
    taken = outlier_channels(maxima)
    assert len(taken) == n_taken
    assert sorted(maxima[list(taken)]) == list(range(n_channels - n_taken, n_channels))
    assert list(taken) == sorted(taken)


def test_of_equal_channels_the_first_are_taken() -> None:
    assert outlier_channels(np.array([1.0, 2.0] * 20, np.float32)) == (1, 3, 5, 7)


@given(st.integers(0, 1000), st.sampled_from(["both", "positive", "negative"]))
def test_all_that_was_seen_in_the_other_channels_is_in_the_range(seed: int, sign: str) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(200, 40)) * rng.exponential(size=40)).astype(np.float32)
    values = {"both": values, "positive": np.abs(values), "negative": -np.abs(values)}[sign]
    outliers = find_outliers(summarize(values), np.abs(values).max(axis=0))
    params = outliers.params
    rest = np.delete(values, outliers.channels, axis=1)
    low, high = (params.scale * (edge - params.zero_point) for edge in (params.low, params.high))
    assert low - params.scale / 2 <= rest.min()
    assert rest.max() <= high + params.scale / 2
    widest = float(np.abs(rest).max())
    assert params.scale * 255 <= (2 if sign == "both" else 1) * widest * (1 + 1e-6)


def test_channels_that_are_always_zero_have_a_range() -> None:
    values = np.zeros((3, 40), np.float32)
    values[:, :4] = 5.0
    outliers = find_outliers(summarize(values), np.abs(values).max(axis=0))
    assert outliers.channels == (0, 1, 2, 3)
    assert outliers.params.scale == 1.0
