from __future__ import annotations

import logging

import pytest

from autoq.cli.listeners import LogListener, Relay, Stage, warnings_told
from autoq.search.ports import Progress
from autoq.search.records import TrialRecord

Trials = list[TrialRecord]


@pytest.mark.parametrize(
    ("phase", "stored", "measuring"),
    [
        ("data", False, False),
        ("statistics", False, False),
        ("baseline", False, False),
        ("guide", True, False),
        ("trials", True, True),
        ("final round", True, True),
    ],
)
def test_what_can_be_resumed_and_what_is_worth_waiting_for(phase: str, stored: bool, measuring: bool) -> None:
    stage = Stage()
    Relay(stage).on_phase(phase, "")
    assert (stage.is_stored, stage.is_measuring) == (stored, measuring)


def test_the_log_tells_the_parts_of_each_trials_time(
    trials: Trials, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="autoq"):
        listener = Relay(LogListener())
        listener.on_phase("trials", "0 of 4 done")
        listener.on_note("statistics: reused")
        for trial in (trials[1], trials[5]):
            listener.on_trial_start(trial.number, trial.origin)
            listener.on_trial_end(trial, Progress(1, 4, 0, 0, None, 1.0, None))
    assert [record.getMessage() for record in caplog.records] == [
        "trials: 0 of 4 done",
        "statistics: reused",
        "trial 1 begins (tpe)",
        "trial 1: drop +0.0300, 1.14x at 0.875 ms, 3.50 kB; build 0.250 s, total 1.500 s",
        "trial 5 begins (tpe)",
        "trial 5 failed: TrialTimeout: ran for 120 s; ",
    ]


def test_a_warning_of_the_log_is_told_to_the_user_once_and_only_in_the_block() -> None:
    told: list[str] = []
    log = logging.getLogger("autoq.evaluation.clock")
    with warnings_told(told.append):
        log.warning("waiting for %s", "the machine")
        log.info("not for the user")
    log.warning("afterwards")
    assert told == ["waiting for the machine"]
