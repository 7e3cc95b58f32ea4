"""Hindsight: how right the forecasts were, and how much of a search's accuracy was luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autoq.search.outcome import Point
from autoq.search.records import TrialRecord, TrialState

_FEWEST = 4  # forecasts below which a rank correlation says nothing


@dataclass(frozen=True, slots=True)
class LatencyHindsight:
    """Latencies foretold before they were measured, held against the measurements."""

    n_trials: int
    median_error: float  # absolute, as a fraction of the measured latency
    rank_correlation: float | None  # Spearman's; None for too few, or for latencies that are all alike

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Optimism:
    """What the search split promised beyond what the test split bore out, for one point."""

    trial: int
    search_drop: float
    test_drop: float
    n_examples: int  # of the smaller split: the noise of a difference is that of the smaller one

    @property
    def value(self) -> float:
        """Test drop minus search drop: positive where the search was too hopeful."""
        return self.test_drop - self.search_drop

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return {**asdict(self), "value": self.value}


def latency_hindsight(trials: Sequence[TrialRecord]) -> LatencyHindsight | None:
    """Compare every latency that was foretold with what came out; None where nothing was foretold."""
    pairs = [
        (float(trial.reasons["predicted_latency_ms"]), trial.measurement.latency.latency_ms)
        for trial in trials
        if trial.state is TrialState.COMPLETE
        and trial.measurement is not None
        and "predicted_latency_ms" in trial.reasons
    ]
    if not pairs:
        return None
    from scipy.stats import spearmanr  # half a second: not for a search, which asks at its end

    foretold, measured = np.array(pairs).T
    error = float(np.median(np.abs(foretold / measured - 1.0)))
    constant = np.ptp(foretold) == 0 or np.ptp(measured) == 0
    correlation = None if len(pairs) < _FEWEST or constant else float(spearmanr(foretold, measured).statistic)
    return LatencyHindsight(len(pairs), error, correlation)


def optimism_of(point: Point | None) -> Optimism | None:
    """Hold a point's drop on the search split against that on the test split; None without one."""
    if point is None or point.test is None:
        return None
    search, test = point.measurement.accuracy, point.test.accuracy
    return Optimism(point.trial.number, search.drop, test.drop, min(search.n_examples, test.n_examples))
