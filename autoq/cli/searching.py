"""The search command: flags to overrides, the search under a view, and its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from autoq.cli import summary, views
from autoq.cli.errors import ExitCode, complain, say
from autoq.cli.listeners import LogListener, Relay, Stage, warnings_told
from autoq.cli.live import open_view
from autoq.cli.opening import open_app
from autoq.cli.options import home_arguments
from autoq.cli.signals import Interrupts
from autoq.cli.streams import print_json, progress_console, results_alone_on_stdout, results_console
from autoq.core.errors import InfrastructureError
from autoq.search.records import SearchState

if TYPE_CHECKING:
    from autoq.estimating import Estimate
    from autoq.search.outcome import Outcome
    from autoq.search.ports import SearchListener
    from autoq.spec.schema import SearchSpec


@dataclass(frozen=True)
class SearchFlags:
    """What the command line says of a search, as it was typed; None was not given."""

    latency_budget: str | None = None
    max_drop: str | None = None
    max_size: str | None = None
    max_bundle: str | None = None
    trials: int | None = None
    time_budget: str | None = None
    patience: int | None = None
    strategy: str | None = None
    seed: int | None = None

    def overrides(self) -> dict[str, object]:
        """Return the keys of the spec that the flags set.

        Raises:
            SpecError: A value has no unit, or is out of range.
        """
        from autoq.spec.units import parse_bytes, parse_drop, parse_duration, parse_latency_budget

        keys: dict[str, object] = {}
        if self.latency_budget is not None:
            ms, ratio = parse_latency_budget(self.latency_budget, where="--latency-budget")
            keys |= {"constraints.max_latency_ms": ms, "constraints.max_latency_ratio": ratio}
        if self.max_drop is not None:
            keys["constraints.max_accuracy_drop"] = parse_drop(self.max_drop, where="--max-drop")
        if self.max_size is not None:
            keys["constraints.max_size_bytes"] = parse_bytes(self.max_size, where="--max-size")
        if self.max_bundle is not None:
            keys["constraints.max_bundle_bytes"] = parse_bytes(self.max_bundle, where="--max-bundle")
        if self.time_budget is not None:
            keys["search.time_budget_s"] = parse_duration(self.time_budget, where="--time-budget")
        plain = {name: getattr(self, name) for name in ("trials", "patience", "strategy", "seed")}
        return keys | {f"search.{name}": value for name, value in plain.items() if value is not None}

    def arguments(self) -> list[str]:
        """Return the flags as they would be typed again."""
        typed = ((field.name, getattr(self, field.name)) for field in fields(self))
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in typed if value is not None]
        return [word for pair in pairs for word in pair]


@dataclass(frozen=True)
class SearchRequest:
    """A search as it was asked for."""

    spec: Path
    flags: SearchFlags
    home: Path
    resume: bool = False
    as_json: bool = False

    @property
    def resume_command(self) -> str:
        """The command that goes on with this search; with its flags, or its spec would be another."""
        words = ["autoq", "search", shlex.quote(str(self.spec)), *map(shlex.quote, self.flags.arguments())]
        return " ".join([*words, *home_arguments(self.home), "--resume"])


@contextmanager
def followed(stage: Stage) -> Iterator[SearchListener]:
    """Show and log whatever the app does in the block, and keep `stage` up to date."""
    with open_view(progress_console()) as view, warnings_told(view.on_note):
        yield Relay(stage, view, LogListener())


def run_search(request: SearchRequest) -> ExitCode:
    """Run or resume a search, print what it found, and return the exit code.

    Raises:
        UserError: Whatever the user can mend.
        InfrastructureError: Something is away before anything is stored.
        KeyboardInterrupt: Ctrl-C before anything is stored.
    """
    stage = Stage()
    try:
        with results_alone_on_stdout():
            outcome, plot = _search(request, stage)
    except InfrastructureError as error:
        if not stage.is_stored:
            raise
        complain(error)
        say(f"what was measured is kept; go on with: {request.resume_command}")
        return ExitCode.LOST
    except KeyboardInterrupt:
        if not stage.is_stored:
            raise
        say(f"stopped at once; what was measured is kept; go on with: {request.resume_command}")
        return ExitCode.INTERRUPTED
    summary.print_outcome(results_console(request.as_json), outcome, request.home, plot)
    if request.as_json:
        print_json(outcome.to_json())
    return _ending(request, outcome)


def _search(request: SearchRequest, stage: Stage) -> tuple[Outcome, Path]:
    from autoq.execution.memory import uncollected
    from autoq.launching import launch_trials

    with ExitStack() as stack:
        # First of all: it takes as long to start as everything until it is needed.
        trials = stack.enter_context(closing(launch_trials(request.home)))
        with uncollected():
            spec = _load(request)
            import_module("autoq.app")
        app, listener = stack.enter_context(open_app(request.home)), stack.enter_context(followed(stage))

        def tell(estimate: Estimate) -> None:
            for line in summary.estimate_lines(estimate):
                listener.on_note(line)

        with Interrupts(lambda: stage.is_measuring, listener.on_note) as interrupts:
            outcome = app.search(
                spec,
                listener,
                resume=request.resume,
                should_stop=interrupts.should_stop,
                on_estimate=tell,
                launched=trials,
            )
        return outcome, app.home.artifacts(spec.name) / "pareto.png"


def _load(request: SearchRequest) -> SearchSpec:
    from autoq.spec.loading import load_spec

    return load_spec(request.spec, request.flags.overrides())


def _ending(request: SearchRequest, outcome: Outcome) -> ExitCode:
    record = outcome.record
    if record.state is SearchState.INTERRUPTED:
        say(f"interrupted after {outcome.n_trials} trials; go on with: {request.resume_command}")
        return ExitCode.INTERRUPTED
    if record.state is SearchState.FAILED:
        say(f"error: {record.message}")
    return summary.outcome_code(outcome)


def estimate_search(request: SearchRequest) -> ExitCode:
    """Prepare a search, print what it would cost, and store no search.

    Raises:
        UserError: Whatever the user can mend.
    """
    with results_alone_on_stdout():
        spec = _load(request)
        with open_app(request.home) as app, followed(Stage()) as listener:
            estimate = app.estimate(spec, listener)
    console = results_console(request.as_json)
    for line in summary.estimate_lines(estimate):
        console.print(line, soft_wrap=True)
    if request.as_json:
        print_json(views.estimate_json(estimate))
    return ExitCode.OK
