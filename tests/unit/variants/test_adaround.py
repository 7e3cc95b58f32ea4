from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.choices import Granularity
from autoq.variants.adaround import adaround, descend
from autoq.variants.codebook import codebook
from autoq.variants.gptq import Grid, Treatment, gptq
from autoq.variants.local_error import row_errors, weight_error
from autoq.variants.patterns import Unstructured
from autoq.variants.scales import UniformGrid, clipped_scales
from autoq.variants.second_order import factor

Floats = npt.NDArray[np.float32]


def moments(groups: int, columns: int, n_vectors: int = 600) -> Floats:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((groups, n_vectors, columns)) @ rng.standard_normal(
        (groups, columns, columns)
    )
    x = np.maximum(mixed, 0.0)
    return (x.swapaxes(1, 2) @ x / n_vectors).astype(np.float32)


def weights(groups: int, rows: int, columns: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((groups, rows, columns)).astype(np.float32)


def channel_grid(rows: Floats, bits: int) -> UniformGrid:
    diagonal = np.ones((rows.shape[0], rows.shape[2]), np.float32)
    return UniformGrid.symmetric(clipped_scales(rows, diagonal, bits, Granularity.CHANNEL), bits)


def error(rows: Floats, integers: npt.NDArray[np.int8], grid: Grid, blocks: list[Floats]) -> float:
    return weight_error(rows, integers * grid.scales, blocks)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_is_improved_by_descent_and_more_by_adaround(bits: int) -> None:
    rows, a = weights(1, 24, 96), moments(1, 96)
    grid, kept = channel_grid(rows, bits), np.ones(rows.shape, bool)
    start = gptq(rows, [factor(a, 0.01)], [Treatment(grid)])[0].values
    descended = descend(rows, start, grid, [a], kept=kept)
    learnt = adaround(rows, start, grid, [a], kept=kept)
    assert learnt.dtype == np.int8
    assert np.abs(learnt).max() <= grid.high
    first, second, third = (error(rows, one, grid, [a]) for one in (start, descended, learnt))
    assert third < second < first
    assert third < 0.9 * first


def test_a_codebook_is_improved_too_and_its_levels_stay() -> None:
    rows, a = weights(1, 24, 96), moments(1, 96)
    diagonal, eighths = np.diagonal(a, axis1=1, axis2=2), np.abs(rows).max(axis=2, keepdims=True) / 127
    grid = codebook(rows, diagonal, eighths, bits=3, keep_zero=False)
    start = gptq(rows, [factor(a, 0.01)], [Treatment(grid)])[0].values
    learnt = adaround(rows, start, grid, [a], kept=np.ones(rows.shape, bool))
    assert set(np.unique(learnt).tolist()) <= set(grid.levels.tolist())
    assert error(rows, learnt, grid, [a]) < 0.95 * error(rows, start, grid, [a])


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12)),
    st.integers(0, 50),
    st.booleans(),
)
def test_no_row_gets_worse_and_what_may_not_move_stays(
    shape: tuple[int, int, int], seed: int, only_descend: bool
) -> None:
    rows, a = weights(*shape, seed=seed), moments(shape[0], shape[2], 8)
    rng = np.random.default_rng(seed)
    grid, kept = channel_grid(rows, 3), rng.random(shape) < 0.7
    start = rng.integers(-3, 4, shape).astype(np.int8)
    if only_descend:
        after = descend(rows, start, grid, [a], kept=kept)
    else:
        after = adaround(rows, start, grid, [a], kept=kept, n_steps=30)
    np.testing.assert_array_equal(after[~kept], start[~kept])
    assert np.abs(after).max() <= 3
    before, now = (row_errors(one * grid.scales - rows, [a]) for one in (start, after))
    assert (now <= before).all()


def test_pruned_weights_stay_zero() -> None:
    rows, a = weights(1, 8, 64), moments(1, 64)
    grid = channel_grid(rows, 3)
    [start] = gptq(rows, [factor(a, 0.01)], [Treatment(grid, Unstructured(0.5))])
    learnt = adaround(rows, start.values, grid, [a], kept=start.kept, n_steps=100)
    assert not learnt[~start.kept].any()
    assert error(rows, learnt, grid, [a]) <= error(rows, start.values, grid, [a])


def slow_descent(row: Floats, start: npt.NDArray[np.int8], scale: float, a: Floats) -> list[int]:
    """Try every integer for one weight after the other until nothing helps."""
    now = start.astype(np.float64)
    while True:
        before = now.copy()
        for column in range(len(row)):
            trials = []
            for integer in range(-3, 4):
                now[column] = integer
                delta = now * scale - row
                trials.append((float(delta @ a @ delta), integer))
            now[column] = min(trials)[1]
        if (now == before).all():
            return [int(value) for value in now]


def test_descent_ends_where_trying_every_integer_ends() -> None:
    rows, a = weights(1, 6, 7), moments(1, 7)
    grid, kept = channel_grid(rows, 3), np.ones(rows.shape, bool)
    start = grid.round(rows)
    found = descend(rows, start, grid, [a], kept=kept, n_sweeps=30)
    for row in range(6):
        expected = slow_descent(rows[0, row], start[0, row], float(grid.scales[0, row, 0]), a[0])
        assert found[0, row].tolist() == expected


def test_a_tiny_layer_comes_close_to_the_best_there_is() -> None:
    rows, a = weights(1, 4, 6), moments(1, 6)
    grid, kept = channel_grid(rows, 2), np.ones(rows.shape, bool)
    every = np.array(list(itertools.product([-1, 0, 1], repeat=6)), np.float32)
    best = sum(
        min(float(delta @ a[0] @ delta) for delta in every * grid.scales[0, row] - rows[0, row])
        for row in range(4)
    )
    start = gptq(rows, [factor(a, 0.01)], [Treatment(grid)])[0].values
    found = error(rows, adaround(rows, start, grid, [a], kept=kept), grid, [a])
    assert best * (1 - 1e-5) <= found <= 1.25 * best


def test_several_groups_and_blocks_are_improved_on_their_own() -> None:
    rows, a = weights(2, 5, 200), moments(2, 200)
    blocks = [a[:, :150, :150], a[:, 150:, 150:]]
    grid, kept = channel_grid(rows, 3), np.ones(rows.shape, bool)
    start = grid.round(rows)
    both = descend(rows, start, grid, blocks, kept=kept)
    for group in range(2):
        for columns, block in ((slice(0, 150), blocks[0]), (slice(150, 200), blocks[1])):
            part = (slice(group, group + 1), slice(None), columns)
            alone = descend(
                rows[part],
                start[part],
                UniformGrid(grid.scales[group : group + 1], grid.low, grid.high),
                [block[group : group + 1]],
                kept=kept[part],
            )
            assert (both[part] == alone).mean() > 0.98  # rows are kept or given back as a whole
    assert error(rows, both, grid, blocks) < 0.7 * error(rows, start, grid, blocks)


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("a", [np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), np.float32)])
def test_degenerate_layers_stay_finite(a: Floats, value: float) -> None:
    rows = np.full((1, 2, 4), value, np.float32)
    grid, kept = channel_grid(rows, 4), np.ones(rows.shape, bool)
    start = grid.round(rows)
    np.testing.assert_array_equal(adaround(rows, start, grid, [a], kept=kept), start)
    np.testing.assert_array_equal(descend(rows, start, grid, [a], kept=kept), start)
