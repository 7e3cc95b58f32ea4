"""What a search found: the front, the best point, and the JSON that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoq.core.errors import UnknownNameError
from autoq.core.fronts import dominates, front_rows, knee_row
from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement
from autoq.search.goals import Goals, Objective, cost_of
from autoq.search.records import FinalMeasurement, SearchRecord, TestAccuracy, TrialRecord, TrialState


@dataclass(frozen=True)
class Point:
    """One measured candidate, with its final measurement where it has one."""

    trial: TrialRecord
    measurement: Measurement  # latency is the final one where there is one
    feasible: bool
    test: TestAccuracy | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the contract's JSON object of a front point."""
        accuracy, latency, size = self.measurement.accuracy, self.measurement.latency, self.measurement.size
        test = self.test.accuracy if self.test else None
        return {
            "trial": self.trial.number,
            "origin": self.trial.origin,
            "digest": self.trial.digest,
            "accuracy": accuracy.value,
            "accuracy_drop": accuracy.drop,
            "accuracy_drop_ci": accuracy.drop_ci,
            "n_examples": accuracy.n_examples,
            "is_estimate": accuracy.is_estimate,
            "divergence": self.measurement.divergence,
            "test_accuracy": test.value if test else None,
            "test_accuracy_drop": test.drop if test else None,
            "test_accuracy_drop_ci": test.drop_ci if test else None,
            "holds": self.test.holds if self.test else None,
            **_latency_json(latency),
            "size_bytes": size.size_bytes,
            "bundle_bytes": size.bundle_bytes,
            "feasible": self.feasible,
            "storage_only": list(self.measurement.storage_only),
            "choices": {name: choice.to_json() for name, choice in self.trial.candidate.choices},
            "widths": dict(self.trial.candidate.rewrites.widths),
            "refit": str(self.trial.candidate.rewrites.refit),
            "criterion": str(self.trial.candidate.rewrites.criterion),
            "graph": {name: str(precision) for name, precision in self.trial.candidate.graph},
        }


@dataclass(frozen=True)
class Outcome:
    """Everything a view needs of a search; pure data derived from the store."""

    record: SearchRecord
    goals: Goals
    points: tuple[Point, ...]  # every measured candidate once, by trial number
    front: tuple[Point, ...]  # fastest first
    best: Point | None  # None when nothing is feasible
    nearest: Point | None  # the least infeasible point, when nothing is feasible
    n_trials: int
    n_failed: int

    @property
    def any_feasible(self) -> bool:
        """Whether some point keeps every bound."""
        return self.best is not None

    def select(self, which: str) -> Point:
        """Find a point by `best`, `knee`, `fastest`, `smallest` or its trial number.

        Raises:
            UnknownNameError: There is no such point.
        """
        if which.isdigit():
            for point in self.points:
                if point.trial.number == int(which):
                    return point
            raise UnknownNameError(
                f"search {self.record.name!r} measured no trial {which}",
                hint="failed and repeated trials have no model; `autoq show` lists the trials",
            )
        if not self.points:
            raise UnknownNameError(f"search {self.record.name!r} has no measured trial to select from")
        if which == "best":
            return self._best_or_raise()
        candidates = [point for point in self.front if point.feasible]
        if not candidates:
            return self._best_or_raise()
        if which == "fastest":
            return min(candidates, key=lambda point: point.measurement.latency.latency_ms)
        if which == "smallest":
            return min(candidates, key=lambda point: point.measurement.size.size_bytes)
        if which == "knee":
            return candidates[knee_of(candidates, self.goals)]
        raise UnknownNameError(
            f"cannot select {which!r}", hint="expected best, knee, fastest, smallest or a trial number"
        )

    def _best_or_raise(self) -> Point:
        if self.best is None:
            nearest = f"; the nearest is trial {self.nearest.trial.number}" if self.nearest else ""
            raise UnknownNameError(
                f"search {self.record.name!r} found nothing feasible{nearest}",
                hint="select a trial by its number",
            )
        return self.best

    def to_json(self) -> dict[str, Any]:
        """Return the object that `autoq search --json` and `autoq front --json` print."""
        baseline = self.record.baseline
        return {
            "search": self.record.name,
            "state": str(self.record.state),
            "strategy": self.record.spec["search"]["strategy"],
            "metric": metric_name(self.record.spec),
            "objectives": [str(objective) for objective in self.goals.objectives],
            "trials": self.n_trials,
            "failed": self.n_failed,
            "feasible": sum(point.feasible for point in self.points),
            "best": self.best.trial.number if self.best else None,
            "nearest": self._nearest_json(),
            "noise_floor": baseline.noise_floor if baseline else None,
            "environment": dict(self.record.environment),
            "baseline": baseline_json(baseline),
            "front": [point.to_json() for point in self.front],
        }

    def _nearest_json(self) -> dict[str, Any] | None:
        if self.nearest is None or self.record.baseline is None:
            return None
        violations = self.goals.constraints.violations(self.nearest.measurement, self.record.baseline)
        broken = sorted(name for name, excess in violations.items() if excess > 0)
        return {"trial": self.nearest.trial.number, "failed_bounds": broken}


