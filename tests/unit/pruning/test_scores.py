from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from autoq.core.choices import Criterion
from autoq.pruning.consumers import Consumer
from autoq.pruning.scores import ranked, removal_order

Doubles = NDArray[np.float64]


def consumer_of(vectors: Doubles, weight: Doubles, units: list[int]) -> Consumer:
    first, second = vectors[::2], vectors[1::2]
    return Consumer(
        layer="layer",
        row_group=0,
        columns=np.arange(vectors.shape[1]),
        units=np.array(units),
        weight=weight.astype(np.float32),
        halves=tuple((half.T @ half / len(half)).astype(np.float32) for half in (first, second)),  # type: ignore[arg-type]
        share=len(first) / len(vectors),
        mean=vectors.mean(axis=0).astype(np.float32),
    )


def draw(n_columns: int, *, rows: int = 400, outputs: int = 3, seed: int = 0) -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, n_columns)) @ rng.standard_normal((n_columns, n_columns))
    return mixed + 1.0, rng.standard_normal((outputs, n_columns))


def refit_error(vectors: Doubles, weight: Doubles, stays: list[int], damping: float) -> float:
    """Least squares on the inputs themselves, with a constant and rows for the damping: share lost."""
    centred = vectors - vectors.mean(axis=0)
    n, columns = centred.shape
    unit = np.square(centred).sum(axis=0).mean() / n
    damped = np.concatenate([centred, np.sqrt(n * damping * unit) * np.eye(columns)])
    wanted = damped @ weight.T
    fitted = np.linalg.lstsq(damped[:, stays], wanted, rcond=None)[0]
    lost = np.square(wanted - damped[:, stays] @ fitted).sum() / n
    return float(lost / np.square(centred @ weight.T).sum() * n)


@pytest.mark.parametrize("n_taps", [1, 3])
def test_one_round_a_unit_removes_what_costs_least_after_an_explicit_refit(n_taps: int) -> None:
    n_units = 6
    units = [unit for unit in range(n_units) for _ in range(n_taps)]
    vectors, weight = draw(n_units * n_taps)
    order = removal_order([consumer_of(vectors, weight, units)], n_units, n_rounds=n_units)
    alive = list(range(n_units))
    for removed in order[:-1]:
        costs = {
            unit: refit_error(
                vectors, weight, [c for c, u in enumerate(units) if u in alive and u != unit], damping=0.01
            )
            for unit in alive
        }
        assert costs[int(removed)] == pytest.approx(min(costs.values()), rel=1e-3)
        alive.remove(int(removed))


def test_scores_of_consumers_are_summed_as_shares_of_their_outputs() -> None:
    """The one with huge outputs does not decide alone: unit 1 costs the other everything."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 2))
    large = consumer_of(vectors, np.array([[110.0, 90.0]]), [0, 1])
    small = consumer_of(vectors, np.array([[0.0, 0.1]]), [0, 1])
    assert removal_order([large], 2).tolist() == [1, 0]
    assert removal_order([large, small], 2).tolist() == [0, 1]


def test_a_copy_of_another_channel_goes_first_and_then_the_other_stays() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((600, 4))
    vectors[:, 2] = vectors[:, 0]
    weight = np.array([[5.0, 1.0, 5.0, 1.0]])
    order = removal_order([consumer_of(vectors, weight, [0, 1, 2, 3])], 4, n_rounds=4).tolist()
    assert order[0] in (0, 2)
    assert order[-1] in (0, 2)
    magnitude = removal_order([consumer_of(vectors, weight, [0, 1, 2, 3])], 4, Criterion.MAGNITUDE)
    assert set(magnitude[:2].tolist()) == {1, 3}


def test_a_channel_that_never_varies_goes_first_however_large_its_weights() -> None:
    vectors, weight = draw(5)
    vectors[:, 3] = 7.0
    weight[:, 3] = 100.0
    assert removal_order([consumer_of(vectors, weight, [0, 1, 2, 3, 4])], 5)[0] == 3


def test_cheap_criteria_are_sums_over_columns_and_consumers() -> None:
    vectors, weight = draw(6)
    units = [0, 0, 1, 1, 2, 2]
    one, other = consumer_of(vectors, weight, units), consumer_of(2 * vectors, 3 * weight, units)
    squares = np.square(weight).sum(axis=0).reshape(3, 2).sum(axis=1)
    assert removal_order([one, other], 3, Criterion.MAGNITUDE).tolist() == np.argsort(squares).tolist()
    energy = np.square(vectors).mean(axis=0).reshape(3, 2).sum(axis=1)
    assert removal_order([one, other], 3, Criterion.ACTIVATION).tolist() == np.argsort(energy).tolist()


@pytest.mark.parametrize("criterion", list(Criterion))
@pytest.mark.parametrize("n_units", [1, 5, 40])
def test_every_unit_has_one_place(criterion: Criterion, n_units: int) -> None:
    vectors, weight = draw(n_units)
    order = removal_order([consumer_of(vectors, weight, list(range(n_units)))], n_units, criterion)
    assert sorted(order.tolist()) == list(range(n_units))


def test_units_of_different_sizes_are_scored_side_by_side() -> None:
    vectors, weight = draw(6)
    order = removal_order([consumer_of(vectors, weight, [0, 1, 1, 2, 2, 2])], 3, n_rounds=3)
    first = int(order[0])
    spans = {0: [0], 1: [1, 2], 2: [3, 4, 5]}
    costs = {
        unit: refit_error(vectors, weight, [c for c in range(6) if c not in span], damping=0.01)
        for unit, span in spans.items()
    }
    assert costs[first] == pytest.approx(min(costs.values()), rel=1e-3)


def test_without_a_consumer_the_last_units_go_first() -> None:
    assert removal_order([], 3).tolist() == [2, 1, 0]


def test_the_units_that_stay_are_nested() -> None:
    order = np.array([3, 1, 0, 2])
    assert [ranked(order, width).tolist() for width in (1, 2, 3, 4)] == [[2], [0, 2], [0, 1, 2], [0, 1, 2, 3]]
