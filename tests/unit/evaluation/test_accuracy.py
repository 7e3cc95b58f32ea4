from pathlib import Path

import numpy as np
import pytest
from tiny_bench import WEIGHT, linear_model, split_of

from autoq.core.data import Array, Batch, Split
from autoq.core.errors import DataError, ModelError, TrialError, UserError
from autoq.evaluation.accuracy import Score, SplitScorer, compare
from autoq.evaluation.batches import Feeding
from autoq.evaluation.metrics import MetricSpec, builtin_metric
from autoq.evaluation.ports import Session
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget

TARGET = OnnxRuntimeTarget(threads=1, batch_size=16)
COARSE: Array = np.round(WEIGHT)


def opened(weight: Array, *, batch: int | str = "n") -> Session:
    return TARGET.open(linear_model(weight, batch=batch))


def metric_file(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(
        f"import numpy as np\ndef mine(outputs, reference, labels):\n    {body}\n"
    )
    return f"{folder / 'mine.py'}:mine"


def test_the_score_is_that_of_numpy_and_the_drop_is_what_is_lost() -> None:
    split = split_of(200)
    scorer = SplitScorer(split, builtin_metric("top1"), Feeding(16, n_workers=2))
    baseline = scorer.score_baseline(opened(WEIGHT))
    accuracy = scorer.accuracy(opened(COARSE))
    inputs, labels = split.batches[0].inputs["x"], split.labels
    expected = float(((inputs @ COARSE).argmax(axis=1) == labels).mean())
    assert baseline.value == 0.9
    assert accuracy.value == expected < 0.9
    assert accuracy.drop == pytest.approx(0.9 - expected)
    assert accuracy.drop_ci is not None
    assert accuracy.drop_ci[0] < accuracy.drop < accuracy.drop_ci[1]
    assert accuracy.n_examples == 200


@pytest.mark.parametrize("name", ["top1", "top5", "fidelity"])
def test_workers_and_batches_and_static_models_do_not_change_the_values(name: str) -> None:
    found = []
    for feeding, batch in [(Feeding(7), "n"), (Feeding(7, n_workers=3), "n"), (Feeding(16, True, 2), 16)]:
        scorer = SplitScorer(split_of(100), builtin_metric(name), feeding)
        scorer.score_baseline(opened(WEIGHT, batch=batch))
        found.append(scorer.accuracy(opened(COARSE, batch=batch)))
    assert found[0] == found[1]
    assert found[0].value == pytest.approx(found[2].value, abs=1e-6)


def test_the_float_model_beside_itself_drops_nothing_but_not_for_certain() -> None:
    scorer = SplitScorer(split_of(100), builtin_metric("top1"), Feeding(16))
    scorer.score_baseline(opened(WEIGHT))
    accuracy = scorer.accuracy(opened(WEIGHT))
    assert accuracy.drop == 0.0
    assert accuracy.drop_ci is not None
    assert 0.02 < accuracy.drop_ci[1] < 0.04


def test_where_less_is_better_a_rise_is_a_drop(tmp_path: Path) -> None:
    reference = metric_file(tmp_path, "return np.abs(outputs['scores'] - reference['scores']).mean(axis=1)")
    scorer = SplitScorer(split_of(60), MetricSpec("mine", reference, maximize=False), Feeding(16))
    assert scorer.score_baseline(opened(WEIGHT)).value == 0.0
    accuracy = scorer.accuracy(opened(COARSE))
    assert accuracy.drop == accuracy.value > 0.0
    assert accuracy.drop_ci is not None
    assert accuracy.drop_ci[0] > 0.0


def test_a_metric_of_one_number_has_no_interval_and_sees_the_whole_set(tmp_path: Path) -> None:
    body = "return float((outputs['scores'].argmax(1) == labels).mean() * (len(labels) == 60))"
    scorer = SplitScorer(split_of(60), MetricSpec("mine", metric_file(tmp_path, body), "set"), Feeding(16))
    assert scorer.score_baseline(opened(WEIGHT)).value == pytest.approx(0.9)
    accuracy = scorer.accuracy(opened(COARSE))
    assert accuracy.drop_ci is None
    assert accuracy.drop > 0
    assert accuracy.n_examples == 60


def test_a_metric_of_a_set_that_returns_values_gets_an_interval(tmp_path: Path) -> None:
    body = "return (outputs['scores'].argmax(1) == labels) * 1.0"
    spec = MetricSpec("mine", metric_file(tmp_path, body), "set", bounds=(0.0, 1.0))
    mine, builtin = (SplitScorer(split_of(60), s, Feeding(16)) for s in (spec, builtin_metric("top1")))
    for scorer in (mine, builtin):
        scorer.score_baseline(opened(WEIGHT))
    assert mine.accuracy(opened(COARSE)) == builtin.accuracy(opened(COARSE))


class Echo:
    """Returns its input: outputs as ragged as the data."""

    def run(self, feed: object) -> dict[str, Array]:
        return {"y": feed["x"]}  # type: ignore[index]

    def time_block(self, n_runs: int, feeds: object) -> float:
        raise AssertionError

    def close(self) -> None:
        pass


RAGGED = Split(tuple(Batch({"x": np.ones((4, width), np.float32)}) for width in (2, 5)))


def test_ragged_outputs_are_scored_per_example() -> None:
    scorer = SplitScorer(RAGGED, builtin_metric("fidelity"), Feeding(3))
    baseline = scorer.score_baseline(Echo())
    assert baseline.values is not None
    assert baseline.values.tolist() == pytest.approx([1.0] * 8)
    assert scorer.accuracy(Echo()).n_examples == 8


def test_ragged_outputs_do_not_make_a_set(tmp_path: Path) -> None:
    spec = MetricSpec("mine", metric_file(tmp_path, "return 0.5"), "set")
    with pytest.raises(UserError, match=r"output 'y' has shapes \('n', 2\) and \('n', 5\)"):
        SplitScorer(RAGGED, spec, Feeding(3)).score_baseline(Echo())


def test_nan_is_the_candidates_failure_and_the_float_models_fault() -> None:
    broken = np.full_like(WEIGHT, np.nan)
    scorer = SplitScorer(split_of(20), builtin_metric("top1"), Feeding(16))
    with pytest.raises(ModelError, match="the float model's output 'scores' has NaN"):
        scorer.score_baseline(opened(broken))
    scorer.score_baseline(opened(WEIGHT))
    with pytest.raises(TrialError, match="output 'scores' has NaN"):
        scorer.accuracy(opened(broken))


def test_a_metric_that_fails_names_the_example_of_the_split(tmp_path: Path) -> None:
    body = "return np.where(labels == labels, np.where(outputs['x'][:, 0] > 1e9, np.nan, 1.0), 0.0)"
    inputs = np.zeros((30, 3), np.float32)
    inputs[17] = 1e10
    split = Split((Batch({"x": inputs}, np.zeros(30, np.int64)),))

    class Named(Echo):
        def run(self, feed: object) -> dict[str, Array]:
            return {"x": feed["x"]}  # type: ignore[index]

    scorer = SplitScorer(split, MetricSpec("mine", metric_file(tmp_path, body)), Feeding(4))
    with pytest.raises(UserError, match=r"metric mine, .*: nan for example 17"):
        scorer.score_baseline(Named())


def test_labels_are_asked_for_before_anything_runs() -> None:
    with pytest.raises(DataError, match="metric top1 needs labels"):
        SplitScorer(RAGGED, builtin_metric("top1"), Feeding(1))


def test_comparing_uses_the_pairing_of_examples() -> None:
    values = np.array([1.0, 0.0] * 50)
    worse = values.copy()
    worse[:4] = 0.0
    metric = builtin_metric("top1")
    accuracy = compare(Score(0.5, values, 100), Score(worse.mean(), worse, 100), metric)
    assert accuracy.drop == pytest.approx(0.02)
    assert accuracy.drop_ci is not None
    assert accuracy.drop_ci[1] < 0.07  # unpaired it would be 0.16
