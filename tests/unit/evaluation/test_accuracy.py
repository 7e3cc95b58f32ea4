import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_bench import WEIGHT, linear_model, split_of

from autoq.core.data import Array, Batch, Split
from autoq.core.errors import DataError, ModelError, TrialError, UserError
from autoq.evaluation.accuracy import KeptOutputs, SplitScorer
from autoq.evaluation.batches import Feeding
from autoq.evaluation.metrics import MetricSpec, builtin_metric
from autoq.evaluation.output_files import OutputFiles
from autoq.evaluation.ports import Session
from autoq.evaluation.scores import Score, compare
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
    cases: list[tuple[Feeding, int | str]]
    cases = [(Feeding(7), "n"), (Feeding(7, n_workers=3), "n"), (Feeding(16, True, 2), 16)]
    for feeding, batch in cases:
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


class Never(Echo):
    """A session that must not be needed."""

    def run(self, feed: object) -> dict[str, Array]:
        raise AssertionError("the float model was run")


def kept_in(folder: Path, *, max_bytes: int = 1 << 20) -> KeptOutputs:
    return KeptOutputs(OutputFiles(folder, max_bytes=max_bytes), "origin")


def kept_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


def assert_same_score(left: Score, right: Score) -> None:
    assert left.value == right.value
    assert left.n_examples == right.n_examples
    assert (left.values is None) == (right.values is None)
    if left.values is not None and right.values is not None:
        assert left.values.tobytes() == right.values.tobytes()


@pytest.mark.parametrize("feeding", [Feeding(7), Feeding(16, n_workers=3)])
@pytest.mark.parametrize("name", ["top1", "top5", "fidelity", "mine", "set"])
def test_scores_are_the_same_bit_by_bit_with_and_without_kept_outputs(
    name: str, feeding: Feeding, tmp_path: Path
) -> None:
    """A function of the user's may even write to what it is given."""
    body = "outputs['scores'][:] *= (labels + 1)[:, None]; return outputs['scores'].sum(axis=1)"
    reference = metric_file(tmp_path, body)
    specs = {"mine": MetricSpec("mine", reference), "set": MetricSpec("set", reference, "set")}
    spec = specs.get(name) or builtin_metric(name)
    found = []
    for kept, session in [
        (None, opened(WEIGHT)),
        (kept_in(tmp_path), opened(WEIGHT)),
        (kept_in(tmp_path), Never()),
    ]:
        scorer = SplitScorer(split_of(1200), spec, feeding, kept=kept)
        score = scorer.score_baseline(session)
        found.append((score, scorer.accuracy(opened(COARSE))))
    for score, accuracy in found[1:]:
        assert_same_score(score, found[0][0])
        assert accuracy == found[0][1]


def test_ragged_outputs_are_kept_as_they_are(tmp_path: Path) -> None:
    scores = [
        SplitScorer(RAGGED, builtin_metric("fidelity"), Feeding(3), kept=kept).score_baseline(session)
        for kept, session in [(None, Echo()), (kept_in(tmp_path), Echo()), (kept_in(tmp_path), Never())]
    ]
    assert_same_score(scores[0], scores[1])
    assert_same_score(scores[0], scores[2])


def test_what_could_change_the_outputs_has_a_file_of_its_own(tmp_path: Path) -> None:
    split, kept = split_of(60), kept_in(tmp_path)
    for n_files, (data, feeding, output, origin) in enumerate(
        [
            (split, Feeding(16), None, "origin"),
            (split.take(59), Feeding(16), None, "origin"),
            (split, Feeding(8), None, "origin"),
            (split, Feeding(16, is_static=True), None, "origin"),
            (split, Feeding(16), "scores", "origin"),
            (split, Feeding(16), None, "another model"),
        ],
        start=1,
    ):
        scorer = SplitScorer(
            data, builtin_metric("top1"), feeding, output=output, kept=replace(kept, origin=origin)
        )
        scorer.score_baseline(opened(WEIGHT))
        assert len(kept_files(tmp_path)) == n_files


def test_another_metric_and_more_workers_share_the_file(tmp_path: Path) -> None:
    split = split_of(60)
    SplitScorer(split, builtin_metric("top1"), Feeding(16), kept=kept_in(tmp_path)).score_baseline(
        opened(WEIGHT)
    )
    scorer = SplitScorer(split, builtin_metric("fidelity"), Feeding(16, n_workers=2), kept=kept_in(tmp_path))
    assert scorer.score_baseline(Never()).value == pytest.approx(1.0)


