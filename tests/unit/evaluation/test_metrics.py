import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.data import Array
from autoq.core.errors import DataError, ModelError, TrialError, UserError
from autoq.evaluation.metrics import MetricSpec, builtin_metric, evaluate_metric, fidelity, top1, top5

SCORES = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9]], np.float32)


def rows(scores: Array) -> dict[str, Array]:
    return {"scores": scores}


def test_top1_is_one_where_the_largest_score_is_at_the_label() -> None:
    assert top1(rows(SCORES), {}, np.array([1, 2, 2])).tolist() == [1.0, 0.0, 1.0]


def test_labels_in_a_column_and_labels_per_position_are_understood() -> None:
    assert top1(rows(SCORES), {}, np.array([[1], [2], [2]])).tolist() == [1.0, 0.0, 1.0]
    positions = np.stack([SCORES, SCORES])  # (2, 3 positions, 3 classes)
    assert top1(rows(positions), {}, np.array([[1, 0, 2], [1, 1, 1]])).tolist() == pytest.approx([1.0, 1 / 3])


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.booleans())
def test_top_k_agrees_with_sorting(seed: int, n_classes: int, with_ties: bool) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(20, n_classes)).astype(np.float32)
    if with_ties:
        scores = np.round(scores)
    labels = generator.integers(0, n_classes, 20)
    order = np.argsort(-scores, axis=1, kind="stable")
    for function, k in ((top1, 1), (top5, 5)):
        expected = (order[:, :k] == labels[:, None]).any(axis=1)
        assert function(rows(scores), {}, labels).tolist() == expected.astype(float).tolist()


def test_a_model_whose_scores_are_all_alike_is_not_right_every_time() -> None:
    labels = np.arange(10)
    assert top1(rows(np.zeros((10, 10))), {}, labels).mean() == 0.1
    assert top5(rows(np.zeros((10, 10))), {}, labels).mean() == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "problem"),
    [
        (SCORES, None, "needs labels"),
        (SCORES, np.array([0, 1, 3]), "labels run from 0 to 3, expected 0 to 2"),
        (SCORES, np.array([0, -1, 2]), "labels run from -1"),
        (SCORES, np.array([0.0, 1.0, 2.0]), "labels hold float64, expected integer classes"),
        (SCORES, np.eye(3, dtype=np.int64), r"labels have shape \(3, 3\), expected \(3,\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(scores: Array, labels: Array | None, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        top1(rows(scores), {}, labels)


def test_fidelity_is_the_cosine_to_the_float_output() -> None:
    a = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    b = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)
    expected = [
        float(np.vdot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y))) for x, y in zip(a, b, strict=True)
    ]
    assert fidelity(rows(a), rows(b), None).tolist() == pytest.approx(expected, rel=1e-5)
    assert fidelity(rows(a), rows(3 * a), None) == pytest.approx(np.ones(5))


def test_fidelity_of_zero_outputs_is_one_if_both_are_and_else_zero() -> None:
    found = np.array([[0.0, 0.0], [0.0, 0.0]])
    wanted = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert fidelity(rows(found), rows(wanted), None).tolist() == [1.0, 0.0]


def test_of_several_outputs_the_named_one_is_scored_and_one_must_be_named() -> None:
    outputs = {"scores": SCORES, "features": np.zeros((3, 7))}
    labels = np.array([1, 0, 2])
    assert builtin_metric("top1").load("scores")(outputs, {}, labels).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ModelError, match=r"several outputs \(features, scores\)"):
        builtin_metric("top1").load()(outputs, {}, labels)


def test_a_metric_of_the_users_is_found_by_reference_after_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def distance(outputs, reference, labels):\n    return outputs['y'].sum(axis=1)\n")
    spec = MetricSpec("distance", f"{path}:distance", maximize=False)
    function = pickle.loads(pickle.dumps(spec)).load()
    assert function({"y": np.ones((2, 3))}, {}, None).tolist() == [3.0, 3.0]
    with pytest.raises(UserError, match="has no 'speed'"):
        MetricSpec("speed", f"{path}:speed").load()


def _raises(outputs: object, reference: object, labels: object) -> object:
    raise KeyError("logits")


MINE = MetricSpec("mine", "m.py:mine", bounds=(0.0, 1.0))


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (np.array([0.5, np.nan, 0.5]), r"nan for example 11, expected a value in \[0, 1\]"),
        (np.array([0.5, 0.5, 1.5]), r"1.5 for example 12, expected a value in \[0, 1\]"),
        (np.zeros((3, 2)), r"returned shape \(3, 2\), expected \(3,\)"),
        (0.5, r"returned shape \(\), expected \(3,\)"),
        ("good", "returned 'good', expected numbers"),
        (None, "nan for"),
    ],
)
def test_what_a_metric_may_not_return_is_said_with_the_example(returned: object, problem: str) -> None:
    spec = MINE if returned is not None else MetricSpec("mine", "m.py:mine", scope="set")
    with pytest.raises(UserError, match=f"metric mine, examples 10 to 12: .*{problem}"):
        evaluate_metric(
            spec, lambda *_: returned, rows(SCORES), {}, None, positions=np.arange(10, 10 + len(SCORES))
        )


def test_a_metric_that_raises_is_named_with_its_error() -> None:
    with pytest.raises(
        UserError, match="metric mine, examples 0 to 2: the function raised KeyError: 'logits'"
    ):
        evaluate_metric(MINE, _raises, rows(SCORES), {}, None)


def test_a_metric_that_chokes_on_infinities_is_not_to_blame() -> None:
    with pytest.raises(TrialError, match="output 'scores' has infinite values"):
        evaluate_metric(MINE, _raises, rows(np.array([[np.inf, 0.0]])), {}, None)


def test_one_number_is_allowed_for_a_set_alone_and_rounding_may_pass_a_bound() -> None:
    of_set = MetricSpec("mine", "m.py:mine", scope="set", bounds=(0.0, 1.0))
    assert evaluate_metric(of_set, lambda *_: np.float32(0.25), rows(SCORES), {}, None) == 0.25
    barely = np.array([1.0 + 1e-7, 0.0, 0.0])
    assert np.array_equal(evaluate_metric(MINE, lambda *_: barely, rows(SCORES), {}, None), barely)
