"""Commands that read: front, show, list, doctor, cache."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from autoq.cli import details, render, summary, views, wording
from autoq.cli.errors import ExitCode, say
from autoq.cli.opening import open_app
from autoq.cli.streams import print_json, print_table, results_alone_on_stdout, results_console
from autoq.core.errors import UnknownNameError


def show_front(name: str, home: Path, *, as_json: bool) -> ExitCode:
    """Print the front of a search; return the exit code of what it found."""
    with open_app(home) as app:
        outcome = app.outcome(name)
        plot = app.home.artifacts(name) / "pareto.png"
    summary.print_outcome(results_console(as_json), outcome, home, plot)
    if as_json:
        print_json(outcome.to_json())
    return summary.outcome_code(outcome)


def show_search(name: str, home: Path, *, as_json: bool) -> None:
    """Print the overview of a search."""
    with open_app(home) as app:
        outcome, trials = app.outcome(name), app.trials(name)
    if as_json:
        print_json(views.search_json(outcome, trials))
    else:
        details.print_search(results_console(as_json), outcome, trials)


def show_trial(name: str, number: int, home: Path, *, as_json: bool) -> None:
    """Print one trial of a search.

    Raises:
        UnknownNameError: The search has no such trial.
    """
    with open_app(home) as app:
        outcome, trials = app.outcome(name), app.trials(name)
    trial = next((trial for trial in trials if trial.number == number), None)
    if trial is None:
        numbers = f"it has trials 0 to {trials[-1].number}" if trials else "it has no trials yet"
        raise UnknownNameError(f"search {name!r} has no trial {number}", hint=numbers)
    if as_json:
        print_json(views.trial_json(outcome, trial))
    else:
        details.print_trial(results_console(as_json), outcome, trial)


def show_searches(home: Path, *, as_json: bool) -> None:
    """Print all searches."""
    with open_app(home) as app:
        searches = [(record, len(app.trials(record.name))) for record in app.searches()]
    if as_json:
        print_json(views.searches_json(searches))
    elif searches:
        print_table(results_console(as_json), render.searches_table(searches))
    else:
        say(f"no searches in {home}")


def show_doctor(home: Path, *, as_json: bool) -> None:
    """Print what the machine can do, and measure how much its latencies vary."""
    with results_alone_on_stdout(), open_app(home) as app:
        found = app.doctor()
        from autoq.spec.schema import Strategy
    strategies = get_args(Strategy)
    if as_json:
        print_json(views.doctor_json(found, strategies))
        return
    console = results_console(as_json)
    console.print(render.doctor_table(found, strategies))
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def show_cache(prune: str | None, home: Path, *, as_json: bool) -> None:
    """Print what the caches hold, after deleting down to `prune` bytes if it is given.

    Raises:
        SpecError: `prune` is no size with a unit.
    """
    from autoq.spec.units import parse_bytes

    keep_bytes = None if prune is None else parse_bytes(prune, where="--prune")
    with open_app(home) as app:
        freed_bytes = 0 if keep_bytes is None else app.prune_cache(keep_bytes)
        uses = app.cache_use()
    if as_json:
        print_json(views.cache_json(uses, freed_bytes))
        return
    if keep_bytes is not None:
        say(f"freed {wording.size(freed_bytes)}")
    print_table(results_console(as_json), render.caches_table(uses))
