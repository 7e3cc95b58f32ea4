from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.calibration.geometry import RowGeometry, WindowGeometry
from autoq.calibration.moments import (
    MomentAccumulator,
    MomentCollector,
    Moments,
    accumulator_bytes,
    column_blocks,
    mirrored,
    sampled_positions,
    vectors_wanted,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
KEY = "0123456789abcdef"


def outer_products(vectors: Floats) -> Doubles:
    """E[xxT] one vector at a time; (groups, columns, columns)."""
    groups, rows, columns = vectors.shape
    total = np.zeros((groups, columns, columns))
    for group in range(groups):
        for vector in vectors[group].astype(np.float64):
            total[group] += np.outer(vector, vector)
    mean: Doubles = total / rows
    return mean


def accumulated(first: Floats, second: Floats, *, widest: int = 8192) -> Moments:
    blocks = column_blocks(first.shape[2], whole=widest, widest=widest)
    sums = MomentAccumulator(len(first), blocks)
    sums.add(0, first)
    sums.add(1, second)
    moments = sums.finish()
    assert moments is not None
    return moments


def draw(groups: int, rows: int, columns: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((groups, rows, columns)) + 0.3).astype(np.float32)


@pytest.mark.parametrize(
    ("groups", "rows", "columns"), [(1, 30, 7), (3, 50, 9), (1, 1, 4), (1, 40, 1), (2, 700, 2)]
)
def test_moments_are_the_mean_of_outer_products(groups: int, rows: int, columns: int) -> None:
    first, second = draw(groups, rows, columns), draw(groups, rows + 3, columns, seed=1)
    moments = accumulated(first, second)
    assert moments.n_rows == (rows, rows + 3)
    np.testing.assert_allclose(moments.halves[0][0], outer_products(first), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.halves[1][0], outer_products(second), rtol=1e-5, atol=1e-6)
    both = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(moments.merged()[0], outer_products(both), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.mean, both.astype(np.float64).mean(axis=1), rtol=1e-5, atol=1e-6)
    assert {array.dtype for array in (*moments.halves[0], *moments.merged(), moments.mean)} == {
        np.dtype(np.float32)
    }


def test_many_columns_are_summed_in_panels_and_exactly_symmetric() -> None:
    vectors = draw(1, 300, 1100)
    moments = accumulated(vectors, vectors[:, :5])
    block = moments.halves[0][0]
    expected = vectors[0].astype(np.float64).T @ vectors[0].astype(np.float64) / 300
    np.testing.assert_allclose(block[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(block[0], block[0].T)


def test_too_many_columns_give_block_diagonal_moments() -> None:
    vectors = draw(2, 60, 11)
    moments = accumulated(vectors, vectors, widest=4)
    full = outer_products(vectors)
    assert moments.blocks == (slice(0, 3), slice(3, 7), slice(7, 11))
    assert moments.columns == 11
    for block, columns in zip(moments.merged(), moments.blocks, strict=True):
        np.testing.assert_allclose(block, full[:, columns, columns], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.mean, vectors.astype(np.float64).mean(axis=1), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 30))
def test_blocks_cover_the_columns_in_equal_parts(columns: int, whole: int, widest: int) -> None:
    blocks = column_blocks(columns, whole=whole, widest=widest)
    assert [column for block in blocks for column in range(columns)[block]] == list(range(columns))
    widths = {block.stop - block.start for block in blocks}
    assert max(widths) - min(widths) <= 1
    assert columns <= whole or max(widths) <= widest


def test_twenty_five_thousand_columns_make_seven_blocks() -> None:
    widths = [block.stop - block.start for block in column_blocks(25_000)]
    assert len(widths) == 7
    assert max(widths) <= 4096
    assert len(column_blocks(8192)) == 1


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=6))
def test_how_vectors_come_in_does_not_change_a_bit(lengths: list[int]) -> None:
    vectors = draw(1, 2000, 300)  # several products' worth
    whole = accumulated(vectors, vectors)
    blocks = column_blocks(300)
    sums = MomentAccumulator(1, blocks)
    start = 0
    for length in [*lengths, 2000]:
        part = vectors[:, start : min(start + length, 2000)]
        sums.add(0, part)
        sums.add(1, part)
        start += part.shape[1]
    parts = sums.finish()
    assert parts is not None
    assert parts.n_rows == (2000, 2000)
    for half in (0, 1):
        np.testing.assert_array_equal(parts.halves[half][0], whole.halves[half][0])
    np.testing.assert_array_equal(parts.mean, whole.mean)


