"""Racing: stop scoring a candidate once what has been seen rules it out. Pure arithmetic, no model.

The examples are drawn without replacement from a finite split, in a random order. A game is played
against the claim that the mean over the whole split is at most so much: a fair game under the claim,
so that its capital exceeds 1/α with a probability of at most α, however often one looks (Ville 1939;
Waudby-Smith & Ramdas, "Confidence sequences for sampling without replacement", 2020, and "Estimating
means of bounded random variables by betting", 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autoq.evaluation.statistics import Values

MISS = 0.05  # probability that an interval that is told misses the truth

_SLACK = 1e-9  # rounding of a sum must not make a claim impossible
_GRID = 257  # means that a confidence sequence asks about at a time; odd, so that the middle is one
_BLOCK = 256  # draws that are worked on at a time, which bounds the memory


@dataclass(frozen=True, slots=True)
class RacingSettings:
    """When scoring may stop before the end of the search split."""

    max_accuracy_drop: float | None = None  # in the metric's unit
    max_latency_ms: float | None = None
    max_latency_ratio: float | None = None  # of the baseline's latency
    alpha: float = 0.01  # chance that a race stops a candidate that keeps the bound
    seed: int = 0  # of the order of the examples
    n_first: int = 128  # examples that a candidate over the latency budget is scored on
    axes: tuple[str, ...] = ("latency",)  # of latency, size, storage: what counts beside accuracy

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < MISS:
            raise ValueError(f"alpha is {self.alpha}, expected a value in (0, {MISS})")


class Race:
    """The claim that the mean of all draws is at most `allowed`, tested while they come in.

    m_i = (N·allowed − Σ_{j<i} d_j)/(N − i + 1) is the mean of what is left if the claim is just true;
    the bet on d_i exceeding it is λ_i = clip((μ − allowed)/(σ² + (μ − allowed)²), 0, 0.5/(1 + |m_i|))
    with μ and σ² of the past only, 0 where there is none. The claim is lost when the capital
    Π (1 + λ_i (d_i − m_i)) exceeds 1/α, or when m_i < −1: nothing left could make it true.
    """

    def __init__(self, n: int, allowed: float, *, alpha: float = 0.01) -> None:
        """Begin.

        Args:
            n: Draws in all.
            allowed: Mean that is claimed not to be exceeded; draws lie in [-1, 1].
            alpha: Probability of losing a claim that is true.
        """
        self._n, self._allowed = n, allowed
        self._threshold = math.log(1 / alpha)
        self._log_capital = 0.0
        self._past = _Past()
        self._is_lost = False

    @property
    def is_lost(self) -> bool:
        """Whether the claim has been refuted; it stays so."""
        return self._is_lost

    @property
    def log_capital(self) -> float:
        """Logarithm of the capital after all draws so far, or of those that it took to lose."""
        return self._log_capital

    def feed(self, draws: Values) -> bool:
        """Take in the next draws, (k,) in [-1, 1], at most as many as are left; say whether it is lost."""
        if self._is_lost or len(draws) == 0:
            return self._is_lost
        past = self._past.before_each(draws)
        rest = _mean_of_rest(self._allowed, self._n, past)
        edge = past.mean - self._allowed
        bets = np.clip(_kelly(edge, past.variance), 0.0, _largest_bet(rest))
        capital = self._log_capital + np.cumsum(np.log1p(bets * (draws - rest)))
        impossible = rest < -1.0 - _SLACK
        lost = impossible | (capital > self._threshold)
        if lost.any():
            at = int(np.argmax(lost))
            self._is_lost = True
            self._log_capital = math.inf if impossible[at] else float(capital[at])
        else:
            self._log_capital = float(capital[-1])
            self._past = self._past.after(draws)
        return self._is_lost


def confidence_interval(draws: Values, n: int, *, alpha: float = MISS) -> tuple[float, float]:
    """Where the mean of all draws lies, given the first; valid however it was decided to stop.

    The game of `Race` is played against every mean m of a grid, with bets on either side: λ is clipped
    to ±0.5/(1 + |m_i|). A mean whose game ever exceeded 1/α is ruled out for good, so the intervals of
    one sequence are nested. Those that are left are enclosed, outwards by one step of the grid, which is
    refined once. The bets follow each mean's own estimate of the best bet ("aGRAPA"), which comes out
    narrower than a hedged pair of one-sided games at the same level, and shares its code with the race.

    Args:
        draws: (k,) in [-1, 1], in the order they came, k <= n.
        n: Draws in all.
        alpha: Probability of missing the mean at any time.
    """
    total, n_left = float(draws.sum()), n - len(draws)
    low, high = (total - n_left) / n, (total + n_left) / n  # nothing else is possible
    for _ in range(2):
        grid = np.linspace(low, high, _GRID)
        kept = np.flatnonzero(_survive(grid, draws, n, alpha))
        if len(kept) == 0:  # the grid is coarser than what is left: the mean of the draws is inside
            kept = np.array([int(np.argmin(np.abs(grid - total / len(draws))))])
        low, high = float(grid[max(kept[0] - 1, 0)]), float(grid[min(kept[-1] + 1, _GRID - 1)])
    return low, high


@dataclass(frozen=True, slots=True)
class _Past:
    """How many draws there have been, their sum, and the sum of their squares."""

    n: Values | float = 0.0
    total: Values | float = 0.0
    squares: Values | float = 0.0

    def before_each(self, draws: Values) -> _Past:
        """Return the past of each of the next draws."""
        return _Past(
            self.n + np.arange(len(draws), dtype=np.float64),
            self.total + np.cumsum(draws) - draws,
            self.squares + np.cumsum(draws**2) - draws**2,
        )

    def after(self, draws: Values) -> _Past:
        return _Past(
            self.n + len(draws), self.total + float(draws.sum()), self.squares + float((draws**2).sum())
        )

    @property
    def mean(self) -> Values:
        """Mean of the past; NaN where there is none."""
        n = np.asarray(self.n, dtype=np.float64)
        return np.asarray(np.divide(self.total, n, out=np.full(n.shape, np.nan), where=n > 0))

    @property
    def variance(self) -> Values:
        """Variance of the past; NaN where there is none."""
        n = np.asarray(self.n, dtype=np.float64)
        squares = np.divide(self.squares, n, out=np.full(n.shape, np.nan), where=n > 0)
        return np.asarray(np.maximum(squares - self.mean**2, 0.0), dtype=np.float64)


def _mean_of_rest(claimed: Values | float, n: int, past: _Past) -> Values:
    """Mean of the draws from this one on, if the mean of all is as claimed."""
    return np.asarray((n * claimed - past.total) / (n - past.n), dtype=np.float64)


def _largest_bet(rest: Values) -> Values:
    """A bet that can lose at most half of the capital, whatever comes."""
    return np.asarray(0.5 / (1.0 + np.abs(rest)), dtype=np.float64)


def _kelly(edge: Values, variance: Values) -> Values:
    """The bet that grows the capital fastest, to second order; 0 where nothing is known."""
    scale = variance + edge**2
    return np.asarray(np.divide(edge, scale, out=np.zeros(scale.shape), where=scale > 0))


def _survive(
    means: Values, draws: Values, n: int, alpha: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Say which means no game has ruled out so far."""
    threshold = math.log(1 / alpha)
    capital = np.zeros(len(means))
    alive = np.ones(len(means), dtype=np.bool_)
    so_far, claimed = _Past(), means[:, None]
    for start in range(0, len(draws), _BLOCK):
        block = draws[start : start + _BLOCK]
        past = so_far.before_each(block)
        rest = _mean_of_rest(claimed, n, past)
        limit = _largest_bet(rest)
        edge = past.mean[None] - claimed
        bets = np.clip(_kelly(edge, np.broadcast_to(past.variance, edge.shape)), -limit, limit)
        grown = capital[:, None] + np.cumsum(np.log1p(bets * (block - rest)), axis=1)
        possible = np.abs(rest) <= 1.0 + _SLACK
        alive &= ((grown <= threshold) & possible).all(axis=1)
        capital, so_far = grown[:, -1], so_far.after(block)
    return alive
