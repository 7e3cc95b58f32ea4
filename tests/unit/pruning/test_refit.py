from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from autoq.pruning.consumers import Consumer
from autoq.pruning.refit import RIDGES, choose_ridge, fit_residual, refit, refit_nested

Doubles = NDArray[np.float64]


def consumer_of(vectors: Doubles, weight: Doubles, *, centred: bool = True) -> Consumer:
    first, second = vectors[::2], vectors[1::2]
    return Consumer(
        layer="layer",
        row_group=0,
        columns=np.arange(vectors.shape[1]) * 2,
        units=np.arange(vectors.shape[1]),
        weight=weight.astype(np.float32),
        halves=tuple((half.T @ half / len(half)).astype(np.float32) for half in (first, second)),  # type: ignore[arg-type]
        share=len(first) / len(vectors),
        mean=(vectors.mean(axis=0) * centred).astype(np.float32),
    )


def draw(n_columns: int, *, rows: int = 501, outputs: int = 4, seed: int = 0) -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, n_columns)) @ rng.standard_normal((n_columns, n_columns)) / 2
    return mixed + rng.uniform(-2.0, 2.0, n_columns), rng.standard_normal((outputs, n_columns))


KEPT = np.array([True, False, True, True, False, True, True])


@pytest.mark.parametrize("ridge", [1e-3, 0.7])
def test_a_refit_is_least_squares_on_the_inputs_with_a_constant_one(ridge: float) -> None:
    vectors, weight = draw(len(KEPT))
    n = len(vectors)
    found = refit(consumer_of(vectors, weight), KEPT, ridge)
    # Rows that draw every kept weight, but not the bias, to what it was.
    inputs = np.column_stack([vectors[:, KEPT], np.ones(n)])
    pull = np.sqrt(n * ridge) * np.eye(int(KEPT.sum()), int(KEPT.sum()) + 1)
    wanted = np.concatenate([vectors @ weight.T, np.sqrt(n * ridge) * weight[:, KEPT].T])
    expected = np.linalg.lstsq(np.concatenate([inputs, pull]), wanted, rcond=None)[0]
    np.testing.assert_allclose(found.weight, expected[:-1].T, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.bias, expected[-1], rtol=1e-3, atol=2e-3)
    np.testing.assert_array_equal(found.columns, np.flatnonzero(KEPT) * 2)

    change = vectors @ weight.T - vectors[:, KEPT] @ found.weight.T - found.bias
    variance = (vectors @ weight.T).var(axis=0).sum()
    assert found.error == pytest.approx(np.square(change).sum(axis=1).mean() / variance, rel=1e-2, abs=1e-5)
    assert found.variance == pytest.approx(variance, rel=1e-3)


def test_without_a_mean_a_refit_is_least_squares_without_a_constant() -> None:
    vectors, weight = draw(len(KEPT))
    found = refit(consumer_of(vectors, weight, centred=False), KEPT, 1e-6)
    expected = np.linalg.lstsq(vectors[:, KEPT], vectors @ weight.T, rcond=None)[0]
    np.testing.assert_allclose(found.weight, expected.T, rtol=2e-3, atol=2e-3)
    assert not found.bias.any()


def test_a_large_ridge_leaves_the_weights_and_the_mean_of_the_outputs_as_they_were() -> None:
    vectors, weight = draw(len(KEPT))
    found = refit(consumer_of(vectors, weight), KEPT, 1e7)
    np.testing.assert_allclose(found.weight, weight[:, KEPT], rtol=1e-4, atol=1e-4)
    after = vectors[:, KEPT] @ found.weight.T + found.bias
    np.testing.assert_allclose(after.mean(axis=0), (vectors @ weight.T).mean(axis=0), atol=1e-3)


def test_nested_refits_are_those_of_each_width_alone() -> None:
    vectors, weight = draw(9)
    consumer = consumer_of(vectors, weight)
    order = np.random.default_rng(5).permutation(9)
    for width, one in zip((7, 4, 1), refit_nested(consumer, order[:8], (7, 4, 1), 0.05), strict=True):
        kept = np.isin(np.arange(9), order[:width])
        alone = refit(consumer, kept, 0.05)
        np.testing.assert_array_equal(one.columns, alone.columns)
        np.testing.assert_allclose(one.weight, alone.weight, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.bias, alone.bias, rtol=1e-3, atol=1e-3)
        assert one.error == pytest.approx(alone.error, rel=1e-3, abs=1e-5)


