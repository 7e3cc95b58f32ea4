"""What a search is for: objectives to trade off, and constraints that a feasible point keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from autoq.core.measurements import Baseline, Measurement


class Objective(StrEnum):
    """An axis of the front."""

    ACCURACY = "accuracy"
    LATENCY = "latency"
    SIZE = "size"  # bytes of the deployed file
    STORAGE = "storage"  # bytes of the storage bundle


def cost_of(objective: Objective, measurement: Measurement) -> float:
    """Value of an objective that is minimised: drop of the metric, milliseconds, bytes."""
    costs = {
        Objective.ACCURACY: measurement.accuracy.drop,
        Objective.LATENCY: measurement.latency.latency_ms,
        Objective.SIZE: float(measurement.size.size_bytes),
        Objective.STORAGE: float(measurement.size.bundle_bytes),
    }
    return costs[objective]


@dataclass(frozen=True, slots=True)
class Constraints:
    """Upper bounds; None is no bound."""

    max_latency_ms: float | None = None
    max_latency_ratio: float | None = None  # of the baseline's latency, in (0, 1] usually
    max_accuracy_drop: float | None = None  # absolute, in the metric's unit
    max_size_bytes: int | None = None
    max_bundle_bytes: int | None = None

    @property
    def only_drop(self) -> bool:
        """Whether the accuracy drop is bounded and nothing else is."""
        others = (self.max_latency_ms, self.max_latency_ratio, self.max_size_bytes, self.max_bundle_bytes)
        return self.max_accuracy_drop is not None and all(bound is None for bound in others)

    def drop_scale(self, baseline: Baseline) -> float:
        """What a drop beyond its bound is counted in, beside budgets in shares of theirs.

        It is the bound, but at least a hundredth of the float model's value: of a bound of nothing every
        drop would be infinitely much.
        """
        return max(self.max_accuracy_drop or 0.0, 0.01 * abs(baseline.accuracy)) or 0.01

    def violations(self, measurement: Measurement, baseline: Baseline) -> dict[str, float]:
        """Return for each bound how far it is broken; zero or less is kept.

        Budgets are relative to the bound, the drop is in the metric's unit: the scale on which
        Optuna sums violations.
        """
        ratio = measurement.latency.latency_ms / baseline.latency_ms
        pairs: Mapping[str, tuple[float, float | None]] = {
            "max_latency_ms": (measurement.latency.latency_ms, self.max_latency_ms),
            "max_latency_ratio": (ratio, self.max_latency_ratio),
            "max_size_bytes": (measurement.size.size_bytes, self.max_size_bytes),
            "max_bundle_bytes": (measurement.size.bundle_bytes, self.max_bundle_bytes),
        }
        found = {name: value / bound - 1.0 for name, (value, bound) in pairs.items() if bound is not None}
        if self.max_accuracy_drop is not None:
            # Half an ulp of the subtraction must not decide: 0.9 - 0.89 > 0.01 in floats.
            found["max_accuracy_drop"] = measurement.accuracy.drop - self.max_accuracy_drop - 1e-9
        return found


@dataclass(frozen=True, slots=True)
class Goals:
    """Objectives in the order of the spec, constraints, and which way the metric runs."""

    objectives: tuple[Objective, ...]
    constraints: Constraints = Constraints()
    maximize: bool = True

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Optuna direction of each objective's natural value."""
        upwards = (Objective.ACCURACY,) if self.maximize else ()
        return ["maximize" if o in upwards else "minimize" for o in self.objectives]

    @property
    def decisive(self) -> Objective:
        """What the best of all feasible points is best in.

        Within a budget of time or bytes it is the accuracy. Where the drop alone is bounded it is the
        latency, or, where that is no objective, the first one that is a cost.
        """
        costs = [one for one in self.objectives if one is not Objective.ACCURACY]
        if not self.constraints.only_drop:
            return Objective.ACCURACY
        return Objective.LATENCY if Objective.LATENCY in costs or not costs else costs[0]

    def values(self, measurement: Measurement) -> list[float]:
        """Natural value of each objective: metric, milliseconds, bytes."""
        return [
            measurement.accuracy.value if one is Objective.ACCURACY else cost_of(one, measurement)
            for one in self.objectives
        ]

    def costs(self, measurement: Measurement) -> list[float]:
        """Values with every objective minimised: the accuracy is its drop."""
        return [cost_of(one, measurement) for one in self.objectives]

    def feasible(self, measurement: Measurement, baseline: Baseline) -> bool:
        """Whether every bound is kept, for all that is known: an estimate was broken off, and never is."""
        if measurement.accuracy.is_estimate:
            return False
        return all(excess <= 0 for excess in self.constraints.violations(measurement, baseline).values())
