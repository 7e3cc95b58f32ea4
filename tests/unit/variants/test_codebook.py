from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.variants.codebook import LevelGrid, codebook, codebook_levels
from autoq.variants.gptq import Treatment, gptq
from autoq.variants.local_error import weight_error
from autoq.variants.patterns import Unstructured
from autoq.variants.second_order import factor

Doubles = npt.NDArray[np.float64]


def cost(counts: Doubles, levels: tuple[int, ...]) -> float:
    limit = len(counts) // 2
    return sum(
        count * min((place - level) ** 2 for level in levels)
        for place, count in zip(range(-limit, limit + 1), counts.tolist(), strict=True)
    )


@settings(deadline=None, max_examples=150)
@given(
    hnp.arrays(np.float64, 9, elements=st.sampled_from([0.0, 1.0, 2.0, 7.5, 100.0])),
    st.integers(1, 6),
    st.booleans(),
)
def test_no_other_levels_are_closer(counts: Doubles, n_levels: int, keep_zero: bool) -> None:
    levels = tuple(int(level) for level in codebook_levels(counts, n_levels, keep_zero=keep_zero))
    options = [
        option for option in itertools.combinations(range(-4, 5), n_levels) if 0 in option or not keep_zero
    ]
    assert levels in options
    best = min(cost(counts, option) for option in options)
    assert cost(counts, levels) == pytest.approx(best, abs=1e-9 * counts.sum())


def test_as_many_levels_as_places_are_all_places() -> None:
    counts = np.random.default_rng(0).random(255)
    assert codebook_levels(counts, 255, keep_zero=False).tolist() == list(range(-127, 128))


@pytest.mark.parametrize("n_levels", [0, 256])
def test_more_levels_than_places_are_refused(n_levels: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        codebook_levels(np.ones(255), n_levels, keep_zero=False)


def layer() -> tuple[Doubles, Doubles, Doubles]:
    """Rows of two groups with two clusters each, correlated moments, and 8-bit scales."""
    rng = np.random.default_rng(3)
    rows = rng.choice([-1.0, 0.2], (2, 16, 40)) + 0.05 * rng.standard_normal((2, 16, 40))
    x = np.maximum(rng.standard_normal((2, 300, 40)) @ rng.standard_normal((2, 40, 40)), 0.0)
    return rows, x.swapaxes(1, 2) @ x / 300, np.abs(rows).max(axis=2, keepdims=True) / 127


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_distinct_and_of_int8_and_fit_clusters_better_than_even_ones(bits: int) -> None:
    rows, moments, scales = layer()
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    grid = codebook(rows, diagonal, scales, bits=bits, keep_zero=False)
    assert grid.levels.dtype == np.int8
    assert len(set(grid.levels.tolist())) == 2**bits
    even = LevelGrid(scales, np.linspace(-127, 127, 2**bits).astype(np.int8))
    ours, theirs = (
        float((diagonal[:, None] * (one.round(rows) * scales - rows) ** 2).sum()) for one in (grid, even)
    )
    assert ours < 0.5 * theirs


def test_zero_is_a_level_when_it_is_needed() -> None:
    rows, moments, scales = layer()
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    assert 0 not in codebook(rows, diagonal, scales, bits=1, keep_zero=False).levels
    assert 0 in codebook(rows, diagonal, scales, bits=1, keep_zero=True).levels


def test_a_layer_of_zeros_stays_zero() -> None:
    rows = np.zeros((1, 2, 3), np.float32)
    grid = codebook(rows, np.zeros((1, 3)), np.ones((1, 2, 1), np.float32), bits=2, keep_zero=True)
    assert not grid.round(rows).any()


@settings(deadline=None)
@given(
    st.sets(st.integers(-127, 127), min_size=1, max_size=9),
    hnp.arrays(np.float64, 12, elements=st.floats(-200, 200)),
)
def test_values_go_to_the_nearest_level_and_step_to_the_next(levels: set[int], values: Doubles) -> None:
    grid = LevelGrid(np.ones((1, 1, 1)), np.array(sorted(levels), np.int8))
    found = grid.nearest(values)
    for value, level in zip(values.tolist(), found.tolist(), strict=True):
        assert abs(value - level) == min(abs(value - other) for other in levels)
    for value, level, following in zip(values, found, grid.towards(found, values), strict=True):
        above = sorted(other for other in levels if other > level)
        below = sorted((other for other in levels if other < level), reverse=True)
        ahead = above if value > level else below if value < level else []
        assert following == (ahead[0] if ahead else level)


@pytest.mark.parametrize("rule", [None, Unstructured(0.4)])
def test_error_feedback_puts_weights_on_levels_and_beats_the_nearest(rule: Unstructured | None) -> None:
    rows, moments, scales = layer()
    grid = codebook(rows, np.diagonal(moments, axis1=1, axis2=2), scales, bits=2, keep_zero=rule is not None)
    [solution] = gptq(rows, [factor(moments, 0.01)], [Treatment(grid, rule)])
    assert set(np.unique(solution.values).tolist()) <= set(grid.levels.tolist())
    nearest = grid.round(rows * solution.kept)
    assert weight_error(rows, solution.values * scales, [moments]) < weight_error(
        rows, nearest * scales, [moments]
    )
    assert not solution.values[~solution.kept].any()
