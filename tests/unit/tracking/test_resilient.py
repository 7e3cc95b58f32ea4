from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from autoq.search.goals import Goals
from autoq.search.outcome import build_outcome
from autoq.search.records import SearchRecord, SearchState, TrialRecord
from autoq.tracking.mlflow_tracking import MlflowTracker
from autoq.tracking.resilient import FIRST_PAUSE_S, LONGEST_PAUSE_S, ResilientTracker
from autoq.tracking.server import choose_port, experiment_pages, server_command, server_settings
from autoq.tracking.sqlite_store import sqlite_uri

MakeTrial = Callable[..., TrialRecord]


class Clock:
    """A clock that goes on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(store: Path, artifacts: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(
        server_command("127.0.0.1", port),
        env=server_settings(sqlite_uri(store), artifacts),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while True:
            assert server.poll() is None
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        experiment_pages(f"http://127.0.0.1:{port}")  # the first question opens the store, which takes time
        yield server
    finally:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def shown(tracking_uri: str) -> list[tuple[str, str, dict[str, str], dict[str, float], dict[str, str]]]:
    """Everything a reader sees of the runs, without what differs between two equal searches."""
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name("autoq/digits-cnn")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    own = ("mlflow.parentRunId", "mlflow.user")
    return sorted(
        (
            run.info.run_name,
            run.info.status,
            run.data.params,
            run.data.metrics,
            {name: value for name, value in run.data.tags.items() if name not in own},
        )
        for run in runs
    )


def test_a_search_whose_server_is_killed_goes_on_and_a_sync_shows_all_of_it(
    store: Path,
    record: SearchRecord,
    goals: Goals,
    make_trial: MakeTrial,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    trials = [make_trial(number, drop=number / 1000, latency_ms=4 - number / 2) for number in range(5)]
    ended = record.but(state=SearchState.FINISHED)
    outcome = build_outcome(ended, goals, trials)
    undisturbed = tmp_path / "undisturbed.db"
    undisturbed.write_bytes(store.read_bytes())
    port = choose_port("127.0.0.1", 0)
    notes: list[str] = []
    tracker = MlflowTracker(f"http://127.0.0.1:{port}")
    resilient = ResilientTracker(tracker, notes.append)

    with serving(store, tmp_path / "served", port) as server:
        # Written without impatience: a machine that is busy answers, but late.
        tracker.start_search(record)
        tracker.log_trial(record, trials[0], feasible=True)
        kill(server)
        began = time.monotonic()
        for trial in trials[1:]:
            resilient.log_trial(record, trial, feasible=True)
        assert not resilient.finish_search(ended, trials, outcome, {})
        assert time.monotonic() - began < 5.0
    assert len(notes) == 2
    assert f"tracking server http://127.0.0.1:{port} failed" in notes[0]
    assert "`autoq sync digits`" in notes[1]

    plot = tmp_path / "pareto.png"
    plot.write_bytes(b"picture")
    with serving(store, tmp_path / "served", port):
        assert tracker.sync(ended, trials, outcome, {"pareto.png": plot}) == 4
        assert tracker.sync(ended, trials, outcome, {"pareto.png": plot}) == 0
        synced = shown(tracker.tracking_uri)
    assert [path.name for path in (tmp_path / "served").rglob("pareto.png")] == ["pareto.png"]

    reference = MlflowTracker(sqlite_uri(undisturbed), tmp_path / "artifacts")
    reference.start_search(record)
    for trial in trials:
        reference.log_trial(record, trial, feasible=True)
    reference.finish_search(ended, outcome, {})
    assert synced == shown(sqlite_uri(undisturbed))
    assert capfd.readouterr() == ("", "")


def test_a_server_that_does_not_answer_costs_one_time_out_then_nothing(
    record: SearchRecord, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    notes: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        tracker = ResilientTracker(MlflowTracker(f"http://127.0.0.1:{port}"), notes.append)
        began = time.monotonic()
        for number in range(20):
            tracker.log_trial(record, make_trial(number), feasible=True)
        assert 0.9 < time.monotonic() - began < 6.0  # and not 20 time-outs
    assert len(notes) == 1


def test_a_server_that_is_away_is_tried_again_ever_more_rarely_and_its_return_is_noted(
    store: Path, record: SearchRecord, make_trial: MakeTrial, tmp_path: Path
) -> None:
    clock, notes = Clock(), list[str]()
    port = choose_port("127.0.0.1", 0)
    inner = MlflowTracker(f"http://127.0.0.1:{port}")
    tracker = ResilientTracker(inner, notes.append, clock=clock)
    pauses = []
    for _ in range(6):
        tracker.log_trial(record, make_trial(0), feasible=True)
        pauses.append(tracker.retry_at - clock.now)
        clock.now = tracker.retry_at
    assert pauses == [FIRST_PAUSE_S * 2**n for n in range(5)] + [LONGEST_PAUSE_S]
    inner.tracking_uri = sqlite_uri(store)  # the server is back
    tracker.log_trial(record, make_trial(0), feasible=True)
    assert notes[1:] == ["the tracking server is back"]
    assert len(shown(sqlite_uri(store))) == 2


def test_a_server_that_makes_trials_wait_is_left_alone_for_a_while(
    store: Path, record: SearchRecord, make_trial: MakeTrial, tmp_path: Path
) -> None:
    class SlowClock(Clock):
        """Two seconds pass between any two looks."""

        def __call__(self) -> float:
            self.now += 2.0
            return self.now

    notes: list[str] = []
    inner = MlflowTracker(sqlite_uri(store), tmp_path / "artifacts")
    tracker = ResilientTracker(inner, notes.append, clock=SlowClock())
    for number in range(10):
        tracker.log_trial(record, make_trial(number), feasible=True)
    assert notes == ["the tracking server takes 2.0 s a trial; the search does not wait for it"]
    assert len(shown(sqlite_uri(store))) == 1 + 1  # the search and its first trial; the rest comes at the end


def test_the_end_of_a_search_adds_the_trials_missed_in_a_pause(
    store: Path, record: SearchRecord, goals: Goals, make_trial: MakeTrial, tmp_path: Path
) -> None:
    port = choose_port("127.0.0.1", 0)
    inner = MlflowTracker(f"http://127.0.0.1:{port}", tmp_path / "artifacts")
    tracker = ResilientTracker(inner, lambda note: None)
    trials = [make_trial(0), make_trial(1)]
    for trial in trials:
        tracker.log_trial(record, trial, feasible=True)
    inner.tracking_uri = sqlite_uri(store)  # the server is back
    assert tracker.finish_search(record, trials, build_outcome(record, goals, trials), {})
    assert len(shown(sqlite_uri(store))) == 3


def test_a_bug_is_not_taken_for_a_server_that_is_away(record: SearchRecord, store: Path) -> None:
    tracker = ResilientTracker(MlflowTracker(sqlite_uri(store)), lambda note: None)
    with pytest.raises(KeyError, match="model"):
        tracker.start_search(record.but(spec={}))
