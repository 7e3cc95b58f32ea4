from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.errors import DataError
from autoq.variants.second_order import factor

Doubles = npt.NDArray[np.float64]


def moments(groups: int, width: int, n_vectors: int, seed: int = 0) -> Doubles:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, n_vectors, width)) @ rng.standard_normal((groups, width, width))
    x = np.maximum(mixed, 0.0)
    return x.swapaxes(1, 2) @ x / n_vectors


def slow_factor(a: Doubles, damping: float) -> Doubles:
    """GPTQ's recipe to the letter: damp, invert, take the upper Cholesky factor."""
    damped = a + damping * np.diag(a).mean() * np.eye(len(a))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.sampled_from([0.01, 0.3]))
def test_it_is_the_upper_cholesky_factor_of_the_inverse(
    groups: int, width: int, n_vectors: int, damping: float
) -> None:
    a = moments(groups, width, n_vectors) + 1e-3 * np.eye(width)
    found = factor(a, damping)
    for group in range(groups):
        np.testing.assert_allclose(found.upper[group], slow_factor(a[group], damping), rtol=1e-6, atol=1e-9)
    assert (found.dampings == damping).all()


def test_single_precision_is_close_to_double() -> None:
    a = moments(1, 300, 100)
    single, double = factor(a.astype(np.float32), 0.01), factor(a, 0.01)
    assert single.upper.dtype == np.float32
    np.testing.assert_allclose(single.upper, double.upper, atol=1e-3 * np.abs(double.upper).max())


def test_singular_moments_are_damped_until_they_factor() -> None:
    found = factor(np.ones((1, 50, 50), np.float32), 1e-20)
    assert np.isfinite(found.upper).all()
    assert found.dampings[0] > 1e-20


def test_moments_that_are_not_positive_at_all_are_damped_until_they_factor() -> None:
    indefinite = np.array([[[1.0, 5.0], [5.0, 1.0]]])
    found = factor(indefinite, 0.01)
    assert found.dampings[0] > 4.0
    damped = indefinite[0] + found.dampings[0] * np.eye(2)
    np.testing.assert_allclose(found.upper[0].T @ found.upper[0] @ damped, np.eye(2), atol=1e-12)


def test_one_group_that_needs_more_damping_leaves_the_others_alone() -> None:
    a = np.stack([np.eye(2), np.array([[1.0, 5.0], [5.0, 1.0]])])
    assert factor(a, 0.01).dampings[0] == 0.01


def test_dead_inputs_neither_give_nor_take() -> None:
    a = moments(1, 6, 30)
    a[0, 2] = a[0, :, 2] = 0.0
    found = factor(a, 0.01)
    assert found.dead[0].tolist() == [False, False, True, False, False, False]
    assert found.upper[0, 2, 2] == pytest.approx(1.0)
    others = [0, 1, 3, 4, 5]
    assert not found.upper[0, 2, others].any()
    assert not found.upper[0, others, 2].any()
    assert np.isfinite(found.upper).all()


@pytest.mark.parametrize("width", [1, 4])
def test_inputs_that_are_all_dead_give_the_identity(width: int) -> None:
    found = factor(np.zeros((2, width, width), np.float32), 0.01)
    np.testing.assert_array_equal(found.upper, np.broadcast_to(np.eye(width), (2, width, width)))
    assert found.dead.all()


@pytest.mark.parametrize("magnitude", [1e-30, 1e-10, 1e10, 1e30])
def test_the_magnitude_of_inputs_only_scales_the_factor(magnitude: float) -> None:
    a = moments(1, 10, 100).astype(np.float32)
    scaled = factor(a * np.float32(magnitude), 0.01)
    expected = factor(a, 0.01).upper / np.sqrt(magnitude)
    np.testing.assert_allclose(scaled.upper, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_moments_are_refused(broken: float) -> None:
    a = moments(1, 4, 10)
    a[0, 1, 2] = broken
    with pytest.raises(DataError, match="NaN or infinite"):
        factor(a, 0.01)


def test_the_given_moments_are_left_alone() -> None:
    a = moments(1, 5, 20)
    before = a.copy()
    factor(a, 0.01)
    np.testing.assert_array_equal(a, before)
