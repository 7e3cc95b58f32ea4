"""What a candidate is worth trying: expected gain of the front, or of the best point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from autoq.core.fronts import front_rows
from autoq.core.hypervolume import hypervolume, hypervolume_gains
from autoq.core.measurements import Baseline, Measurement
from autoq.search.goals import Goals, Objective, cost_of
from autoq.search.guide import Floats

_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_USUAL_DROP = 0.02  # allowed where nobody says so, as a share of the baseline's accuracy


@dataclass(frozen=True)
class Forecast:
    """What is expected of n candidates; each array (n,)."""

    drop: Floats
    drop_sd: Floats
    latency: Floats  # ratio to the float model
    latency_sd: Floats
    size: Floats  # bytes of the deployed file, ratio to the float model's
    bundle: Floats  # bytes of the bundle, ratio to the float model's file

    def __len__(self) -> int:
        return len(self.drop)


class Worth:
    """Judges forecasts against what is measured, for one search's goals."""

    def __init__(self, goals: Goals, baseline: Baseline, measured: Sequence[Measurement]) -> None:
        """Place the reference point.

        Axes are max(drop, 0), ln latency, ln size and ln bundle ratio, as far as they are objectives. The
        reference is twice the allowed drop and the float model's figures, or the budget where there is one.
        Where no drop is bounded, a usual one is allowed, or what the other bounds have been seen to cost.
        What breaks a bound on something else than an objective is no part of the front.
        """
        self._goals, self._baseline = goals, baseline
        self._measured = list(measured)
        self._feasible = [one for one in self._measured if goals.feasible(one, baseline)]
        bounds = goals.constraints
        allowed = bounds.max_accuracy_drop
        self.max_drop = max(self._usual_drop() if allowed is None else allowed, 1e-6)
        ratios = [bounds.max_latency_ratio, _over(bounds.max_latency_ms, baseline.latency_ms)]
        self.max_latency = min((one for one in ratios if one is not None), default=None)
        self.max_size = _over(bounds.max_size_bytes, baseline.size_bytes)
        self.max_bundle = _over(bounds.max_bundle_bytes, baseline.size_bytes)
        tops = {
            Objective.ACCURACY: 2.0 * self.max_drop,
            Objective.LATENCY: _top(self.max_latency),
            Objective.SIZE: _top(self.max_size),
            Objective.STORAGE: _top(self.max_bundle),
        }
        self.reference: Floats = np.array([tops[objective] for objective in goals.objectives])
        found = Forecast(
            np.array([one.accuracy.drop for one in self._measured]),
            np.zeros(len(self._measured)),
            np.array([one.latency.latency_ms / baseline.latency_ms for one in self._measured]),
            np.zeros(len(self._measured)),
            np.array([one.size.size_bytes / baseline.size_bytes for one in self._measured]),
            np.array([one.size.bundle_bytes / baseline.size_bytes for one in self._measured]),
        )
        # At the reference a point takes up no volume; a bound that is met exactly is kept with even chances.
        is_kept = self._chance_beside_objectives(found) >= 0.5
        self._front = np.where(is_kept[:, None], self._axes(found, 0.5), self.reference)
        self.volume = hypervolume(self._front, self.reference)

    def _usual_drop(self) -> float:
        cost = float(np.median([max(one.accuracy.drop, 0.0) for one in self._feasible] or [0.0]))
        return max(_USUAL_DROP * abs(self._baseline.accuracy), cost)

    @property
    def has_bounds(self) -> bool:
        """Whether there is a best point to look for, beside the front."""
        return self._goals.constraints != type(self._goals.constraints)()

    @property
    def any_feasible(self) -> bool:
        """Whether something that is measured keeps every bound."""
        return bool(self._feasible)

    def held(self) -> Floats:
        """Volume that the front would lose without each measured candidate; (n,)."""
        lost = np.zeros(len(self._front))
        for row in front_rows(self._front):  # what is dominated holds nothing
            lost[row] = self.volume - hypervolume(np.delete(self._front, row, axis=0), self.reference)
        return lost

    def front_gain(self, forecast: Forecast) -> Floats:
        """Expected gain in hypervolume of each candidate, as a share of what the front has, if anything.

        Bounds on what is no objective count by the chance to keep them.
        """
        gains = np.zeros(len(forecast))
        for quantile in _QUANTILES:
            gains += hypervolume_gains(self._axes(forecast, quantile), self._front, self.reference)
        gains *= self._chance_beside_objectives(forecast)
        return gains / len(_QUANTILES) / (self.volume or 1.0)

    def best_gain(self, forecast: Forecast) -> Floats:
        """Expected gain in what decides the best point, times the chance to keep every bound."""
        kept = self.chance(forecast)
        decisive = self._goals.decisive
        if decisive is Objective.ACCURACY:
            least = min((one.accuracy.drop for one in self._feasible), default=2.0 * self.max_drop)
            return kept * _expected_below(forecast.drop, forecast.drop_sd, least) / self.max_drop
        of_float = {
            Objective.LATENCY: self._baseline.latency_ms,
            Objective.SIZE: self._baseline.size_bytes,
            Objective.STORAGE: self._baseline.size_bytes,
        }[decisive]
        least = min((cost_of(decisive, one) / of_float for one in self._feasible), default=1.0)
        ratio, sd = {
            Objective.LATENCY: (forecast.latency, forecast.latency_sd),
            Objective.SIZE: (forecast.size, np.zeros(len(forecast))),
            Objective.STORAGE: (forecast.bundle, np.zeros(len(forecast))),
        }[decisive]
        return kept * _expected_below(np.log(ratio), sd / ratio, math.log(least))

    def chance(self, forecast: Forecast) -> Floats:
        """Probability that each candidate keeps every bound."""
        return _product(len(forecast), self._chances(forecast).values())

    def _chance_beside_objectives(self, forecast: Forecast) -> Floats:
        """Probability that each candidate keeps the bounds on what is no objective."""
        chances = self._chances(forecast).items()
        return _product(
            len(forecast), (chance for what, chance in chances if what not in self._goals.objectives)
        )

    def _chances(self, forecast: Forecast) -> dict[Objective, Floats]:
        """Probability of keeping each bound, by what is bounded."""
        kept: dict[Objective, Floats] = {}
        if self._goals.constraints.max_accuracy_drop is not None:
            spare = self.max_drop - forecast.drop
            kept[Objective.ACCURACY] = _normal_cdf(spare / np.maximum(forecast.drop_sd, 1e-9))
        if self.max_latency is not None:
            spare = self.max_latency - forecast.latency
            kept[Objective.LATENCY] = _normal_cdf(spare / np.maximum(forecast.latency_sd, 1e-9))
        if self.max_size is not None:
            kept[Objective.SIZE] = (forecast.size <= self.max_size).astype(np.float64)
        if self.max_bundle is not None:
            kept[Objective.STORAGE] = (forecast.bundle <= self.max_bundle).astype(np.float64)
        return kept

    def excess(self, forecast: Forecast) -> Floats:
        """By how much each candidate is expected to break its bounds, summed; for when none can be kept."""
        total = np.zeros(len(forecast))
        if self._goals.constraints.max_accuracy_drop is not None:
            scale = self._goals.constraints.drop_scale(self._baseline)
            total += np.maximum(forecast.drop - self.max_drop, 0.0) / scale
        pairs = (
            (self.max_latency, forecast.latency),
            (self.max_size, forecast.size),
            (self.max_bundle, forecast.bundle),
        )
        for bound, ratio in pairs:
            if bound is not None:
                total += np.maximum(ratio / bound - 1.0, 0.0)
        return total

    def _axes(self, forecast: Forecast, quantile: float) -> Floats:
        drop = forecast.drop + _normal_quantile(quantile) * forecast.drop_sd
        columns = {
            Objective.ACCURACY: np.maximum(drop, 0.0),
            Objective.LATENCY: np.log(forecast.latency),
            Objective.SIZE: np.log(forecast.size),
            Objective.STORAGE: np.log(forecast.bundle),
        }
        return np.column_stack([columns[objective] for objective in self._goals.objectives])


def _product(n: int, factors: Iterable[Floats]) -> Floats:
    product: Floats = np.ones(n)
    for factor in factors:
        product = product * factor
    return product


def _over(bound: float | None, whole: float) -> float | None:
    return None if bound is None else bound / whole


def _top(bound: float | None) -> float:
    # A hair above the budget, so that a point right at it counts.
    return 1e-9 if bound is None else math.log(bound) + 1e-6


def _expected_below(mean: Floats, sd: Floats, level: float) -> Floats:
    """Expectation of max(level - X, 0) for normal X."""
    spread = np.maximum(sd, 1e-9)
    z = (level - mean) / spread
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    expected: Floats = spread * (z * _normal_cdf(z) + density)
    return expected


# SciPy has these too, and takes a fifth of a second to load: as long as a search may think about a trial.
_erfc = np.frompyfunc(math.erfc, 1, 1)


def _normal_cdf(z: Floats) -> Floats:
    return 0.5 * np.asarray(_erfc(-z / math.sqrt(2.0)), np.float64)


def _normal_quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)
