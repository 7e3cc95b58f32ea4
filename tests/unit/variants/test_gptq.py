from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.choices import Granularity
from autoq.variants.gptq import DAMPINGS, Treatment, choose_damping, gptq, sparsegpt
from autoq.variants.local_error import row_errors, weight_error
from autoq.variants.patterns import Given, MaskRule, NOfM, Unstructured, prune_rows
from autoq.variants.rounding import round_blocks
from autoq.variants.scales import UniformGrid, clipped_scales
from autoq.variants.second_order import Factor, factor

Doubles = npt.NDArray[np.float64]
BLOCK = 128  # columns in which SparseGPT chooses its zeros together


def inputs(groups: int, columns: int, n_vectors: int = 400, seed: int = 0) -> Doubles:
    """Correlated, not centred, of unequal size: as behind a ReLU."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, columns, columns)) * np.geomspace(1.0, 0.05, columns)
    return np.maximum(rng.standard_normal((groups, n_vectors, columns)) @ mixing, 0.0)


def second_moments(x: Doubles) -> Doubles:
    return x.swapaxes(1, 2) @ x / x.shape[1]


def weights(groups: int, rows: int, columns: int, seed: int = 1) -> Doubles:
    return np.random.default_rng(seed).standard_normal((groups, rows, columns))


def channel_grid(rows: Doubles, bits: int) -> UniformGrid:
    diagonal = np.ones((rows.shape[0], rows.shape[2]))
    return UniformGrid.symmetric(clipped_scales(rows, diagonal, bits, Granularity.CHANNEL), bits)


def slow_gptq(
    rows: Doubles, factors: list[Factor], grid: UniformGrid | None, rule: MaskRule | None
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Column by column in double precision, every later column updated at once."""
    groups, n_rows, n_columns = rows.shape
    left, values = rows.astype(np.float64).copy(), np.zeros(rows.shape)
    kept = rule.kept.copy() if isinstance(rule, Given) else np.ones(rows.shape, bool)
    start = 0
    for one in factors:
        for column in range(start, start + one.width):
            stop = start + one.width
            pivots = np.diagonal(one.upper, axis1=1, axis2=2)[:, None]
            scores = np.where(one.dead[:, None], 0.0, (left[..., start:stop] / pivots) ** 2)
            if isinstance(rule, Unstructured) and (column == start or column % BLOCK == 0):
                end = min((column // BLOCK + 1) * BLOCK, stop)
                total = rule.n_zero(rows.size)
                n_zero = total * end // n_columns - total * column // n_columns
                part = scores[..., column - start : end - start].reshape(-1)
                order = np.argsort(part, kind="stable")
                mask = np.ones(part.size, bool)
                mask[order[:n_zero]] = False
                kept[..., column:end] = mask.reshape(groups, n_rows, -1)
            if isinstance(rule, NOfM) and column % rule.m == 0:
                end = min(column + rule.m, stop)
                part = scores[..., column - start : end - start]
                n_zero = (end - column) - math.ceil((end - column) * rule.n / rule.m)
                order = np.argsort(part, axis=2, kind="stable")[..., :n_zero]
                np.put_along_axis(kept[..., column:end], order, False, axis=2)
            value = left[..., column].copy()
            scale: Doubles | float = 1.0
            if grid is not None:
                scale = np.broadcast_to(grid.scales, rows.shape)[..., column].astype(np.float64)
                value = np.clip(np.rint(value / scale), grid.low, grid.high)
            value = value * kept[..., column]
            values[..., column] = value
            for group in range(groups):
                upper = one.upper[group]
                pivot = upper[column - start, column - start]
                error = (left[group, :, column] - (value * scale)[group]) / pivot
                following = upper[column - start, column - start + 1 :]
                left[group, :, column + 1 : stop] -= np.outer(error, following)
        start += one.width
    return values, kept


RULES: list[MaskRule | None] = [None, Unstructured(0.5), Unstructured(0.83), NOfM(2, 4), NOfM(4, 8)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1, 7, 300), (3, 5, 45), (6, 1, 9)])
def test_the_blocked_loop_is_the_plain_one(shape: tuple[int, int, int], rule: MaskRule | None) -> None:
    rows, factors = weights(*shape), [factor(second_moments(inputs(shape[0], shape[2])), 0.01)]
    grid = channel_grid(rows, 3)
    [solution] = gptq(rows, factors, [Treatment(grid, rule)])
    values, kept = slow_gptq(rows, factors, grid, rule)
    assert solution.values.dtype == np.int8
    np.testing.assert_array_equal(solution.values, values)
    np.testing.assert_array_equal(solution.kept, kept)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule is not None])
