from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from autoq.core.errors import TrialError
from autoq.evaluation.divergence import divergences, kl_divergence, relative_error
from autoq.evaluation.metrics import MetricSpec, builtin_metric

GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.normal(size=(6, 5)).astype(np.float32)
OTHERS = SCORES + GENERATOR.normal(scale=0.3, size=SCORES.shape).astype(np.float32)
MINE = MetricSpec("mine", "m.py:mine", "set")


def test_kl_is_the_sum_over_classes_of_each_example() -> None:
    expected = [
        sum(softmax(p)[c] * (log_softmax(p)[c] - log_softmax(q)[c]) for c in range(5))
        for p, q in zip(SCORES.astype(np.float64), OTHERS.astype(np.float64), strict=True)
    ]
    assert kl_divergence(SCORES, OTHERS) == pytest.approx(expected)
    assert (kl_divergence(SCORES, OTHERS) > 0).all()


def test_a_model_does_not_diverge_from_itself_and_a_shift_of_all_scores_is_none() -> None:
    assert kl_divergence(SCORES, SCORES).tolist() == [0.0] * 6
    assert kl_divergence(SCORES, SCORES + 7) == pytest.approx(np.zeros(6), abs=1e-6)
    assert relative_error(SCORES, SCORES).tolist() == [0.0] * 6


def test_axes_between_are_averaged() -> None:
    folded = kl_divergence(SCORES.reshape(2, 3, 5), OTHERS.reshape(2, 3, 5))
    assert folded == pytest.approx(kl_divergence(SCORES, OTHERS).reshape(2, 3).mean(axis=1))


def test_classes_that_the_float_model_rules_out_add_nothing() -> None:
    masked, others = SCORES.copy(), OTHERS.copy()
    masked[:, 0] = others[:, 0] = -np.inf
    assert kl_divergence(masked, others) == pytest.approx(kl_divergence(SCORES[:, 1:], OTHERS[:, 1:]))


def test_scores_that_are_not_finite_are_infinitely_far() -> None:
    broken = OTHERS.copy()
    broken[2, 1] = np.inf
    broken[3, 1] = -np.inf
    assert np.isinf(kl_divergence(SCORES, broken)).tolist() == [False, False, True, True, False, False]
    assert np.isinf(relative_error(SCORES, broken)).tolist() == [False, False, True, True, False, False]
    assert np.isinf(kl_divergence(broken, OTHERS))[2]


def test_the_relative_error_of_a_zero_reference_is_the_square_itself() -> None:
    reference, outputs = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 5.0], [1.0, 2.0]])
    assert relative_error(reference, outputs) == pytest.approx([1 / 25, 5.0])


def test_the_metric_decides_the_distance_and_the_named_output_where_it_is_looked_for() -> None:
    reference, outputs = {"a": SCORES, "b": SCORES}, {"a": OTHERS, "b": SCORES}
    top1 = divergences(reference, outputs, builtin_metric("top1"), output="a")
    assert top1 == pytest.approx(kl_divergence(SCORES, OTHERS))
    assert divergences(reference, outputs, MINE, output="b").tolist() == [0.0] * 6
    assert divergences(reference, outputs, MINE) == pytest.approx(relative_error(SCORES, OTHERS))


def test_an_output_of_another_shape_is_the_candidates_failure() -> None:
    with pytest.raises(TrialError, match=r"output 'a' has shape \(6, 4\), the float model's \(6, 5\)"):
        divergences({"a": SCORES}, {"a": OTHERS[:, :4]}, MINE)