def build_outcome(
    record: SearchRecord,
    goals: Goals,
    trials: Sequence[TrialRecord],
    finals: Sequence[FinalMeasurement] = (),
) -> Outcome:
    """Derive the front and the best point from what the store holds.

    The test split only annotates: it never decides who is on the front, feasible or best.
    """
    points = _points(record, goals, trials, {final.digest: final for final in finals})
    feasible = [point for point in points if point.feasible]
    front = sorted(
        _front(points, feasible, goals),
        key=lambda point: (point.measurement.latency.latency_ms, point.trial.number),
    )
    best = pick_best(feasible, goals) if feasible else None
    nearest = None if feasible or not points else _nearest(points, goals, record.baseline)
    counted = [trial for trial in trials if trial.state is not TrialState.REPEATED]
    n_failed = sum(trial.state is TrialState.FAILED for trial in counted)
    return Outcome(record, goals, tuple(points), tuple(front), best, nearest, len(counted), n_failed)


def pick_best(feasible: Sequence[Point], goals: Goals) -> Point:
    """Choose what to ship.

    With a budget of time or bytes: the highest accuracy within it, ties to the faster. With a bound
    on the drop alone: the fastest within it, or the smallest where nobody searches for speed. Without
    any bound: the knee of the front.
    """
    if goals.constraints == type(goals.constraints)():
        front = [feasible[row] for row in front_rows(_costs(feasible, goals))]
        return front[knee_of(front, goals)]

    order = (goals.decisive, Objective.ACCURACY, Objective.LATENCY)
    return min(feasible, key=lambda point: [cost_of(which, point.measurement) for which in order])


def knee_of(points: Sequence[Point], goals: Goals) -> int:
    """Index of the knee: farthest from the line between the fastest and the most accurate."""
    axes = [o for o in (Objective.LATENCY, Objective.ACCURACY) if o in goals.objectives]
    rest = [o for o in goals.objectives if o not in axes]
    return knee_row(_costs(points, replace(goals, objectives=(*axes, *rest))))


def finalists(outcome: Outcome, limit: int) -> list[Point]:
    """Front members and those that timing noise alone may keep off it, most promising first.

    A point stays out when some other beats it even with both latencies at the far ends of their
    intervals.
    """

    def costs(point: Point, latency_ms: float) -> list[float]:
        latency = replace(point.measurement.latency, latency_ms=latency_ms)
        return outcome.goals.costs(replace(point.measurement, latency=latency))

    points = _known_in_full(outcome.points)
    optimistic = [costs(p, p.measurement.latency.latency_ms_ci[0]) for p in points]
    cautious = [costs(p, p.measurement.latency.latency_ms_ci[1]) for p in points]
    on_front = {point.trial.number for point in outcome.front}
    near = [
        point
        for mine, point in zip(optimistic, points, strict=True)
        if not any(dominates(other, mine) for other in cautious)
    ]
    best = outcome.best or outcome.nearest
    chosen = {point.trial.number: point for point in (*outcome.front, *near)}
    if best is not None:
        chosen.setdefault(best.trial.number, best)

    def order(point: Point) -> tuple[bool, bool, bool, int]:
        is_best = best is not None and point.trial.number == best.trial.number
        return (not is_best, not point.feasible, point.trial.number not in on_front, point.trial.number)

    return sorted(chosen.values(), key=order)[:limit]


