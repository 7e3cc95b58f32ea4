"""Candidates that fail are recorded with their reason, and the search stays whole."""

from __future__ import annotations

from pathlib import Path

from tiny_case import NAME, ledger_of, run_autoq, write_case

from autoq.search.records import SearchState, TrialRecord, TrialState

# The float model is scored against itself: there the two are one object.
DIES = """
import os
import numpy as np

def score(outputs, reference, labels):
    if {condition}:
        os._exit(3)
    return (outputs["logits"].argmax(axis=1) == labels).astype(np.float64)
"""


def search(tmp_path: Path, condition: str) -> tuple[int, str, SearchState, list[TrialRecord]]:
    (tmp_path / "metric.py").write_text(DIES.format(condition=condition))
    metric = {"python": "metric.py:score", "scope": "example", "bounds": [0, 1]}
    spec = write_case(tmp_path, {"metric": metric, "search.trials": 2})
    ran = run_autoq("search", spec, "--home", tmp_path / "home")
    with ledger_of(tmp_path / "home") as ledger:
        record = ledger.load_search(NAME)
        assert record is not None
        return ran.returncode, ran.stderr, record.state, ledger.load_trials(NAME)


def test_a_candidate_that_takes_its_process_down_is_a_failed_trial(tmp_path: Path) -> None:
    different = '(outputs["logits"] != reference["logits"]).any()'
    code, _, state, trials = search(tmp_path, different)
    assert (code, state) == (0, SearchState.FINISHED)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAILED]
    assert trials[1].reason.startswith("TrialCrashed: ")
    assert trials[1].measurement is None


def test_a_search_whose_trials_all_fail_says_why_and_exits_with_1(tmp_path: Path) -> None:
    code, said, state, trials = search(tmp_path, "outputs is not reference")
    assert (code, state) == (1, SearchState.FAILED)
    assert [trial.state for trial in trials] == [TrialState.FAILED] * 2
    assert said.splitlines()[-1].startswith("autoq: error: all 2 trials failed: TrialCrashed: ")
    shown = run_autoq("show", NAME, "--home", tmp_path / "home")
    assert shown.returncode == 0
    assert "TrialCrashed" in shown.stdout
