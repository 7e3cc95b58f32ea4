"""What is said about a search around its tables: the best point, warnings, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from autoq.cli import render, wording
from autoq.cli.errors import ExitCode
from autoq.cli.options import home_arguments
from autoq.cli.streams import print_table
from autoq.search.outcome import metric_name
from autoq.search.records import SearchState

if TYPE_CHECKING:
    from autoq.core.measurements import Baseline
    from autoq.estimating import Estimate
    from autoq.search.outcome import Outcome, Point

# How each bound reads: what is bounded, and how a value of it is written.
_BOUNDS: dict[str, tuple[str, Any]] = {
    "max_latency_ms": ("latency", lambda value: f"{wording.milliseconds(value)} ms"),
    "max_latency_ratio": ("latency", lambda value: f"{value:.1%} of the float model's"),
    "max_accuracy_drop": ("accuracy drop", lambda value: f"{value:.4f}"),
    "max_size_bytes": ("size", wording.size),
    "max_bundle_bytes": ("bundle", wording.size),
}


def outcome_code(outcome: Outcome) -> ExitCode:
    """Return the exit code of what a search found so far."""
    if outcome.record.state is SearchState.FAILED:
        return ExitCode.OURS
    if outcome.any_feasible or outcome.record.state is not SearchState.FINISHED:
        return ExitCode.OK
    return ExitCode.INFEASIBLE


def print_outcome(console: Console, outcome: Outcome, home: Path, plot: Path) -> None:
    """Print the front, the best or the nearest point, and what to do next.

    `home` is as the user gave it, for the commands that are suggested.
    """
    record = outcome.record
    metric = metric_name(record.spec)
    _line(console, f"search {record.name}: {record.state}, {_counts(outcome)}")
    if outcome.front:
        print_table(console, render.front_table(outcome, metric))
        if not any(point.test for point in outcome.front):
            _line(console, "the test split has not been used: no figure is checked on unseen data")
    elif outcome.points:  # whatever breaks a bound is not scored to the end, and estimates are on no front
        _line(console, "no front: every trial broke a bound before it was scored in full")
    else:
        _line(console, "no trial is measured yet")
    for line in (*_best_lines(outcome, metric), *_nearest_lines(outcome)):
        _line(console, line)
    if warning := _test_warning(outcome):
        console.print(warning, style="bold red", soft_wrap=True)
    _next_lines(console, outcome, home, plot)


def _counts(outcome: Outcome) -> str:
    n_feasible = sum(point.feasible for point in outcome.points)
    failed = f", {outcome.n_failed} failed" if outcome.n_failed else ""
    noise = outcome.record.baseline
    floor = f"; noise floor of the latencies ±{noise.noise_floor:.1%}" if noise else ""
    return f"{outcome.n_trials} trials, {n_feasible} feasible{failed}{floor}"


def _best_lines(outcome: Outcome, metric: str) -> list[str]:
    best = outcome.best
    if best is None:
        return []
    value = best.measurement.accuracy.value
    return [f"best: trial {best.trial.number}, {metric} {value:.4f}, {wording.figures(best.measurement)}"]


def _test_warning(outcome: Outcome) -> str:
    best = outcome.best
    if best is None or best.test is None or best.test.holds != "no":
        return ""
    test, bound = best.test.accuracy, outcome.goals.constraints.max_accuracy_drop
    drop = wording.with_interval(test.drop, test.drop_ci, form="+.4f")
    allowed = "none is expected" if bound is None else f"{bound:.4f} is allowed"
    return (
        f"WARNING: the best point does NOT hold on the test split: its drop there is {drop}, {allowed}. "
        "Do not ship it before you know why."
    )


def _nearest_lines(outcome: Outcome) -> list[str]:
    nearest, baseline = outcome.nearest, outcome.record.baseline
    if nearest is None or baseline is None:
        return []
    figures = wording.figures(nearest.measurement)
    broken = _broken_bounds(outcome, nearest, baseline)
    return [f"nothing is feasible; nearest: trial {nearest.trial.number}, {figures}", *broken]


def _broken_bounds(outcome: Outcome, point: Point, baseline: Baseline) -> list[str]:
    measurement, constraints = point.measurement, outcome.goals.constraints
    values = {
        "max_latency_ms": measurement.latency.latency_ms,
        "max_latency_ratio": measurement.latency.latency_ms / baseline.latency_ms,
        "max_accuracy_drop": measurement.accuracy.drop,
        "max_size_bytes": measurement.size.size_bytes,
        "max_bundle_bytes": measurement.size.bundle_bytes,
    }
    lines = []
    for name, excess in constraints.violations(measurement, baseline).items():
        if excess > 0:
            what, write = _BOUNDS[name]
            bound = write(getattr(constraints, name))
            lines.append(f"  breaks {name}: {what} {write(values[name])}, allowed {bound}")
    return lines


def _next_lines(console: Console, outcome: Outcome, home: Path, plot: Path) -> None:
    name, point = outcome.record.name, outcome.best or outcome.nearest
    if point is None:
        return
    select = "best" if outcome.best else str(point.trial.number)
    at_home = " ".join(["", *home_arguments(home)])
    rows = {"next": f"autoq export {name} --select {select} --out {name}-{select}{at_home}"}
    for label, path in (("plot", plot), ("report", plot.with_name("report.html"))):
        if path.exists():
            rows[label] = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    rows["MLflow"] = f"autoq ui{at_home}"
    for label, text in rows.items():
        _line(console, f"{label + ':':8}{text}")


def estimate_lines(estimate: Estimate) -> list[str]:
    """Say what a search will cost, and what the target refuses."""
    search, finals = wording.duration(estimate.search_s), wording.duration(estimate.finals_s)
    n_anchors = min(estimate.n_anchors, estimate.n_trials)
    return [
        f"{estimate.n_trials} trials, the first {n_anchors} of them anchors: about {search}, "
        f"then about {finals} for the final round; up to {wording.size(estimate.disk_bytes)} on disk",
        *(f"refused by the target: {refusal}" for refusal in estimate.refusals),
    ]


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)
