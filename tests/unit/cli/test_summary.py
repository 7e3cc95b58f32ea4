from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autoq.cli.summary import outcome_code, print_outcome
from autoq.search.outcome import Outcome
from autoq.search.records import SearchState, TrialRecord

MakeOutcome = Callable[..., Outcome]


def printed(outcome: Outcome, home: Path = Path("autoq-home"), plot: Path = Path("no.png")) -> str:
    console = Console(file=io.StringIO(), width=180, markup=False, highlight=False)
    print_outcome(console, outcome, home, plot)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(text: str, *words: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if all(word in line for word in words))


def test_the_front_is_under_the_baseline_and_the_best_has_a_star(make_outcome: MakeOutcome) -> None:
    text = printed(make_outcome())
    assert row_of(text, "float model") == "float model 0.9000 1.00 [0.99, 1.01] 1.00x 0.00400"
    assert row_of(text, "*") == (
        "* 2 tpe 0.8500 +0.0500 [+0.0400, +0.0600] 0.625 [0.619, 0.631] 1.60x 0.00250 0.00200 yes"
    )
    assert text.count("\n*") == 1
    assert row_of(text, "anchor float").endswith(" yes")
    assert "best: trial 2, top1 0.8500" in text


def test_the_front_is_fastest_first(make_outcome: MakeOutcome) -> None:
    lines = printed(make_outcome()).splitlines()
    numbers = [line.split("tpe")[0].strip(" *") for line in lines if " tpe " in line]
    assert numbers == ["3", "2", "1"]


def test_without_a_test_split_its_columns_are_left_out_and_that_is_said(make_outcome: MakeOutcome) -> None:
    text = printed(make_outcome())
    assert "test top1" not in text
    assert "no figure is checked on unseen data" in text


def test_test_figures_are_shown_beside_the_others(make_outcome: MakeOutcome) -> None:
    text = printed(make_outcome(holds="yes"))
    assert "test top1" in text
    assert row_of(text, "*").endswith(" 0.8765 yes yes")
    assert "WARNING" not in text


def test_a_best_point_that_does_not_hold_is_warned_about_loudly(make_outcome: MakeOutcome) -> None:
    text = printed(make_outcome(holds="no"))
    assert (
        "WARNING: the best point does NOT hold on the test split: "
        "its drop there is +0.0432 [+0.0321, +0.0543], 0.0500 is allowed" in text
    )


def test_when_nothing_is_feasible_the_nearest_point_and_its_failed_bounds_are_told(
    make_outcome: MakeOutcome,
) -> None:
    outcome = make_outcome(max_accuracy_drop=-0.1)
    text = printed(outcome)
    assert "nothing is feasible; nearest: trial 0" in text
    assert "breaks max_accuracy_drop: accuracy drop 0.0000, allowed -0.1000" in text
    assert "--select 0 " in text
    assert outcome_code(outcome) == 3


def test_where_every_trial_is_an_estimate_nobody_is_told_that_none_was_measured(
    make_outcome: MakeOutcome, trials: list[TrialRecord]
) -> None:
    for at, trial in enumerate(trials):
        if trial.measurement is not None:
            rough = replace(trial.measurement.accuracy, is_estimate=True, n_examples=64)
            trials[at] = replace(trial, measurement=replace(trial.measurement, accuracy=rough))
    outcome = make_outcome(max_accuracy_drop=-0.1)
    assert not outcome.front
    text = printed(outcome)
    assert "no front: every trial broke a bound before it was scored in full" in text
    assert "no trial is measured yet" not in text
    assert "nothing is feasible; nearest: trial" in text


def test_what_to_do_next_names_the_home_and_the_plot(make_outcome: MakeOutcome, tmp_path: Path) -> None:
    plot = tmp_path / "pareto.png"
    plot.touch()
    text = printed(make_outcome(), Path("my home"), plot)
    assert "autoq export demo --select best --out demo-best --home 'my home'" in text
    assert "autoq ui --home 'my home'" in text
    assert str(plot) in text
    assert "--home" not in printed(make_outcome())


@pytest.mark.parametrize(
    ("state", "code"), [(SearchState.FINISHED, 0), (SearchState.RUNNING, 0), (SearchState.FAILED, 1)]
)
def test_the_exit_code_follows_state_and_feasibility(
    make_outcome: MakeOutcome, state: SearchState, code: int
) -> None:
    assert outcome_code(make_outcome(state=state)) == code


def test_a_search_without_a_baseline_has_no_front_yet(make_outcome: MakeOutcome) -> None:
    text = printed(make_outcome(baseline=None, state=SearchState.RUNNING))
    assert "no trial is measured yet" in text


def test_on_a_narrow_terminal_no_figure_is_cut(make_outcome: MakeOutcome) -> None:
    console = Console(file=io.StringIO(), width=60, markup=False, highlight=False)
    print_outcome(console, make_outcome(holds="undecided"), Path("autoq-home"), Path("no.png"))
    assert isinstance(console.file, io.StringIO)
    words = console.file.getvalue().split()
    for figure in ("0.8500", "+0.0500", "[+0.0400,", "+0.0600]", "[0.619,", "1.60x", "0.00250", "undecided"):
        assert figure in words
