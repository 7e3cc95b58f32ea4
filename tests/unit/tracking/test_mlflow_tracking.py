from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from autoq.core.errors import InfrastructureError
from autoq.search.goals import Goals
from autoq.search.outcome import build_outcome
from autoq.search.records import (
    FinalMeasurement,
    SearchRecord,
    SearchState,
    TestAccuracy,
    TrialRecord,
    TrialState,
)
from autoq.tracking.mlflow_tracking import MlflowTracker, locate_tracking
from autoq.tracking.sqlite_store import sqlite_uri

MakeTrial = Callable[..., TrialRecord]

EXPERIMENT = "autoq/digits-cnn"


@pytest.fixture
def tracker(store: Path, tmp_path: Path) -> MlflowTracker:
    return MlflowTracker(sqlite_uri(store), tmp_path / "artifacts")


@pytest.fixture
def client(store: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=sqlite_uri(store))


def all_runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def parents(client: MlflowClient) -> list[Run]:
    return [run for run in all_runs(client) if "mlflow.parentRunId" not in run.data.tags]


def children(client: MlflowClient) -> dict[int, Run]:
    """Runs of trials by number; fails when a number is there twice."""
    runs = [run for run in all_runs(client) if "mlflow.parentRunId" in run.data.tags]
    found = {int(run.data.tags["autoq.trial"]): run for run in runs}
    assert len(found) == len(runs)
    return found


def test_a_trial_becomes_a_finished_run_below_its_search(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, make_trial: MakeTrial
) -> None:
    tracker.start_search(record)
    tracker.log_trial(record, make_trial(7), feasible=True)
    (parent,), child = parents(client), children(client)[7]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.run_name, parent.info.status) == ("digits", "RUNNING")
    assert (child.info.run_name, child.info.status) == ("t007 −0.3 pt 4.0x int8+fp32", "FINISHED")
    assert child.info.start_time == 1_700_000_107_000
    assert child.info.end_time == child.info.start_time + 210
    assert child.data.params["layer0.conv"] == "int8/channel/minmax"
    assert child.data.params["fc"] == "fp32 1% zero"
    assert child.data.params["graph/add1"] == "int8"
    assert child.data.metrics["latency_ms_hi"] == pytest.approx(2.575)
    assert child.data.metrics["speedup"] == pytest.approx(4.0)
    assert child.data.tags["feasible"] == "true"
    assert child.data.tags["origin"] == "tpe"
    assert child.data.tags["autoq.digest"] == make_trial(7).digest


def test_a_failed_trial_is_a_failed_run_with_its_reason(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, make_trial: MakeTrial
) -> None:
    failed = replace(make_trial(0), state=TrialState.FAILED, measurement=None, reason="out of memory")
    tracker.log_trial(record, failed, feasible=False)
    run = children(client)[0]
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "out of memory"
    assert "accuracy" not in run.data.metrics


def test_every_layer_of_a_model_beyond_mlflows_batch_limit_is_a_parameter(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, make_trial: MakeTrial
) -> None:
    tracker.log_trial(record, make_trial(0, n_layers=250), feasible=True)
    assert len(children(client)[0].data.params) == 250 + 2  # fc and the graph-wide op


def test_logging_twice_leaves_one_run_also_from_another_process(
    tracker: MlflowTracker, store: Path, client: MlflowClient, record: SearchRecord, make_trial: MakeTrial
) -> None:
    for writer in (tracker, tracker, MlflowTracker(sqlite_uri(store))):
        writer.start_search(record)
        writer.log_trial(record, make_trial(0), feasible=True)
    assert len(parents(client)) == 1
    assert list(children(client)) == [0]


def test_a_run_that_was_broken_off_is_replaced_by_a_whole_one(
    tracker: MlflowTracker, store: Path, client: MlflowClient, record: SearchRecord, make_trial: MakeTrial
) -> None:
    tracker.log_trial(record, make_trial(0), feasible=True)
    whole = children(client)[0]
    client.update_run(whole.info.run_id, status="RUNNING")  # as kill -9 leaves it
    MlflowTracker(sqlite_uri(store)).log_trial(record, make_trial(0), feasible=True)
    replaced = children(client)[0]
    assert replaced.info.run_id != whole.info.run_id
    assert replaced.info.status == "FINISHED"


