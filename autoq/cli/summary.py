"""What is said about a search around its tables: the best point, warnings, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from autoq.cli import render, wording
from autoq.cli.errors import ExitCode

if TYPE_CHECKING:
    from autoq.app import Estimate
    from autoq.core.measurements import Baseline
    from autoq.search.outcome import Outcome, Point
    from autoq.search.records import TrialRecord

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
    if outcome.record.state == "failed":
        return ExitCode.OURS
    return ExitCode.OK if outcome.any_feasible else ExitCode.INFEASIBLE


def print_outcome(console: Console, outcome: Outcome, home: Path, plot: Path) -> None:
    """Print the front, the best or the nearest point, and what to do next.

    `home` is as the user gave it, for the commands that are suggested.
    """
    from autoq.search.outcome import metric_name

    record = outcome.record
    metric = metric_name(record.spec)
    _line(console, f"search {record.name}: {record.state}, {_counts(outcome)}")
    if outcome.front:
        console.print(render.front_table(outcome, metric))
        if not any(point.test for point in outcome.front):
            _line(console, "the test split has not been used: no figure is checked on unseen data")
    else:
        _line(console, "no trial is measured yet")
    for line in (*_best_lines(outcome, metric), *nearest_lines(outcome)):
        _line(console, line)
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
    return [
        f"best: trial {best.trial.number}, {metric} {value:.4f}, {wording.figures(best.measurement)}",
        *_test_warning(best),
    ]


def _test_warning(best: Point) -> list[str]:
    if best.test is None or best.test.holds != "no":
        return []
    test = best.test.accuracy
    drop = wording.with_interval(test.drop, test.drop_ci, form="+.4f")
    return [
        f"WARNING: the best point does NOT hold on the test split: its drop there is {drop}. "
        "The search has fitted its own split; do not ship this point before looking closer."
    ]


def nearest_lines(outcome: Outcome) -> list[str]:
    """Say that nothing is feasible, which point is nearest, and which bounds it breaks by how much."""
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
    at_home = "" if home == Path("autoq-home") else f" --home {shlex.quote(str(home))}"
    rows = {"next": f"autoq export {name} --select {select} --out {name}-{select}{at_home}"}
    if plot.exists():
        rows["plot"] = str(plot)
    rows["MLflow"] = f"autoq ui{at_home}"
    console.print(render.pairs_table(rows))


def print_search(console: Console, outcome: Outcome, trials: list[TrialRecord]) -> None:
    """Print the overview of a search: spec, environment, baseline, preparation, all trials."""
    from autoq.search.outcome import metric_name

    record = outcome.record
    metric = metric_name(record.spec)
    about = {"state": f"{record.state}{f': {record.message}' if record.message else ''}"}
    console.print(render.pairs_table(about | _spec_rows(outcome, metric)))
    console.print(render.pairs_table(wording.flat(record.environment, "on ")))
    if record.baseline is not None:
        console.print(render.pairs_table({"baseline": _baseline_text(record.baseline, metric)}))
    if record.preparation_s:
        console.print(render.pairs_table({"preparation": wording.parts(record.preparation_s)}))
    console.print(render.trials_table(outcome, trials, metric))


def _spec_rows(outcome: Outcome, metric: str) -> dict[str, str]:
    spec = outcome.record.spec
    bounds = {name: value for name, value in spec["constraints"].items() if value is not None}
    return {
        "model": render.model_name(spec),
        "metric": metric,
        "objectives": ", ".join(spec["objectives"]),
        "constraints": ", ".join(f"{name} {value}" for name, value in bounds.items()) or "none",
        "target": ", ".join(f"{name} {value}" for name, value in spec["target"].items()),
        "search": ", ".join(f"{name} {value}" for name, value in spec["search"].items() if value is not None),
    }


def _baseline_text(baseline: Baseline, metric: str) -> str:
    latency = wording.milliseconds(baseline.latency_ms, baseline.latency_ms_ci)
    return (
        f"{metric} {baseline.accuracy:.4f}, {latency} ms, {wording.size(baseline.size_bytes)}, "
        f"noise floor ±{baseline.noise_floor:.2%}"
    )


def print_trial(console: Console, outcome: Outcome, trial: TrialRecord) -> None:
    """Print one trial: figures, choices of each layer, parts of its time, why it failed."""
    point = next((point for point in outcome.points if point.trial.digest == trial.digest), None)
    repeated = render.repeated_number(outcome, trial)
    rows = {
        "trial": str(trial.number),
        "origin": trial.origin,
        "state": str(trial.state) + ("" if repeated is None else f": repeats trial {repeated}"),
        "digest": trial.digest,
        "seconds": wording.parts(trial.seconds),
    }
    if trial.reason:
        rows["reason"] = trial.reason
    if point is not None:
        rows["feasible"] = "yes" if point.feasible else "no"
        rows |= _figure_rows(point)
    console.print(render.pairs_table(rows))
    console.print(render.choices_table(trial, point.measurement.storage_only if point else ()))


def _figure_rows(point: Point) -> dict[str, str]:
    accuracy, latency, size = point.measurement.accuracy, point.measurement.latency, point.measurement.size
    rows = {
        "accuracy": f"{accuracy.value:.4f} on {accuracy.n_examples} examples",
        "drop": wording.with_interval(accuracy.drop, accuracy.drop_ci, form="+.4f"),
        "latency": f"{wording.milliseconds(latency.latency_ms, latency.latency_ms_ci)} ms, "
        f"90th percentile {wording.milliseconds(latency.p90_ms)} ms",
        "speed-up": wording.with_interval(latency.speedup, latency.speedup_ci, form=".2f"),
        "size": f"{size.size_bytes:,} bytes, bundle {size.bundle_bytes:,} bytes",
    }
    if point.test is not None:
        test = point.test.accuracy
        drop = wording.with_interval(test.drop, test.drop_ci, form="+.4f")
        rows["test split"] = f"{test.value:.4f}, drop {drop}, holds: {point.test.holds}"
    return rows


def estimate_lines(estimate: Estimate) -> list[str]:
    """Say what a search will cost, and what the target refuses."""
    search, finals = wording.duration(estimate.search_s), wording.duration(estimate.finals_s)
    return [
        f"{estimate.n_trials} trials, the first {min(estimate.n_anchors, estimate.n_trials)} of them anchors: "
        f"at most about {search}, then at most about {finals} for the final round; "
        f"up to {wording.size(estimate.disk_bytes)} on disk",
        *(f"refused by the target: {refusal}" for refusal in estimate.refusals),
    ]


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)
