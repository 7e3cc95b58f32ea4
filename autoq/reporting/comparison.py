"""Two or more searches side by side: who beats whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoq.core.errors import UserError
from autoq.core.fronts import dominates, front_rows
from autoq.reporting.palette import SERIES
from autoq.search.outcome import Outcome, Point, metric_name

_MOST_SEARCHES = len(SERIES)
_TARGET_KEYS = ("runtime", "runtime_version", "threads", "batch_size")

Costs = Callable[[Point], tuple[float, float]]  # latency, drop


@dataclass(frozen=True)
class Member:
    """A member of one search's front, and who beats it.

    Only drop and latency are compared: other objectives may differ between searches.
    """

    search: str
    point: Point
    latency: float  # what is compared: a share of the float model's, or ms
    beaten_by: tuple[tuple[str, int], ...]  # (search, trial) of every member that dominates it


@dataclass(frozen=True)
class Comparison:
    """Fronts of several searches in drop and latency.

    Latencies of one model on one target are compared as shares of the float model's, measured beside
    each candidate: milliseconds of two searches also differ by how busy the machine was.
    """

    outcomes: tuple[Outcome, ...]
    is_relative: bool
    members: tuple[Member, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `autoq compare --json` prints."""
        return {
            "searches": [outcome.record.name for outcome in self.outcomes],
            "latency": "share of the float model's" if self.is_relative else "ms",
            "warnings": list(self.warnings),
            "dominated": self.counts(),
            "members": [
                {
                    "search": member.search,
                    "trial": member.point.trial.number,
                    "accuracy_drop": member.point.measurement.accuracy.drop,
                    "latency_ms": member.point.measurement.latency.latency_ms,
                    "speedup": member.point.measurement.latency.speedup,
                    "beaten_by": [{"search": name, "trial": trial} for name, trial in member.beaten_by],
                }
                for member in self.members
            ],
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each search how many of its members each other search beats, and its `front` in all."""
        names = [outcome.record.name for outcome in self.outcomes]
        table = {}
        for name in names:
            mine = [member for member in self.members if member.search == name]
            beaten = {
                other: sum(any(by == other for by, _ in member.beaten_by) for member in mine)
                for other in names
                if other != name
            }
            table[name] = {"front": len(mine), **beaten}
        return table


def compare(outcomes: Sequence[Outcome]) -> Comparison:
    """Say which members of each front are beaten by members of the others.

    Raises:
        UserError: There are fewer than two searches, too many, one twice, or one without a front.
    """
    names = [outcome.record.name for outcome in outcomes]
    _check(outcomes, names)
    costs = _relative_costs if _is_one_measure(outcomes) else _absolute_costs
    fronts = {outcome.record.name: _front_of(outcome, costs) for outcome in outcomes}
    members = tuple(
        Member(name, point, costs(point)[0], _beaten_by(point, name, fronts, costs))
        for name in names
        for point in fronts[name]
    )
    return Comparison(tuple(outcomes), costs is _relative_costs, members, tuple(_warnings(outcomes)))


def _check(outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    check_names(names)
    if empty := [outcome.record.name for outcome in outcomes if not outcome.front]:
        raise UserError(f"search {empty[0]!r} has no front to compare", hint="no trial of it is measured")


def check_names(names: Sequence[str]) -> None:
    """Refuse a comparison that says nothing.

    Raises:
        UserError: There are fewer than two searches, too many to tell apart, or one twice.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"search {twice[0]!r} is named twice", hint="a search does not differ from itself")
    if not 2 <= len(names) <= _MOST_SEARCHES:
        raise UserError(
            f"cannot compare {len(names)} search{'' if len(names) == 1 else 'es'}",
            hint=f"expected the names of 2 to {_MOST_SEARCHES}",
        )


def _absolute_costs(point: Point) -> tuple[float, float]:
    return point.measurement.latency.latency_ms, point.measurement.accuracy.drop


def _relative_costs(point: Point) -> tuple[float, float]:
    return 1.0 / point.measurement.latency.speedup, point.measurement.accuracy.drop


def _is_one_measure(outcomes: Sequence[Outcome]) -> bool:
    """Whether all searches have the same float model on the same target."""
    first, *others = [outcome.record for outcome in outcomes]
    return all(
        record.model_digest == first.model_digest
        and all(record.environment.get(key) == first.environment.get(key) for key in ("cpu", *_TARGET_KEYS))
        for record in others
    )


def _front_of(outcome: Outcome, costs: Costs) -> list[Point]:
    """Members of a front that are left in drop and latency; feasible ones alone where there are any."""
    feasible = [point for point in outcome.front if point.feasible] or list(outcome.front)
    rows = front_rows(np.array([costs(point) for point in feasible], np.float64).reshape(-1, 2))
    return sorted((feasible[row] for row in rows), key=costs)


def _beaten_by(
    point: Point, name: str, fronts: dict[str, list[Point]], costs: Costs
) -> tuple[tuple[str, int], ...]:
    return tuple(
        (other, rival.trial.number)
        for other, members in fronts.items()
        if other != name
        for rival in members
        if dominates(costs(rival), costs(point))
    )


def _warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """Say what makes the figures less comparable than they look."""
    first, *others = [outcome.record for outcome in outcomes]
    warnings = []
    metrics = {metric_name(record.spec) for record in (first, *others)}
    if len(metrics) > 1:
        warnings.append(f"the metrics differ ({', '.join(sorted(metrics))}): drops are compared, not values")
    if any(record.model_digest != first.model_digest for record in others):
        warnings.append("models, data or metrics differ: a drop is from each search's own float model")
    if any(record.environment.get("cpu") != first.environment.get("cpu") for record in others):
        warnings.append("the CPUs differ: latencies are those of each search's own machine")
    for key in _TARGET_KEYS:
        values = {str(record.environment.get(key)) for record in (first, *others)}
        if len(values) > 1:
            warnings.append(f"the targets differ in {key.replace('_', ' ')} ({', '.join(sorted(values))})")
    return warnings