def test_outputs_that_are_too_large_are_scored_and_not_kept(tmp_path: Path) -> None:
    split = split_of(1200)  # three chunks, of which the first fits
    plain = SplitScorer(split, builtin_metric("top1"), Feeding(16)).score_baseline(opened(WEIGHT))
    kept = kept_in(tmp_path, max_bytes=512 * 4 * 4)
    scorer = SplitScorer(split, builtin_metric("top1"), Feeding(16), kept=kept)
    assert_same_score(scorer.score_baseline(opened(WEIGHT)), plain)
    assert kept_files(tmp_path) == []


def test_outputs_of_a_float_model_with_nan_are_not_kept(tmp_path: Path) -> None:
    scorer = SplitScorer(split_of(20), builtin_metric("top1"), Feeding(16), kept=kept_in(tmp_path))
    with pytest.raises(ModelError):
        scorer.score_baseline(opened(np.full_like(WEIGHT, np.nan)))
    assert kept_files(tmp_path) == []


OUTPUTS: list[Mapping[str, Array]] = [
    {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "file": np.array([1, -1], np.int64)},
    {"a/b": np.asfortranarray(np.ones((1, 3), np.float16)), "file": np.array([True])},
    {"a/b": np.asfortranarray(np.arange(12.0).reshape(4, 3)), "file": np.zeros((4, 0), np.uint8)},
]


def test_outputs_are_read_as_they_were_written(tmp_path: Path) -> None:
    OutputFiles(tmp_path).save("abcd", OUTPUTS)
    found = OutputFiles(tmp_path).load("abcd")
    assert found is not None
    assert len(found) == len(OUTPUTS)
    for read, written in zip(found, OUTPUTS, strict=True):
        assert list(read) == list(written)
        for name, array in written.items():
            assert read[name].dtype == array.dtype
            assert read[name].flags.c_contiguous == array.flags.c_contiguous
            assert read[name].tobytes() == array.tobytes()


def test_what_is_not_kept_is_a_miss(tmp_path: Path) -> None:
    assert OutputFiles(tmp_path).load("abcd") is None


def test_a_file_that_is_damaged_anywhere_is_a_miss_or_the_same(tmp_path: Path) -> None:
    files = OutputFiles(tmp_path)
    files.save("abcd", OUTPUTS)
    (path,) = kept_files(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), 97)]
    for position in range(0, len(whole), 7):
        content = bytearray(whole)
        content[position] ^= int(rng.integers(1, 256))
        damaged.append(bytes(content))
    expected = [array.tobytes() for chunk in OUTPUTS for array in chunk.values()]
    for content_ in damaged:
        path.write_bytes(content_)
        found = files.load("abcd")
        assert found is None or [array.tobytes() for chunk in found for array in chunk.values()] == expected


def test_a_damaged_file_is_replaced_when_the_model_has_been_run_again(tmp_path: Path) -> None:
    def score(session: Session) -> Score:
        scorer = SplitScorer(split_of(60), builtin_metric("top1"), Feeding(16), kept=kept_in(tmp_path))
        return scorer.score_baseline(session)

    first = score(opened(WEIGHT))
    (path,) = kept_files(tmp_path)
    path.write_bytes(b"PK")
    assert_same_score(score(opened(WEIGHT)), first)
    assert_same_score(score(Never()), first)


@pytest.mark.parametrize("array", [np.array(["a", "b"], object), np.array(["a", "b"]), np.zeros(2, "V2")])
def test_outputs_that_are_no_numbers_are_not_kept(array: npt.NDArray[np.generic], tmp_path: Path) -> None:
    OutputFiles(tmp_path).save("abcd", [{"y": array}])
    assert kept_files(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").touch()
    kept = kept_in(tmp_path / "taken")
    with caplog.at_level(logging.WARNING, "autoq"):
        scorer = SplitScorer(split_of(60), builtin_metric("top1"), Feeding(16), kept=kept)
        assert scorer.score_baseline(opened(WEIGHT)).value == pytest.approx(0.9)
    assert "outputs of the float model are not kept" in caplog.text
