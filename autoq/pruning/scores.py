"""Which units of a channel group to remove first: one nested order a group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Criterion
from autoq.pruning.consumers import Consumer, Indices, columns_by_unit
from autoq.variants.second_order import factor

Scores = npt.NDArray[np.float64]

N_ROUNDS = 16
_DAMPING = 0.01  # in units of the mean of the diagonal, as for rounding
_SCORED_COLUMNS = 4608  # gathered at a time


def removal_order(
    consumers: Sequence[Consumer],
    n_units: int,
    criterion: Criterion = Criterion.OBS,
    *,
    n_rounds: int = N_ROUNDS,
) -> Indices:
    """Order the units of a group, the least important first; each removal keeps the ones before it.

    Args:
        consumers: What reads the group. Without any, units go from the last to the first.
        n_units: How many units there are.
        criterion: What to score by; `fisher` is `obs` here, for groups whose gradients are not known
            (see `autoq.pruning.fisher` for the others).
        n_rounds: For `obs`, how often scores are taken anew, after equal shares of removals.

    Returns:
        Shape (n_units,), every unit once.
    """
    if not consumers:
        return np.arange(n_units, dtype=np.int64)[::-1].copy()
    if criterion in (Criterion.OBS, Criterion.FISHER):
        return _order_by_obs(consumers, n_units, n_rounds)
    score = magnitude_scores if criterion is Criterion.MAGNITUDE else activation_scores
    return _rising(_summed(score(one, n_units) for one in consumers))


def magnitude_scores(consumer: Consumer, n_units: int) -> Scores:
    """Sum the squares of the weights that read each unit."""
    squares = np.square(consumer.weight, dtype=np.float64).sum(axis=0)
    return _by_unit(consumer, squares, n_units)


def activation_scores(consumer: Consumer, n_units: int) -> Scores:
    """Sum E[x²] over the columns of each unit."""
    first, second = (np.diagonal(half).astype(np.float64) for half in consumer.halves)
    energy = consumer.share * first + (1.0 - consumer.share) * second
    return _by_unit(consumer, energy, n_units)


def _by_unit(consumer: Consumer, figures: Scores, n_units: int) -> Scores:
    found = np.zeros(n_units)
    np.add.at(found, consumer.units, figures)
    return found


def _summed(scores: Iterable[Scores]) -> Scores:
    total: Scores = np.stack(list(scores)).sum(axis=0)
    return total


def _rising(scores: Scores) -> Indices:
    return np.argsort(scores, kind="stable").astype(np.int64)


def _order_by_obs(consumers: Sequence[Consumer], n_units: int, n_rounds: int) -> Indices:
    surgeons = [_Surgeon(one, n_units) for one in consumers]
    alive = np.ones(n_units, np.bool_)
    order: list[Indices] = []
    stops = [n_units * index // n_rounds for index in range(1, n_rounds + 1)]
    for n_removed in stops:
        n_now = n_removed - int(n_units - alive.sum())
        if n_now == 0:
            continue
        total = _summed(surgeon.scores(alive) for surgeon in surgeons)
        living = np.flatnonzero(alive)
        chosen = living[_rising(total[living])[:n_now]]
        alive[chosen] = False
        order.append(chosen)
        if alive.any():
            for surgeon in surgeons:
                surgeon.remove(chosen)
    return np.concatenate(order)


class _Surgeon:
    """A consumer in the course of its surgery: what is left, refitted, with the inverse of its moments.

    The optimal brain surgeon for groups of columns: ZipLM, Kurtic et al. 2023 (arXiv:2302.04089),
    equations 2 to 4. Scores are shares of the variance of the consumer's outputs, so that a consumer
    with large outputs does not outvote the others.
    """

    def __init__(self, consumer: Consumer, n_units: int) -> None:
        covariance = consumer.covariance
        factored = factor(covariance[None], _DAMPING)
        self._inverse = factored.upper[0].T @ factored.upper[0]
        # What never varies costs nothing: the bias takes it over.
        self._weight = np.where(factored.dead[0], np.float32(0.0), consumer.weight)
        self._units = consumer.units.copy()
        self._n_units = n_units
        energy = np.einsum("ij,ij->", consumer.weight @ covariance, consumer.weight, dtype=np.float64)
        self._unit_error = 1.0 / max(float(energy), float(np.finfo(np.float32).tiny))

    def scores(self, alive: npt.NDArray[np.bool_]) -> Scores:
        """Return w_S [(A⁻¹)_SS]⁻¹ w_Sᵀ of every unit, summed over rows; 0 for units that are gone."""
        found = np.zeros(self._n_units)
        for units, columns in self._batches(alive):
            inverse = self._inverse[columns[:, :, None], columns[:, None, :]].astype(np.float64)
            weight = self._weight[:, columns].transpose(1, 2, 0).astype(np.float64)  # (units, columns, rows)
            found[units] = np.einsum("usr,usr->u", weight, np.linalg.solve(inverse, weight))
        return found * self._unit_error

    def remove(self, units: Indices) -> None:
        """Take units out: refit the other weights and downdate the inverse (equations 3 and 4)."""
        gone = np.isin(self._units, units)
        if not gone.any():
            return
        stays = ~gone
        pivot = self._inverse[np.ix_(gone, gone)]
        across = self._inverse[np.ix_(gone, stays)]
        solved = np.linalg.solve(pivot.astype(np.float64), across.astype(np.float64)).astype(np.float32)
        self._weight = self._weight[:, stays] - self._weight[:, gone] @ solved
        self._inverse = self._inverse[np.ix_(stays, stays)] - across.T @ solved
        self._units = self._units[stays]

    def _batches(self, alive: npt.NDArray[np.bool_]) -> Iterator[tuple[Indices, Indices]]:
        """Yield units that have equally many columns, with these: (units,) and (units, columns)."""
        by_unit = columns_by_unit(self._units, self._n_units)
        living = sorted(np.flatnonzero(alive), key=lambda unit: len(by_unit[unit]))
        for size, units in groupby(living, key=lambda unit: len(by_unit[unit])):
            chosen = np.fromiter(units, np.int64)
            at_once = max(1, math.floor(_SCORED_COLUMNS / max(size, 1)))
            for start in range(0, len(chosen) if size else 0, at_once):
                part = chosen[start : start + at_once]
                yield part, np.stack([by_unit[unit] for unit in part])


def ranked(order: Indices, width: int) -> Indices:
    """Return the units that stay at a width, rising."""
    return np.sort(order[len(order) - width :])