def test_a_half_without_vectors_is_given_the_other_ones() -> None:
    vectors = draw(1, 8, 3)
    for half in (0, 1):
        sums = MomentAccumulator(1, column_blocks(3))
        sums.add(half, vectors)
        moments = sums.finish()
        assert moments is not None
        assert moments.n_rows == (8, 8)
        for blocks in (*moments.halves, moments.merged()):
            np.testing.assert_allclose(blocks[0], outer_products(vectors), rtol=1e-5)
        np.testing.assert_allclose(moments.mean, vectors.mean(axis=1), rtol=1e-5)


def test_no_vectors_give_no_moments() -> None:
    assert MomentAccumulator(1, column_blocks(3)).finish() is None


def test_squares_beyond_float32_give_no_moments() -> None:
    sums = MomentAccumulator(1, column_blocks(2))
    sums.add(0, np.array([[[1e30, -1e30]]], np.float32))
    assert sums.finish() is None


def test_dead_and_constant_inputs_are_finite() -> None:
    vectors = np.zeros((1, 20, 3), np.float32)
    vectors[:, :, 1] = 5.0
    moments = accumulated(vectors, vectors)
    np.testing.assert_array_equal(moments.merged()[0][0], [[0, 0, 0], [0, 25, 0], [0, 0, 0]])
    np.testing.assert_array_equal(moments.mean[0], [0, 5, 0])


def test_the_size_of_sums_is_foreseen_and_does_not_grow() -> None:
    for groups, columns, widest in [(1, 700, 8192), (40, 9, 8192), (1, 1300, 400), (1, 1, 8192)]:
        blocks = column_blocks(columns, whole=widest, widest=widest)
        sums = MomentAccumulator(groups, blocks)
        assert sums.nbytes == accumulator_bytes(groups, blocks)
        sums.add(0, draw(groups, 3, columns))
        assert sums.nbytes == accumulator_bytes(groups, blocks)


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    batch = draw(1, 512, 64)[0].reshape(8, 64, 64)
    collector = MomentCollector(KEY, RowGeometry(64), 8 * 200)
    peaks = []
    tracemalloc.start()
    try:
        for index in range(200):
            collector.add(batch, first=8 * index, n_examples=8, n_real=8)
            if index in (20, 199):
                peaks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert peaks[1] <= peaks[0] + 2**16


def test_lower_triangles_become_copies_of_the_upper_ones() -> None:
    for width in (1, 5, 512, 513, 1200):
        raw = np.random.default_rng(0).standard_normal((2, width, width)).astype(np.float32)
        upper = np.triu(raw)
        expected = upper + np.triu(raw, 1).transpose(0, 2, 1)
        np.testing.assert_array_equal(mirrored(raw), expected)


def collected(array: Floats, geometry: RowGeometry | WindowGeometry, sizes: list[int]) -> Moments:
    """Moments of an array with one row an example, taken in batches of these sizes."""
    collector = MomentCollector(KEY, geometry, len(array))
    start = 0
    for size in sizes:
        part = array[start : start + size]
        collector.add(part, first=start, n_examples=len(part), n_real=len(part))
        start += len(part)
    moments = collector.finish()
    assert moments is not None
    return moments


