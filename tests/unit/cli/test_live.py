from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from autoq.cli.live import LiveListener, PlainListener, open_view
from autoq.cli.streams import progress_console
from autoq.search.outcome import Outcome
from autoq.search.ports import Progress
from autoq.search.records import TrialRecord

MakeOutcome = Callable[..., Outcome]
Trials = list[TrialRecord]


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, markup=False, highlight=False)


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def progress(make_outcome: MakeOutcome, *, n_failed: int = 0) -> Progress:
    return Progress(2, 40, 1, n_failed, make_outcome().best, 65.0, 1300.0)


def test_plain_lines_tell_trial_origin_best_and_time_left(trials: Trials, make_outcome: MakeOutcome) -> None:
    to = console()
    listener = PlainListener(to)
    listener.on_phase("trials", "0 of 40 done")
    listener.on_trial_start(1, "tpe")
    listener.on_trial_end(trials[1], progress(make_outcome))
    assert written(to).splitlines() == [
        "trials: 0 of 40 done",
        "2 of 40: trial 1 (tpe): drop +0.0300, 1.14x at 0.875 ms, 3.50 kB"
        " | best: trial 2, drop +0.0500, 1.60x at 0.625 ms, 2.50 kB | 1:05 elapsed, about 21:40 left",
    ]


def test_a_failed_trial_tells_its_reason(trials: Trials, make_outcome: MakeOutcome) -> None:
    to = console()
    PlainListener(to).on_trial_end(trials[5], progress(make_outcome, n_failed=1))
    assert "trial 5 (tpe): failed, TrialTimeout: ran for 120 s" in written(to)
    assert "1 failed" in written(to)


def test_before_the_first_feasible_trial_there_is_no_best(trials: Trials) -> None:
    to = console()
    PlainListener(to).on_trial_end(trials[0], Progress(1, 40, 0, 0, None, 1.0, None))
    assert "nothing feasible yet | 0:01 elapsed\n" in written(to)


def test_the_live_view_shows_the_running_trial_the_bar_and_the_best(
    trials: Trials, make_outcome: MakeOutcome
) -> None:
    to = console(terminal=True)
    with LiveListener(to) as listener:
        listener.on_phase("trials", "0 of 40 done")
        listener.on_trial_start(7, "anchor float")
        assert "trial 7 (anchor float) is running" in written(to)
        listener.on_trial_end(trials[1], progress(make_outcome))
    assert "2 of 40 trials" in written(to)
    assert "best: trial 2" in written(to)
    assert "about 21:40 left" in written(to)


def test_names_in_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    PlainListener(progress_console()).on_note("layer [bold] and :smile:")
    assert capsys.readouterr() == ("", "layer [bold] and :smile:\n")


def test_without_a_terminal_the_view_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours in a log file are no terminal
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with open_view(Console(stderr=True)) as view:
        assert isinstance(view, PlainListener)