def metric_name(spec: Mapping[str, Any]) -> str:
    """Name of the metric in a spec: `top1`, or the function's name."""
    metric = spec["metric"]
    return metric if isinstance(metric, str) else str(metric["python"]).rpartition(":")[2]


def baseline_json(baseline: Baseline | None) -> dict[str, Any] | None:
    """Return the contract's JSON object of the baseline."""
    if baseline is None:
        return None
    return {
        "accuracy": baseline.accuracy,
        "test_accuracy": baseline.test_accuracy,
        "latency_ms": baseline.latency_ms,
        "latency_ms_ci": baseline.latency_ms_ci,
        "latency_p90_ms": baseline.latency_p90_ms,
        "size_bytes": baseline.size_bytes,
    }


def holds(test: Accuracy, max_drop: float | None) -> str:
    """Say whether the test split bears the allowed drop out: yes, no or undecided.

    Without a bound the question is whether there is any drop at all.
    """
    bound = 0.0 if max_drop is None else max_drop
    if test.drop_ci is None:
        return "undecided"
    if test.drop_ci[0] > bound:
        return "no"
    no_drop_at_all = max_drop is None and test.drop <= 0
    return "yes" if test.drop_ci[1] <= bound or no_drop_at_all else "undecided"


def _points(
    record: SearchRecord,
    goals: Goals,
    trials: Sequence[TrialRecord],
    finals: Mapping[str, FinalMeasurement],
) -> list[Point]:
    points: dict[str, Point] = {}
    for trial in trials:
        if trial.measurement is None or trial.digest in points or record.baseline is None:
            continue
        measurement, test = trial.measurement, None
        if final := finals.get(trial.digest):
            measurement, test = replace(measurement, latency=final.latency), final.test
        points[trial.digest] = Point(trial, measurement, goals.feasible(measurement, record.baseline), test)
    return list(points.values())


def _costs(points: Sequence[Point], goals: Goals) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = [goals.costs(point.measurement) for point in points]
    return np.array(rows, dtype=np.float64).reshape(len(points), len(goals.objectives))


def _front(points: Sequence[Point], feasible: Sequence[Point], goals: Goals) -> list[Point]:
    """Points that no other beats; a feasible one is only beaten by another feasible one.

    Otherwise a bound on what is no objective could push every feasible point off the front. Estimates
    are no members and beat nobody.
    """
    points = _known_in_full(points)
    overall = [points[row] for row in front_rows(_costs(points, goals))]
    kept = [feasible[row] for row in front_rows(_costs(feasible, goals))]
    return [*kept, *(point for point in overall if not point.feasible)]


def _known_in_full(points: Sequence[Point]) -> list[Point]:
    """Leave out the points whose accuracy is an estimate."""
    return [point for point in points if not point.measurement.accuracy.is_estimate]


def _nearest(points: Sequence[Point], goals: Goals, baseline: Baseline | None) -> Point:
    assert baseline is not None

    def excess(point: Point) -> float:
        violations = goals.constraints.violations(point.measurement, baseline)
        if goals.constraints.max_accuracy_drop is not None:
            # The others are relative to their bound already.
            violations["max_accuracy_drop"] /= goals.constraints.drop_scale(baseline)
        return sum(max(value, 0.0) for value in violations.values())

    return min(points, key=excess)


def _latency_json(latency: Latency) -> dict[str, Any]:
    return {
        "latency_ms": latency.latency_ms,
        "latency_ms_ci": latency.latency_ms_ci,
        "latency_p90_ms": latency.p90_ms,
        "speedup": latency.speedup,
        "speedup_ci": latency.speedup_ci,
    }
