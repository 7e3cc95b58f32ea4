"""The details of one search, and of one trial: `autoq show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from autoq.cli import render, wording
from autoq.cli.streams import print_table
from autoq.cli.views import model_name, repeated_number
from autoq.search.hindsight import latency_hindsight, optimism_of
from autoq.search.outcome import metric_name

if TYPE_CHECKING:
    from autoq.core.measurements import Baseline
    from autoq.search.outcome import Outcome, Point
    from autoq.search.records import TrialRecord


def print_search(console: Console, outcome: Outcome, trials: Sequence[TrialRecord]) -> None:
    """Print the overview of a search: spec, environment, baseline, preparation, all trials."""
    record = outcome.record
    metric = metric_name(record.spec)
    about = {"state": f"{record.state}{f': {record.message}' if record.message else ''}"}
    rows = about | _spec_rows(outcome, metric) | wording.flat(record.environment, "on ")
    if record.baseline is not None:
        rows["baseline"] = _baseline_text(record.baseline, metric)
    if record.preparation_s:
        rows["preparation"] = wording.parts(record.preparation_s)
    rows |= _hindsight_rows(outcome, trials)
    console.print(render.pairs_table(rows))
    console.print()
    print_table(console, render.trials_table(outcome, trials, metric))


def _hindsight_rows(outcome: Outcome, trials: Sequence[TrialRecord]) -> dict[str, str]:
    rows = {}
    if seen := latency_hindsight(trials):
        ranks = "" if seen.rank_correlation is None else f", rank correlation {seen.rank_correlation:.3f}"
        rows["latency model"] = (
            f"median error {seen.median_error:.1%} on {seen.n_trials} trials foretold before they ran{ranks}"
        )
    if found := optimism_of(outcome.best):
        rows["optimism"] = (
            f"{found.value:+.4f}: trial {found.trial} drops {found.search_drop:+.4f} on the search split, "
            f"{found.test_drop:+.4f} on the test split"
        )
    return rows


def _spec_rows(outcome: Outcome, metric: str) -> dict[str, str]:
    spec = outcome.record.spec
    bounds = {name: value for name, value in spec["constraints"].items() if value is not None}
    return {
        "model": model_name(spec),
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
    repeated = repeated_number(outcome, trial)
    rows = {
        "trial": str(trial.number),
        "origin": trial.origin,
        "state": str(trial.state) + ("" if repeated is None else f": repeats trial {repeated}"),
        "digest": trial.digest,
        "seconds": wording.parts(trial.seconds),
    }
    if trial.reason:
        rows["reason"] = trial.reason
    rows |= _reason_rows(trial)
    rewrites = trial.candidate.rewrites
    if rewrites.widths:
        kept = ", ".join(f"{group} {units}" for group, units in rewrites.widths)
        rows["widths"] = f"{kept}; ordered by {rewrites.criterion}, {rewrites.refit} refit"
    if point is not None:
        rows["feasible"] = "yes" if point.feasible else "no"
        rows |= _figure_rows(point)
    console.print(render.pairs_table(rows))
    console.print()
    print_table(console, render.choices_table(trial, point.measurement.storage_only if point else ()))


def _reason_rows(trial: TrialRecord) -> dict[str, str]:
    """Why it was tried, and what was foretold of it."""
    reasons = trial.reasons
    rows = {}
    if "why" in reasons:
        aim = f", for the {reasons['aim']}" if "aim" in reasons else ""
        rows["why"] = f"{reasons.get('kind', '')}{aim}: {reasons['why']}"
    foretold = []
    if "predicted_latency_ms" in reasons:
        low_high = reasons["predicted_latency_ms"], reasons.get("predicted_latency_sd_ms", 0.0)
        foretold.append("latency {:.4g} ± {:.2g} ms".format(*low_high))
    if "predicted_drop" in reasons:
        foretold.append(f"drop {reasons['predicted_drop']:+.4f}")
    if "predicted_bundle_bytes" in reasons:
        foretold.append(f"bundle {reasons['predicted_bundle_bytes']:,} bytes")
    if foretold:
        rows["foretold"] = ", ".join(foretold)
    return rows


def _figure_rows(point: Point) -> dict[str, str]:
    accuracy, latency, size = point.measurement.accuracy, point.measurement.latency, point.measurement.size
    basis = f"{'the first ' if accuracy.is_estimate else ''}{accuracy.n_examples} examples"
    rows = {
        "accuracy": f"{accuracy.value:.4f} on {basis}",
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
