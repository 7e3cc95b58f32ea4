from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.calibration.summaries import BINS_PER_SIDE, TensorSummary, summarize

Floats = npt.NDArray[np.float32]

# Float32 scales x exactly by a power of two as long as nothing underflows: 25 orders of magnitude do.
magnitudes = st.floats(min_value=2.0**-40, max_value=2.0**40, width=32)
values = st.one_of(st.just(0.0), magnitudes, magnitudes.map(lambda x: -x))
batches = st.lists(st.lists(values, min_size=1, max_size=12), min_size=1, max_size=6)


def as_arrays(lists: list[list[float]]) -> list[Floats]:
    return [np.array(one, np.float32) for one in lists]


def merged(arrays: list[Floats]) -> TensorSummary:
    total, *rest = [summarize(array) for array in arrays]
    for summary in rest:
        total = total.merge(summary)
    return total


def assert_same(left: TensorSummary, right: TensorSummary) -> None:
    assert (left.low, left.high, left.exponent) == (right.low, right.high, right.exponent)
    np.testing.assert_array_equal(left.counts, right.counts)


@settings(deadline=None)
@given(batches, st.randoms(use_true_random=False))
def test_batches_in_any_order_give_the_summary_of_all_values_at_once(
    lists: list[list[float]], random: Random
) -> None:
    arrays = as_arrays(lists)
    shuffled = arrays.copy()
    random.shuffle(shuffled)
    whole = summarize(np.concatenate(arrays))
    assert_same(merged(arrays), whole)
    assert_same(merged(shuffled), whole)


@settings(deadline=None)
@given(batches)
def test_merging_is_associative(lists: list[list[float]]) -> None:
    first, *rest = [summarize(array) for array in as_arrays(lists)]
    from_the_right = first
    for summary in reversed(rest):
        from_the_right = summary.merge(from_the_right)
    assert_same(merged(as_arrays(lists)), from_the_right)


@settings(deadline=None)
@given(batches)
def test_extremes_are_exact_and_every_value_is_counted(lists: list[list[float]]) -> None:
    raw = np.concatenate(as_arrays(lists))
    summary = merged(as_arrays(lists))
    assert summary.low == raw.min()
    assert summary.high == raw.max()
    assert summary.n_values == raw.size


@settings(deadline=None)
@given(batches)
def test_every_value_lies_in_its_bin(lists: list[list[float]]) -> None:
    raw = np.concatenate(as_arrays(lists)).astype(np.float64)
    summary = merged(as_arrays(lists))
    expected = np.zeros(2 * BINS_PER_SIDE, np.int64)
    np.add.at(expected, np.floor(raw / summary.width).astype(int) + BINS_PER_SIDE, 1)
    np.testing.assert_array_equal(summary.counts, expected)


@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e-30, 1e-3, 1.0, 1e5, 1e30, 3.4e38])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_any_magnitude_of_float32_is_held(magnitude: float, sign: float) -> None:
    raw = np.array([sign * magnitude, 0.0], np.float32)
    summary = summarize(raw)
    assert (summary.low, summary.high) == (float(raw.min()), float(raw.max()))
    assert summary.n_values == 2
    assert magnitude <= BINS_PER_SIDE * summary.width


def test_bins_are_at_most_a_thousandth_of_the_largest_magnitude() -> None:
    for magnitude in np.geomspace(1e-6, 1e6, 40):
        summary = summarize(np.array([magnitude], np.float32))
        assert summary.width <= magnitude / (BINS_PER_SIDE / 2)


def test_zeros_and_negative_zeros_share_a_bin() -> None:
    summary = summarize(np.array([0.0, -0.0, 1.0], np.float32))
    assert summary.counts[BINS_PER_SIDE] == 2


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        summarize(np.array([1.0, np.nan, -np.inf], np.float32))


@pytest.mark.parametrize("mask", [np.inf, -np.inf, np.finfo(np.float32).min])
def test_what_is_masked_out_takes_no_part_in_a_range(mask: float) -> None:
    """It saturates in any."""
    masked = summarize(np.array([1.0, mask, -2.0, mask], np.float32))
    plain = summarize(np.array([1.0, -2.0], np.float32))
    assert (masked.low, masked.high, masked.exponent) == (plain.low, plain.high, plain.exponent)
    assert masked.counts.tolist() == plain.counts.tolist()
    nothing = summarize(np.full(3, mask, np.float32))
    assert (nothing.low, nothing.high, nothing.n_values) == (0.0, 0.0, 0)