def test_sparsegpt_is_the_plain_loop_without_a_grid(rule: MaskRule) -> None:
    rows, factors = weights(2, 6, 200), [factor(second_moments(inputs(2, 200)), 0.01)]
    [solution] = sparsegpt(rows, factors, [rule])
    values, kept = slow_gptq(rows, factors, None, rule)
    np.testing.assert_allclose(solution.values, values, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(solution.kept, kept)


@pytest.mark.parametrize("rule", RULES)
def test_blocks_of_columns_are_compressed_on_their_own(rule: MaskRule | None) -> None:
    rows, x = weights(1, 6, 216), inputs(1, 216)
    factors = [factor(second_moments(x[..., part]), 0.01) for part in (slice(0, 72), slice(72, 216))]
    grid = channel_grid(rows, 4)
    [solution] = gptq(rows, factors, [Treatment(grid, rule)])
    np.testing.assert_array_equal(solution.values, slow_gptq(rows, factors, grid, rule)[0])


def test_treatments_that_share_a_pass_do_not_touch_each_other() -> None:
    rows, factors = weights(2, 5, 150), [factor(second_moments(inputs(2, 150)), 0.03)]
    treatments = [
        Treatment(channel_grid(rows, bits), rule)
        for bits, rule in [(2, None), (3, NOfM(2, 4)), (4, Unstructured(0.6)), (8, NOfM(4, 8))]
    ]
    together = gptq(rows, factors, treatments)
    for treatment, shared in zip(treatments, together, strict=True):
        [alone] = gptq(rows, factors, [treatment])
        np.testing.assert_array_equal(shared.values, alone.values)
        np.testing.assert_array_equal(shared.kept, alone.kept)


def test_blocks_of_columns_may_have_scales_of_their_own_and_of_either_sign() -> None:
    rows, moments = weights(1, 8, 100).astype(np.float32), second_moments(inputs(1, 100))
    nearest, scales = round_blocks(rows[0], 4, 32)
    assert (scales < 0.0).any()
    grid = UniformGrid.of_blocks(scales, 4, block_size=32, n_columns=100)
    factors = [factor(moments, 0.01)]
    [solution] = gptq(rows, factors, [Treatment(grid)])
    np.testing.assert_array_equal(solution.values, slow_gptq(rows, factors, grid, None)[0])
    assert solution.values.min() >= -8
    assert solution.values.max() <= 7
    assert weight_error(rows, solution.values * grid.scales, [moments]) < weight_error(
        rows, nearest[None, :, :100] * grid.scales, [moments]
    )


def test_zeros_that_are_given_stay_and_the_rest_makes_up_for_them() -> None:
    rows, factors = weights(2, 5, 150), [factor(second_moments(inputs(2, 150)), 0.01)]
    grid, rule = channel_grid(rows, 3), Given(prune_rows(rows, Unstructured(0.4)))
    [solution] = gptq(rows, factors, [Treatment(grid, rule)])
    np.testing.assert_array_equal(solution.values, slow_gptq(rows, factors, grid, rule)[0])
    np.testing.assert_array_equal(solution.kept, rule.kept)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 150)),
    st.floats(0.0, 0.99),
    st.sampled_from([None, 2, 4]),
)
def test_exactly_the_asked_share_is_set_to_zero(
    shape: tuple[int, int, int], sparsity: float, bits: int | None
) -> None:
    rows, rule = weights(*shape).astype(np.float32), Unstructured(sparsity)
    moments = second_moments(inputs(shape[0], shape[2], 20)).astype(np.float32)
    if bits is None:
        [solution] = sparsegpt(rows, [factor(moments, 0.1)], [rule])
        assert solution.values.dtype == np.float32
    else:
        [solution] = gptq(rows, [factor(moments, 0.1)], [Treatment(channel_grid(rows, bits), rule)])
        assert np.abs(solution.values).max() <= 2 ** (bits - 1) - 1
    assert int((~solution.kept).sum()) == round(sparsity * rows.size)
    assert not solution.values[~solution.kept].any()
    assert np.isfinite(solution.values).all()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([NOfM(2, 4), NOfM(1, 4), NOfM(4, 8), NOfM(2, 3)]),
)
def test_no_run_keeps_more_than_its_pattern_even_across_factors(widths: list[int], rule: NOfM) -> None:
    rows, x = weights(1, 4, sum(widths)), inputs(1, sum(widths), 30)
    stops = np.cumsum([0, *widths])
    factors = [factor(second_moments(x[..., first:last]), 0.1) for first, last in itertools.pairwise(stops)]
    [solution] = gptq(rows, factors, [Treatment(channel_grid(rows, 4), rule)])
    for start in range(0, sum(widths), rule.m):
        run = solution.kept[..., start : start + rule.m]
        assert (run.sum(axis=2) <= math.ceil(run.shape[2] * rule.n / rule.m)).all()
        if len(widths) == 1:
            assert (run.sum(axis=2) == math.ceil(run.shape[2] * rule.n / rule.m)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_correlated_inputs_are_served_better_than_by_the_nearest(bits: int) -> None:
    rows = weights(1, 32, 200).astype(np.float32)
    moments = second_moments(inputs(1, 200, 1000)).astype(np.float32)
    grid = channel_grid(rows, bits)
    [solution] = gptq(rows, [factor(moments, 0.01)], [Treatment(grid)])
    ours = weight_error(rows, solution.values * grid.scales, [moments])
    assert ours < 0.8 * weight_error(rows, grid.round(rows) * grid.scales, [moments])


@pytest.mark.parametrize("rule", [Unstructured(0.5), NOfM(2, 4)])
def test_pruning_with_feedback_beats_pruning_by_magnitude(rule: MaskRule) -> None:
    rows, moments = weights(1, 32, 200), second_moments(inputs(1, 200, 1000))
    [solution] = sparsegpt(rows, [factor(moments, 0.01)], [rule])
    ours = weight_error(rows, solution.values, [moments])
    assert ours < 0.8 * weight_error(rows, rows * prune_rows(rows, rule), [moments])


def test_uncorrelated_inputs_give_the_nearest() -> None:
    rows = weights(1, 6, 40)
    grid = channel_grid(rows, 3)
    [solution] = gptq(rows, [factor(np.eye(40)[None], 0.01)], [Treatment(grid)])
    np.testing.assert_array_equal(solution.values, grid.round(rows))


def test_weights_of_dead_inputs_are_rounded_to_the_nearest_and_pruned_first() -> None:
    rows, x = weights(1, 5, 40), inputs(1, 40)
    x[..., 10:20] = 0.0
    x[..., 20:] *= 1e-3  # live, but a weight of theirs costs far less than 1
    factors, grid = [factor(second_moments(x), 0.01)], channel_grid(rows, 4)
    dense, sparse = gptq(rows, factors, [Treatment(grid), Treatment(grid, Unstructured(0.25))])
    np.testing.assert_array_equal(dense.values[..., 10:20], grid.round(rows)[..., 10:20])
    assert not sparse.kept[..., 10:20].any()
    assert sparse.kept[..., :10].all()


@pytest.mark.parametrize("rule", [None, Unstructured(0.5), NOfM(1, 4)])
@pytest.mark.parametrize(
    "moments",
    [np.zeros((1, 12, 12)), np.ones((1, 12, 12)), np.diag([1.0] + [0.0] * 11)[None]],
    ids=["dead", "singular", "one live input"],
)
@pytest.mark.parametrize("value", [0.0, 0.3, -1e-42, 1e30])
def test_degenerate_layers_stay_finite_and_on_the_grid(
    moments: Doubles, rule: MaskRule | None, value: float
) -> None:
    rows = np.full((1, 3, 12), value, np.float32)
    grid = channel_grid(rows, 4)
    factors = [factor(moments.astype(np.float32), 0.01)]
    [rounded] = gptq(rows, factors, [Treatment(grid, rule)])
    assert np.abs(rounded.values).max() <= 7
    assert np.isfinite(rounded.values * grid.scales).all()
    if abs(value) < 1e-40:
        assert not rounded.values.any()
    if rule is not None:
        [pruned] = sparsegpt(rows, factors, [rule])
        assert np.isfinite(pruned.values).all()


def test_one_column_is_rounded_to_the_nearest() -> None:
    rows = weights(2, 4, 1)
    grid = UniformGrid.symmetric(np.full((1, 1, 1), 0.5), 4)
    [solution] = gptq(rows, [factor(np.full((2, 1, 1), 3.0), 0.01)], [Treatment(grid)])
    np.testing.assert_array_equal(solution.values, grid.round(rows))


def test_the_given_rows_are_left_alone() -> None:
    rows = weights(1, 4, 30)
    before = rows.copy()
    gptq(rows, [factor(second_moments(inputs(1, 30)), 0.01)], [Treatment(channel_grid(rows, 4))])
    np.testing.assert_array_equal(rows, before)


def test_the_damping_is_the_one_that_serves_the_other_half_best() -> None:
    rows, x = weights(1, 40, 60), inputs(1, 60, 2 * 45, seed=5)
    halves = ([second_moments(x[:, :45])], [second_moments(x[:, 45:])])
    diagonal = np.diagonal(halves[0][0], axis1=1, axis2=2)
    scales = clipped_scales(rows, diagonal, 4, Granularity.CHANNEL)
    errors = []
    for damping in DAMPINGS:
        values, _ = slow_gptq(rows, [factor(halves[0][0], damping)], UniformGrid.symmetric(scales, 4), None)
        errors.append(weight_error(rows, values * scales, halves[1]))
    assert choose_damping(halves, rows) == DAMPINGS[int(np.argmin(errors))]


def test_few_data_ask_for_more_damping_than_many() -> None:
    rows = weights(1, 64, 120).astype(np.float32)

    def chosen(n_vectors: int) -> float:
        x = inputs(1, 120, 2 * n_vectors).astype(np.float32)
        return choose_damping(([second_moments(x[:, ::2])], [second_moments(x[:, 1::2])]), rows)

    assert chosen(40) > chosen(4000)


def test_damping_is_chosen_over_all_groups_and_blocks() -> None:
    rows, x = weights(70, 2, 18), inputs(70, 18, 100)
    blocks = [
        [second_moments(x[:, half, part]) for part in (slice(0, 9), slice(9, 18))]
        for half in (slice(0, 50), slice(50, 100))
    ]
    assert choose_damping((blocks[0], blocks[1]), rows) in DAMPINGS


def test_eight_bits_lose_almost_nothing() -> None:
    rows, moments = weights(1, 16, 100), second_moments(inputs(1, 100))
    grid = channel_grid(rows, 8)
    [solution] = gptq(rows, [factor(moments, 0.01)], [Treatment(grid)])
    error = weight_error(rows, solution.values * grid.scales, [moments])
    assert error < 1e-3 * row_errors(rows, [moments]).sum()


def test_factors_that_do_not_cover_the_columns_are_refused() -> None:
    rows = weights(1, 4, 30)
    with pytest.raises(ValueError, match=r"\[20\] columns do not fit rows of 30"):
        gptq(rows, [factor(np.eye(20)[None], 0.01)], [Treatment(channel_grid(rows, 4))])