def assert_identical(left: Moments, right: Moments) -> None:
    assert left.n_rows == right.n_rows
    for half in (0, 1):
        for a, b in zip(left.halves[half], right.halves[half], strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(left.mean, right.mean)


def test_any_batching_of_a_large_map_gives_identical_moments() -> None:
    """32 x 32 positions an example are more than are wanted, so they are sampled."""
    array = np.random.default_rng(0).standard_normal((40, 2, 32, 32)).astype(np.float32)
    geometry = WindowGeometry(1, 2, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    whole = collected(array, geometry, [40])
    assert 16000 < sum(whole.n_rows) <= 16384
    assert_identical(whole, collected(array, geometry, [1] * 40))
    assert_identical(whole, collected(array, geometry, [7, 3, 12, 18]))


def test_halves_are_the_even_and_the_odd_examples() -> None:
    array = draw(7, 5, 4)
    moments = collected(array, RowGeometry(4), [3, 4])
    assert moments.n_rows == (20, 15)
    for half in (0, 1):
        expected = outer_products(array[half::2].reshape(1, -1, 4))
        np.testing.assert_allclose(moments.halves[half][0], expected, rtol=1e-5, atol=1e-6)


def test_padding_does_not_count() -> None:
    array = draw(4, 5, 3)
    collector = MomentCollector(KEY, RowGeometry(3), 2)
    collector.add(array, first=0, n_examples=4, n_real=2)
    moments = collector.finish()
    assert moments is not None
    assert_identical(moments, collected(array[:2], RowGeometry(3), [2]))


def test_a_single_example_is_both_halves() -> None:
    moments = collected(draw(1, 6, 3), RowGeometry(3), [1])
    np.testing.assert_array_equal(moments.halves[0][0], moments.halves[1][0])
    assert moments.n_rows == (6, 6)


def test_a_batch_without_examples_of_its_own_ends_the_collection() -> None:
    collector = MomentCollector(KEY, RowGeometry(3), 4)
    collector.add(draw(2, 5, 3), first=0, n_examples=2, n_real=2)
    collector.add(None, first=2, n_examples=2, n_real=2)
    assert collector.finish() is None


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 1000))
def test_vectors_are_shared_out_evenly_between_halves_and_examples(n_examples: int, n_vectors: int) -> None:
    shares = [vectors_wanted(example, n_examples, n_vectors) for example in range(n_examples)]
    assert max(shares) - min(shares) <= 1
    assert sum(shares) <= n_vectors + max(shares)
    assert sum(shares) >= n_vectors - 2 - max(shares) or n_examples == 1
    assert shares[1::2] == shares[: n_examples - n_examples % 2 : 2]


def test_sampled_positions_are_distinct_sorted_and_depend_on_key_and_example() -> None:
    one = sampled_positions(KEY, 3, 1000, 100)
    assert len(np.unique(one)) == 100
    assert (np.sort(one) == one).all()
    assert one.min() >= 0
    assert one.max() < 1000
    np.testing.assert_array_equal(one, sampled_positions(KEY, 3, 1000, 100))
    assert not np.array_equal(one, sampled_positions(KEY, 4, 1000, 100))
    assert not np.array_equal(one, sampled_positions("abc", 3, 1000, 100))
    np.testing.assert_array_equal(sampled_positions(KEY, 3, 5, 9), np.arange(5))


def test_sampled_positions_cover_all_positions_evenly() -> None:
    counts = np.zeros(50)
    for example in range(2000):
        counts[sampled_positions(KEY, example, 50, 10)] += 1
    assert counts.min() > 300
    assert counts.max() < 500


def test_moments_of_sampled_positions_are_close_to_those_of_all() -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((64, 2, 40, 40)).astype(np.float32)
    geometry = WindowGeometry(1, 2, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    sampled = collected(array, geometry, [64])
    vectors = geometry.vectors(array, np.arange(geometry.n_positions(array.shape)))[0]
    full = vectors.T.astype(np.float64) @ vectors / len(vectors)
    assert sum(sampled.n_rows) < len(vectors) / 5
    assert np.abs(sampled.merged()[0][0] - full).max() < 0.06


def test_columns_that_are_left_out_are_as_if_always_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 400, 24)).astype(np.float32)
    blocks = (slice(0, 10), slice(10, 24))
    left_out = np.array([3, 9, 10, 23])

    def moments_of(vectors: npt.NDArray[np.float32]) -> Moments:
        sums = MomentAccumulator(1, blocks)
        for half in (0, 1):
            sums.add(half, vectors[:, half::2])
        found = sums.finish()
        assert found is not None
        return found

    zeroed = x.copy()
    zeroed[:, :, left_out] = 0.0
    found, expected = moments_of(x).without(left_out), moments_of(zeroed)
    np.testing.assert_array_equal(found.mean, expected.mean)
    for one, other in zip(found.halves, expected.halves, strict=True):
        for block, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(block, wanted)
    assert moments_of(x).merged()[0][0, 3, 3] > 0.5  # the original is as it was