def test_nothing_kept_leaves_the_mean_of_the_outputs() -> None:
    vectors, weight = draw(4)
    [nothing] = refit_nested(consumer_of(vectors, weight), np.arange(4), [0], 0.1)
    assert nothing.weight.shape == (4, 0)
    np.testing.assert_allclose(nothing.bias, (vectors @ weight.T).mean(axis=0), rtol=1e-4)
    assert nothing.error == pytest.approx(1.0)


def test_moments_of_fewer_vectors_than_columns_can_be_refitted() -> None:
    vectors, weight = draw(60, rows=20)
    consumer = consumer_of(vectors, weight)
    kept = np.arange(60) % 2 == 0
    found = refit(consumer, kept, choose_ridge(consumer, kept))
    assert np.isfinite(found.weight).all()
    assert 0.0 <= found.error < 1.0


def test_the_ridge_is_the_one_that_errs_least_on_vectors_it_has_not_seen() -> None:
    rng = np.random.default_rng(2)
    vectors, weight = draw(24, rows=40, seed=2)
    vectors += rng.standard_normal(vectors.shape)
    kept = rng.random(24) < 0.6
    consumer = consumer_of(vectors, weight)
    halves = vectors[::2], vectors[1::2]
    unit = np.mean([np.square(half[:, kept]).mean() for half in halves])

    def held_out(ridge: float) -> float:
        total = 0.0
        for seen, unseen in (halves, halves[::-1]):
            pull = np.sqrt(len(seen) * ridge) * np.eye(int(kept.sum()))
            wanted = np.concatenate([seen @ weight.T, np.sqrt(len(seen) * ridge) * weight[:, kept].T])
            fitted = np.linalg.lstsq(np.concatenate([seen[:, kept], pull]), wanted, rcond=None)[0]
            total += np.square(unseen @ weight.T - unseen[:, kept] @ fitted).sum() / len(unseen)
        return float(total)

    errors = [held_out(one * unit) for one in RIDGES]
    assert choose_ridge(consumer, kept) == pytest.approx(RIDGES[int(np.argmin(errors))] * unit, rel=1e-4)
    assert min(errors) < errors[0]  # or the smallest would always do


def test_a_constant_input_is_left_to_the_bias() -> None:
    vectors, weight = draw(3)
    vectors[:, 1] = 4.0
    found = refit(consumer_of(vectors, weight), np.array([True, False, True]), 1e-4)
    np.testing.assert_allclose(found.weight, weight[:, [0, 2]], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.bias, 4.0 * weight[:, 1], rtol=1e-2, atol=1e-2)


def test_outputs_that_are_always_zero_have_no_error() -> None:
    vectors, weight = draw(3)
    silent = dataclasses.replace(consumer_of(vectors, weight), weight=np.zeros((4, 3), np.float32))
    assert refit(silent, np.array([True, False, True]), 0.1).error == 0.0


def test_a_residual_is_fitted_by_least_squares_with_the_ridge_that_errs_least_elsewhere() -> None:
    rng = np.random.default_rng(7)
    vectors, weight = draw(12, rows=60)
    residual = vectors @ weight.T + rng.standard_normal((60, 4)) * 3.0 + 1.5
    halves = (vectors[::2].astype(np.float32), vectors[1::2].astype(np.float32))
    targets = (residual[::2].astype(np.float32), residual[1::2].astype(np.float32))

    def solve(x: Doubles, r: Doubles, ridge: float) -> tuple[Doubles, Doubles]:
        n, columns = x.shape
        pull = np.sqrt(n * ridge * x.var(axis=0).mean()) * np.eye(columns, columns + 1)
        inputs = np.concatenate([np.column_stack([x, np.ones(n)]), pull])
        found = np.linalg.lstsq(inputs, np.concatenate([r, np.zeros((columns, r.shape[1]))]), rcond=None)[0]
        return found[:-1].T, found[-1]

    def held_out(ridge: float) -> float:
        total = 0.0
        for seen, unseen in ((0, 1), (1, 0)):
            change, bias = solve(halves[seen].astype(float), targets[seen].astype(float), ridge)
            total += np.square(targets[unseen] - halves[unseen] @ change.T - bias).mean()
        return float(total)

    best = min(RIDGES, key=held_out)
    wanted = solve(np.concatenate(halves).astype(float), np.concatenate(targets).astype(float), best)
    change, bias = fit_residual(halves, targets)
    np.testing.assert_allclose(change, wanted[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(bias, wanted[1], rtol=1e-3, atol=1e-2)
