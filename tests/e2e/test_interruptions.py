"""Ctrl-C and kill -9 at a moment of their own choosing, and going on from there."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import optuna
import psutil
import pytest
from tiny_case import NAME, ledger_of, run_autoq, started, write_case

from autoq.search.records import SearchState, TrialRecord, TrialState

# Small enough that a strategy proposes known candidates, which do not count.
SPACE = {"version": 1, "layers": {"*": {"format": ["fp32", "int8"], "calibration": "minmax"}}}

# The float model is scored against itself: there the two are one object.
SLEEPS = """
import time

def score(outputs, reference, labels):
    if outputs is not reference:
        time.sleep(100)
    return (outputs["logits"].argmax(axis=1) == labels).astype(float)
"""


def stored(home: Path) -> tuple[SearchState, list[TrialRecord]]:
    with ledger_of(home) as ledger:
        record = ledger.load_search(NAME)
        assert record is not None
        return record.state, ledger.load_trials(NAME)


def assert_whole(home: Path, n_trials: int) -> list[TrialRecord]:
    """A finished search: the number of trials asked for, each candidate measured once."""
    state, trials = stored(home)
    assert state is SearchState.FINISHED
    assert [trial.number for trial in trials] == list(range(len(trials)))
    counted = [trial.digest for trial in trials if trial.state is not TrialState.REPEATED]
    assert len(counted) == len(set(counted)) == n_trials
    log = (home / "autoq.log").read_text()
    for trial in trials:
        assert log.count(f"trial {trial.number}: drop") == (trial.state is TrialState.COMPLETE)
    return trials


def test_ctrl_c_ends_after_the_trial_in_flight_and_resume_goes_on(tmp_path: Path) -> None:
    spec, home = write_case(tmp_path, {"search.trials": 5, "space": SPACE}), tmp_path / "home"
    with started("search", spec, "--home", home) as search:
        search.wait_for("2 of 5: trial 1")
        search.process.send_signal(signal.SIGINT)
        code, said = search.ended()
    assert code == 130
    assert "stopping after the measurement in flight" in said
    assert said.splitlines()[-1].endswith(f"go on with: autoq search {spec} --home {home} --resume")
    state, before = stored(home)
    assert state is SearchState.INTERRUPTED
    assert 2 <= len(before) < 5

    refused = run_autoq("search", spec, "--home", home)
    assert refused.returncode == 2
    assert "go on with it by --resume" in refused.stderr

    ran = run_autoq("search", spec, "--home", home, "--resume")
    assert ran.returncode == 0, ran.stderr
    assert f"trials: {len(before)} of 5 done" in ran.stderr
    assert "baseline:" not in ran.stderr
    assert assert_whole(home, 5)[: len(before)] == before


def test_a_second_ctrl_c_stops_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(SLEEPS)
    metric = {"python": "metric.py:score", "scope": "example"}
    spec, home = write_case(tmp_path, {"metric": metric, "space": SPACE}), tmp_path / "home"
    with started("search", spec, "--home", home) as search:
        search.wait_for("trials: 0 of 8 done")
        time.sleep(0.5)  # the first trial is within the metric by then, which nothing tells from outside
        children = psutil.Process(search.process.pid).children(recursive=True)
        assert children
        search.process.send_signal(signal.SIGINT)
        search.wait_for("stopping after the measurement in flight")
        asked_at = time.monotonic()
        search.process.send_signal(signal.SIGINT)
        code, said = search.ended()
    assert time.monotonic() - asked_at < 10.0
    assert code == 130
    assert "--resume" in said
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_kill_9_at_any_moment_loses_at_most_the_trial_in_flight(tmp_path: Path) -> None:
    changes = {"search.trials": 5, "search.strategy": "random", "space": SPACE}
    spec, home = write_case(tmp_path, changes), tmp_path / "home"
    with started("search", spec, "--home", home) as search:
        search.wait_for("2 of 5: trial")
        time.sleep(random.uniform(0.0, 0.8))  # another one every time: whatever it is, this has to hold
        children = psutil.Process(search.process.pid).children(recursive=True)
        assert children
        search.process.kill()
        search.ended()
    _, orphans = psutil.wait_procs(children, timeout=5)
    assert not orphans
    state, before = stored(home)
    assert state is SearchState.RUNNING
    assert len(before) >= 2

    ran = run_autoq("search", spec, "--home", home, "--resume")
    assert ran.returncode == 0, ran.stderr
    _, trials = stored(home)
    assert trials[: len(before)] == before
    counted = [trial.digest for trial in trials if trial.state is not TrialState.REPEATED]
    assert len(counted) == len(set(counted)) == 5
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{home / 'autoq.db'}")
    assert [trial.params for trial in study.get_trials()] == [dict(trial.params) for trial in trials]
    study._storage.remove_session()