def test_a_search_made_anew_under_an_old_name_gets_a_parent_of_its_own(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, make_trial: MakeTrial
) -> None:
    for again in (record, record.but(created_at=record.created_at + 60)):
        tracker.log_trial(again, make_trial(0), feasible=True)
    assert len(parents(client)) == 2


def test_the_end_marks_the_front_and_keeps_both_timings(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    trials = [make_trial(0, drop=0.001, latency_ms=4.9), make_trial(1, drop=0.005), make_trial(2, drop=0.006)]
    for trial in trials:
        tracker.log_trial(record, trial, feasible=True)
    measured = trials[0].measurement
    assert measured is not None
    slower = replace(measured.latency, latency_ms=5.2)  # over the budget, by the longer timing
    final = FinalMeasurement(trials[0].digest, slower, TestAccuracy(measured.accuracy, "yes"))
    ended = record.but(state=SearchState.FINISHED)
    tracker.finish_search(ended, build_outcome(ended, goals, trials, [final]), {})
    found = children(client)
    tags = {number: run.data.tags for number, run in found.items()}
    assert {n: tags[n]["on_front"] for n in tags} == {0: "true", 1: "true", 2: "false"}
    assert {n: tags[n]["feasible"] for n in tags} == {0: "false", 1: "true", 2: "true"}
    assert tags[0]["holds"] == "yes"
    assert found[0].data.metrics["test_accuracy_drop"] == 0.001
    history = client.get_metric_history(found[0].info.run_id, "latency_ms")
    assert [(metric.step, metric.value) for metric in history] == [(0, 4.9), (1, 5.2)]
    assert len(client.get_metric_history(found[1].info.run_id, "latency_ms")) == 1


def test_the_parent_ends_with_the_best_point_the_spec_and_the_files(
    tracker: MlflowTracker,
    client: MlflowClient,
    record: SearchRecord,
    goals: Goals,
    make_trial: MakeTrial,
    tmp_path: Path,
) -> None:
    trials = [make_trial(0, drop=0.01, latency_ms=2.0), make_trial(1, drop=0.001, latency_ms=4.0)]
    plot = tmp_path / "digits-front.png"
    plot.write_bytes(b"picture")
    tracker.start_search(record)
    ended = record.but(state=SearchState.INTERRUPTED, message="stopped by Ctrl-C")
    files = {"pareto.png": plot, "recipe/recipe.yaml": plot}
    tracker.finish_search(ended, build_outcome(ended, goals, trials), files)
    (parent,) = parents(client)
    assert parent.info.status == "KILLED"
    assert parent.data.tags["message"] == "stopped by Ctrl-C"
    assert parent.data.metrics["best_trial"] == 1
    assert parent.data.metrics["best_speedup"] == 2.5
    assert parent.data.metrics["baseline_latency_ms"] == 10.0
    assert parent.data.metrics["preparation_s/statistics"] == 2.5
    stored = tmp_path / "artifacts" / parent.info.run_id / "artifacts"
    assert {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()} == {
        "spec.yaml",
        "pareto.png",
        "recipe/recipe.yaml",
    }


def test_a_resumed_search_runs_again_and_its_front_moves(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    trials = [make_trial(0, drop=0.01), make_trial(1, drop=0.001)]
    for count in (1, 2):
        tracker.start_search(record)
        assert parents(client)[0].info.status == "RUNNING"
        tracker.log_trial(record, trials[count - 1], feasible=True)
        ended = record.but(state=SearchState.FINISHED)
        tracker.finish_search(ended, build_outcome(ended, goals, trials[:count]), {})
    assert parents(client)[0].info.status == "FINISHED"
    assert parents(client)[0].data.metrics["best_trial"] == 1
    assert {n: run.data.tags["on_front"] for n, run in children(client).items()} == {
        0: "false",
        1: "true",
    }


def test_sync_adds_what_is_missing_once(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    failed = replace(make_trial(2), state=TrialState.FAILED, measurement=None, reason="crashed")
    trials = [make_trial(0), make_trial(1, drop=0.05), failed]
    tracker.log_trial(record, trials[0], feasible=True)
    outcome = build_outcome(record, goals, trials)
    assert tracker.sync(record, trials, outcome, {}) == 2
    assert tracker.sync(record, trials, outcome, {}) == 0
    tags = {number: run.data.tags["feasible"] for number, run in children(client).items()}
    assert tags == {0: "true", 1: "false", 2: "false"}


def test_a_run_deleted_in_the_browser_comes_back_with_a_sync(
    tracker: MlflowTracker, client: MlflowClient, record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    trials = [make_trial(0), make_trial(1)]
    outcome = build_outcome(record, goals, trials)
    tracker.sync(record, trials, outcome, {})
    client.delete_run(children(client)[1].info.run_id)
    assert tracker.sync(record, trials, outcome, {}) == 1
    assert sorted(children(client)) == [0, 1]


def test_the_experiment_opens_on_its_runs_and_comes_back_when_deleted(
    tracker: MlflowTracker, store: Path, client: MlflowClient, record: SearchRecord
) -> None:
    tracker.start_search(record)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    client.delete_experiment(experiment.experiment_id)
    MlflowTracker(sqlite_uri(store)).start_search(record)
    again = client.get_experiment_by_name(EXPERIMENT)
    assert again is not None
    assert again.lifecycle_stage == "active"


def test_no_global_state_of_mlflow_changes(
    tracker: MlflowTracker, record: SearchRecord, make_trial: MakeTrial
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    tracker.log_trial(record, make_trial(0), feasible=True)
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_a_store_that_cannot_be_opened_is_an_infrastructure_error(
    tmp_path: Path, record: SearchRecord
) -> None:
    broken = tmp_path / "mlflow.db"
    broken.write_bytes(b"not a database" * 100)
    with pytest.raises(InfrastructureError, match=r"tracking server sqlite.* failed: .*not a database"):
        MlflowTracker(sqlite_uri(broken), tmp_path).start_search(record)


def test_a_given_server_keeps_its_artifacts_and_a_database_gets_them_in_the_home(tmp_path: Path) -> None:
    assert locate_tracking(tmp_path, None) == (
        sqlite_uri(tmp_path / "mlflow.db"),
        tmp_path / "mlflow-artifacts",
    )
    assert locate_tracking(tmp_path, "https://mlflow.example") == ("https://mlflow.example", None)
    assert locate_tracking(tmp_path, "postgresql://db/m") == (
        "postgresql://db/m",
        tmp_path / "mlflow-artifacts",
    )


def test_a_fresh_home_is_prepared_without_a_word_or_telemetry(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from autoq.tracking.mlflow_tracking import MlflowTracker, locate_tracking
MlflowTracker(*locate_tracking(Path({str(tmp_path)!r}), None)).prepare()
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("None", "")
    assert (tmp_path / "mlflow.db").exists()


def test_a_home_that_moved_keeps_its_artifacts_and_gets_the_new_ones(
    tracker: MlflowTracker, store: Path, record: SearchRecord, tmp_path: Path, goals: Goals
) -> None:
    picture = tmp_path / "front.png"
    picture.write_bytes(b"picture")
    outcome = build_outcome(record, goals, [])
    tracker.finish_search(record, outcome, {"front.png": picture})
    moved = tmp_path / "new" / "home"
    moved.mkdir(parents=True)
    for file in store.parent.glob("mlflow.db*"):  # copied: this process has the store open
        if not file.name.endswith("-shm"):
            shutil.copy(file, moved)
    (tmp_path / "artifacts").rename(moved / "artifacts")
    again = MlflowTracker(sqlite_uri(moved / "mlflow.db"), moved / "artifacts")
    again.start_search(record)
    client = MlflowClient(tracking_uri=sqlite_uri(moved / "mlflow.db"))
    (run,) = all_runs(client)
    # Where MLflow will write, but that this process remembers where it wrote last.
    assert run.info.artifact_uri == f"{(moved / 'artifacts').as_uri()}/{run.info.run_id}/artifacts"
    assert "front.png" in {one.path for one in client.list_artifacts(run.info.run_id)}
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert experiment.artifact_location == (moved / "artifacts").as_uri()
