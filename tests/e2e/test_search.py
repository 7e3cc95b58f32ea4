"""One search from its spec to everything it leaves behind."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from tiny_case import NAME, ledger_of, run_autoq, tiny_network, write_spec

from autoq.core.choices import Candidate, Rounding
from autoq.core.measurements import Measurement
from autoq.exporting import Silent
from autoq.home import Home
from autoq.preparation import prepare
from autoq.search.engine import Plan, Services, run_search
from autoq.search.records import TrialRecord, TrialState
from autoq.spec.loading import load_spec
from autoq.testing.memory_ledger import InMemoryLedger

TOP_KEYS = {
    "search", "state", "strategy", "metric", "trials", "feasible", "best", "nearest", "noise_floor",
    "environment", "baseline", "front",
}  # fmt: skip
BASELINE_KEYS = {
    "accuracy", "test_accuracy", "latency_ms", "latency_ms_ci", "latency_p90_ms", "size_bytes",
}  # fmt: skip
POINT_KEYS = {
    "trial", "digest", "accuracy", "accuracy_drop", "accuracy_drop_ci", "n_examples", "test_accuracy",
    "test_accuracy_drop", "test_accuracy_drop_ci", "holds", "latency_ms", "latency_ms_ci",
    "latency_p90_ms", "speedup", "speedup_ci", "size_bytes", "bundle_bytes", "feasible", "storage_only",
    "choices", "widths", "graph",
}  # fmt: skip
LAYERS = {"stem", "block.conv1", "block.conv2", "fc"}


@pytest.fixture
def trials(finished: Any) -> list[TrialRecord]:
    with ledger_of(finished.home) as ledger:
        return ledger.load_trials(NAME)


def test_the_contracts_object_is_alone_on_stdout(finished: Any) -> None:
    report = finished.report
    assert report.keys() >= TOP_KEYS
    assert report["baseline"].keys() >= BASELINE_KEYS
    assert report["front"]
    assert all(point.keys() >= POINT_KEYS for point in report["front"])
    assert all(point["choices"].keys() == LAYERS for point in report["front"])
    assert (report["search"], report["state"], report["trials"]) == (NAME, "finished", 8)
    assert report["best"] in [point["trial"] for point in report["front"]]
    assert report["nearest"] is None
    assert all(point["holds"] in ("yes", "no", "undecided") for point in report["front"])


def test_the_front_can_be_asked_for_again(finished: Any) -> None:
    ran = run_autoq("front", NAME, "--home", finished.home, "--json")
    assert ran.returncode == 0
    assert json.loads(ran.stdout) == finished.report


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optuna_opens_the_study_in_the_same_database(finished: Any, trials: list[TrialRecord]) -> None:
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{finished.home / 'autoq.db'}")
    frozen = study.get_trials()
    assert [trial.number for trial in frozen] == [trial.number for trial in trials]
    assert [trial.params for trial in frozen] == [dict(trial.params) for trial in trials]
    assert study.metric_names == ["accuracy", "latency", "storage"]
    for mine, theirs in zip(trials, frozen, strict=True):
        assert mine.measurement is not None
        assert theirs.values[1] == pytest.approx(mine.measurement.latency.latency_ms)
        kept = mine.measurement.accuracy.drop <= 0.2
        assert all(value <= 0 for value in theirs.constraints.values()) is kept
    best = {trial.number for trial in study.best_trials}
    assert best
    study._storage.remove_session()


def test_mlflow_has_a_run_for_the_search_and_one_below_it_for_each_trial(
    finished: Any, trials: list[TrialRecord]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.home / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`autoq.search` = '{NAME}'")
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in children]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    by_number = {int(run.data.tags["autoq.trial"]): run for run in children}
    assert sorted(by_number) == [trial.number for trial in trials]
    on_front = {point["trial"] for point in finished.report["front"]}
    for number, run in by_number.items():
        assert run.data.params.keys() >= LAYERS
        assert {"accuracy", "latency_ms", "speedup"} <= run.data.metrics.keys()
        assert run.data.tags["on_front"] == str(number in on_front).lower()
        assert run.data.tags["feasible"] in ("true", "false")
    artifacts = {Path(one.path).name for one in client.list_artifacts(parent.info.run_id)}
    assert {
        "spec.yaml",
        "report.html",
        "pareto.html",
        "pareto.png",
        "recipe.yaml",
        "recipe.safetensors",
    } <= artifacts


def test_the_log_has_the_parts_of_preparation_and_of_each_trial(finished: Any) -> None:
    assert re.search(r"preparation took .*model \S+ s.*statistics \S+ s.*baseline \S+ s", finished.log)
    for number in range(8):
        (line,) = re.findall(rf"trial {number}: .*", finished.log)
        for part in ("suggest", "build", "load", "latency", "accuracy", "store", "track", "total"):
            assert re.search(rf"\b{part} \d", line), line


def test_the_same_command_again_prints_the_front_and_measures_nothing(finished: Any) -> None:
    n_begun = finished.log.count(" begins (")
    ran = run_autoq("search", finished.spec, "--home", finished.home, "--json")
    assert ran.returncode == 0
    assert json.loads(ran.stdout) == finished.report
    assert "finished already" in ran.stderr
    assert finished.log.count(" begins (") == n_begun


def test_another_spec_of_the_same_name_is_refused(finished: Any) -> None:
    other = write_spec(finished.spec.parent, {"constraints.max_accuracy_drop": 0.1}, file="other.yaml")
    ran = run_autoq("search", other, "--home", finished.home)
    assert ran.returncode == 2
    assert "exists with another spec" in ran.stderr.splitlines()[-1]
    assert json.loads(run_autoq("front", NAME, "--home", finished.home, "--json").stdout) == finished.report


def test_a_project_that_moved_with_its_home_goes_on_and_exports(finished: Any, tmp_path: Path) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in ("spec.yaml", "tiny.onnx", "data.npz"):
        shutil.copy(finished.spec.parent / file, moved)
    ran = run_autoq("search", moved / "spec.yaml", "--home", home, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == finished.report
    with ledger_of(home) as ledger:
        record = ledger.load_search(NAME)
    assert record is not None
    assert record.spec["model"]["path"] == str(moved / "tiny.onnx")
    assert record.spec["data"]["search"]["npz"] == str(moved / "data.npz")


def test_other_data_under_the_same_name_are_refused(finished: Any, tmp_path: Path) -> None:
    for file in ("spec.yaml", "tiny.onnx"):
        shutil.copy(finished.spec.parent / file, tmp_path)
    with np.load(finished.spec.parent / "data.npz") as arrays:
        np.savez(tmp_path / "data.npz", **{name: arrays[name][::-1] for name in arrays})
    ran = run_autoq("search", tmp_path / "spec.yaml", "--home", finished.home)
    assert ran.returncode == 2
    assert "was started on another model, other data or another metric" in ran.stderr


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_second_search_calibrates_and_builds_nothing_again(finished: Any) -> None:
    changes = {"name": "second", "search.trials": 1}
    ran = run_autoq(
        "search", write_spec(finished.spec.parent, changes, file="second.yaml"), "--home", finished.home
    )
    assert ran.returncode == 0, ran.stderr
    assert "statistics: reused, 16 examples" in ran.stderr
    assert re.search(r"variants: \d+ reused, 0 built", ran.stderr)
    assert finished.log.count("statistics: one pass over") == 1
    assert ran.stdout.splitlines()[0].startswith("search second: finished, 1 trials, 1 feasible")
    study = optuna.load_study(study_name="second", storage=f"sqlite:///{finished.home / 'autoq.db'}")
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"]
    study._storage.remove_session()


@dataclass
class Replay:
    """Answers with what was measured before."""

    stored: dict[str, Measurement]
    asked: list[str] = field(default_factory=list)

    def run_trial(self, candidate: Candidate) -> Measurement:
        self.asked.append(candidate.digest)
        return self.stored[candidate.digest]

    def turn(self) -> AbstractContextManager[object]:
        return nullcontext()

    measure_baseline = run_final = None  # type: ignore[assignment]


@pytest.mark.parametrize("n_kept", [0, 3, 6, 7])
def test_stored_measurements_replayed_give_the_same_candidates(
    finished: Any, trials: list[TrialRecord], tmp_path: Path, n_kept: int
) -> None:
    spec = load_spec(finished.spec)
    ready = prepare(spec, Home.open(tmp_path), Silent())
    plan = Plan(spec.goals, ready.space, tuple(ready.anchors), "tpe", spec.search.trials, spec.search.seed)
    with ledger_of(finished.home) as stored:
        record = stored.load_search(NAME)
    assert record is not None
    ledger = InMemoryLedger()
    ledger.create_search(record)
    for trial in trials[:n_kept]:
        ledger.add_trial(NAME, trial)
    replay = Replay({trial.digest: trial.measurement for trial in trials if trial.measurement})
    run_search(record, plan, Services(ledger, replay, Silent()))  # type: ignore[arg-type]
    again = ledger.load_trials(NAME)
    assert [(t.digest, t.params, t.state) for t in again] == [(t.digest, t.params, t.state) for t in trials]
    kept = {trial.digest for trial in trials[:n_kept]}
    assert not kept & set(replay.asked)


def test_anchors_come_first_and_no_candidate_is_measured_twice(trials: list[TrialRecord]) -> None:
    origins = [trial.origin for trial in trials]
    n_anchors = sum(origin.startswith("anchor") for origin in origins)
    assert n_anchors >= 5
    assert all(origin.startswith("anchor") for origin in origins[:n_anchors])
    measured = [trial.digest for trial in trials if trial.state is TrialState.COMPLETE]
    assert len(measured) == len(set(measured)) == 8


def test_an_impossible_budget_ends_with_the_nearest_point_and_what_it_breaks(finished: Any) -> None:
    spec = write_spec(finished.spec.parent, {"name": "hopeless", "search.trials": 1}, file="hopeless.yaml")
    ran = run_autoq("search", spec, "--home", finished.home, "--latency-budget", "1%", "--json")
    assert ran.returncode == 3
    report = json.loads(ran.stdout)
    assert (report["feasible"], report["best"]) == (0, None)
    assert report["nearest"]["failed_bounds"] == ["max_latency_ratio"]
    assert report["front"]
    assert not any(point["feasible"] for point in report["front"])
    assert "nothing is feasible; nearest: trial" in ran.stderr
    assert "breaks max_latency_ratio" in ran.stderr
    assert run_autoq("front", "hopeless", "--home", finished.home).returncode == 3


def test_the_tiny_network_has_the_layers_the_tests_speak_of() -> None:
    names = {one.name.removesuffix(".weight") for one in tiny_network().graph.initializer}
    assert names >= LAYERS


def test_finalists_are_rounded_again_beyond_the_trials_and_may_win(finished: Any) -> None:
    changes = {
        "name": "rounded",
        "search.trials": 3,
        "search.strategy": "random",
        "search.finalist_rounding": "adaround",
        "constraints.max_accuracy_drop": 1.0,
        "space": {
            "version": 1,
            "layers": {"*": {"format": "int8", "calibration": "minmax", "weight_bits": [3, 4]}},
        },
    }
    spec = write_spec(finished.spec.parent, changes, file="rounded.yaml")
    ran = run_autoq("search", spec, "--home", finished.home)
    assert ran.returncode == 0, ran.stderr
    with ledger_of(finished.home) as ledger:
        trials = ledger.load_trials("rounded")
        finals = {final.digest for final in ledger.load_finals("rounded")}
    extras = [trial for trial in trials if trial.origin.startswith("adaround of trial ")]
    assert len(trials) == 3 + len(extras)
    assert 1 <= len(extras) <= 3
    for trial in extras:
        assert trial.state is TrialState.COMPLETE
        roundings = {choice.rounding for _, choice in trial.candidate.choices if choice.weight_bits < 8}
        assert roundings == {Rounding.ADAROUND}
    assert finals & {trial.digest for trial in trials}
