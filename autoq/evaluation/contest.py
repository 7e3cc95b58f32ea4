"""Whether a candidate is worth the rest of the split, and what its first examples say if it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.measurements import Accuracy, Interval
from autoq.evaluation.batches import Piece
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.order import Positions, ScoringOrder
from autoq.evaluation.racing import MISS, Race, confidence_interval
from autoq.evaluation.scores import Score, compare
from autoq.evaluation.statistics import Values

_RACED_SHARE = 0.9  # of the split; what is left then is a small price for an exact score


@dataclass(frozen=True, eq=False)
class Opponent:
    """A model that has been scored on the whole split: what a candidate is raced against."""

    values: Values  # (n,) per example
    allowed_drop: float  # in the metric's unit; a larger mean drop from it ends the race
    alpha: float = 0.01


@dataclass(frozen=True, slots=True)
class Stopping:
    """When scoring a candidate may end before the end of the split."""

    n_max: int | None = None  # examples, whatever they say
    opponent: Opponent | None = None


NEVER = Stopping()


class Contest:
    """The values of one candidate as they come in, in the order of the split."""

    def __init__(self, order: ScoringOrder, metric: MetricSpec, baseline: Score, stopping: Stopping) -> None:
        """Begin; the values of each block are filled in before `verdict_after` is asked.

        Args:
            order: Of the split.
            metric: A mean over examples; with bounds, if there is an opponent.
            baseline: Score of the float model, per example.
            stopping: When to stop.
        """
        self.values: Values = np.full(order.n_examples, np.nan)  # (n,) by position in the split
        self._order, self._metric, self._baseline, self._stopping = order, metric, baseline, stopping
        self._done: list[Piece] = []
        self._n_done = 0
        self._race: Race | None = None
        if (opponent := stopping.opponent) is not None:
            allowed = self._in_draws(opponent.allowed_drop)
            self._race = Race(len(order.pieces), allowed, alpha=opponent.alpha)

    def verdict_after(self, block: Sequence[Piece]) -> Accuracy | None:
        """Return the estimate to stop with, or None to go on, once a block has its values."""
        self._done += block
        self._n_done += sum(piece.n_examples for piece in block)
        if self._n_done == self._order.n_examples:
            return None
        if self._stopping.n_max is not None and self._n_done >= self._stopping.n_max:
            return self._first_impression()
        if self._race is None or (opponent := self._stopping.opponent) is None:
            return None
        is_lost = self._race.feed(self._draws(opponent.values, block))
        is_worth_it = self._n_done <= _RACED_SHARE * self._order.n_examples
        return self._raced_out(opponent) if is_lost and is_worth_it else None

    @property
    def _span(self) -> float:
        span = self._metric.span
        assert span is not None, "only metrics with bounds are raced"
        return span

    @property
    def _baseline_values(self) -> Values:
        assert self._baseline.values is not None, "only means over examples are stopped early"
        return self._baseline.values

    def _draws(self, reference: Values, pieces: Sequence[Piece]) -> Values:
        """Sum what each batch loses beside a reference, scaled to [-1, 1]."""
        positions = _positions(pieces)
        lost = self._metric.sign * (reference[positions] - self.values[positions]) / self._span
        starts = np.cumsum([0, *(piece.n_examples for piece in pieces[:-1])])
        # A value may pass its bounds by rounding.
        return np.clip(np.add.reduceat(lost, starts) / self._order.largest, -1.0, 1.0)

    def _in_draws(self, drop: float) -> float:
        """Turn a mean drop over examples into the mean of the draws."""
        order = self._order
        return drop / self._span * order.n_examples / (order.largest * len(order.pieces))

    def _raced_out(self, opponent: Opponent) -> Accuracy:
        """Estimate the drop of a candidate that lost its race: the mean of what was seen is biased.

        The interval is valid whenever one stops. The race has shown, at its own α, by how much the
        candidate is at least worse than an opponent whose drop is known: the interval ends there, and
        pays for it.
        """
        draws = self._draws(self._baseline_values, self._done)
        unit = self._in_draws(1.0)
        alpha = MISS - opponent.alpha
        low, high = (end / unit for end in confidence_interval(draws, len(self._order.pieces), alpha=alpha))
        lost = self._metric.sign * (self._baseline.value - float(opponent.values.mean()))
        low = max(low, lost + opponent.allowed_drop)
        high = max(min(high, self._span), low)  # a last batch that is short leaves draws some room
        return self._estimate((low + high) / 2, (low, high))

    def _first_impression(self) -> Accuracy:
        """Estimate the drop from a number of examples fixed beforehand, so that their mean is unbiased."""
        positions = _positions(self._done)
        before, after = self._baseline_values[positions], self.values[positions]
        found = compare(
            Score(float(before.mean()), before, len(before)),
            Score(float(after.mean()), after, len(after)),
            self._metric,
        )
        return self._estimate(found.drop, found.drop_ci)

    def _estimate(self, drop: float, interval: Interval | None) -> Accuracy:
        value = self._baseline.value - self._metric.sign * drop
        return Accuracy(value, drop, interval, self._n_done, is_estimate=True)


def _positions(pieces: Sequence[Piece]) -> Positions:
    return np.concatenate([piece.positions for piece in pieces])
