from __future__ import annotations

import numpy as np
import pytest

from autoq.core.data import Batch, Split
from autoq.core.measurements import Accuracy
from autoq.evaluation.contest import NEVER, Contest, Opponent, Stopping
from autoq.evaluation.metrics import builtin_metric
from autoq.evaluation.order import ScoringOrder
from autoq.evaluation.scores import Score
from autoq.evaluation.statistics import Values

N = 2000
BASELINE = np.ones(N)
TOP1 = builtin_metric("top1")


def order_of(batch_size: int = 1, *, seed: int = 0, n: int = N) -> ScoringOrder:
    return ScoringOrder.of(Split((Batch({"x": np.zeros((n, 1), np.float32)}),)), batch_size, seed=seed)


def values_with(n_lost: int, *, at_the_end: bool = False) -> Values:
    """A candidate that misses so many examples that the float model hits."""
    values = np.ones(N)
    rows = np.arange(N)[-n_lost:] if at_the_end else np.random.default_rng(0).permutation(N)[:n_lost]
    values[rows] = 0.0
    return values


def run(order: ScoringOrder, values: Values, stopping: Stopping) -> Accuracy | None:
    contest = Contest(order, TOP1, Score(1.0, BASELINE, N), stopping)
    contest.values[:] = values
    verdicts = (contest.verdict_after(block) for block in order.blocks())
    return next((verdict for verdict in verdicts if verdict is not None), None)


def against(values: Values, allowed: float) -> Stopping:
    return Stopping(opponent=Opponent(values, allowed))


def test_a_bad_candidate_is_stopped_and_a_good_one_is_not() -> None:
    bad = run(order_of(), values_with(400), against(BASELINE, 0.01))
    assert bad is not None
    assert bad.is_estimate
    assert bad.n_examples == 128
    assert run(order_of(), values_with(18), against(BASELINE, 0.01)) is None


def test_nothing_stops_a_candidate_that_nobody_races() -> None:
    assert run(order_of(), values_with(1900), NEVER) is None


def test_a_split_sorted_by_difficulty_is_no_trap() -> None:
    """All misses are in the last batches, as in a split sorted by class."""
    kept = values_with(20, at_the_end=True)
    orders = [order_of(batch_size, seed=seed) for batch_size in (1, 20) for seed in range(20)]
    assert all(run(order, kept, against(BASELINE, 0.01)) is None for order in orders)


def test_whoever_is_ruled_out_when_little_is_left_is_scored_in_full() -> None:
    # 1.2 % against 1 %: a race can only know that once nearly everything has been seen.
    assert run(order_of(), values_with(24), against(BASELINE, 0.01)) is None


def test_the_estimate_of_whoever_lost_to_a_candidate_is_no_better_than_that_candidate() -> None:
    rival = values_with(100)
    estimate = run(order_of(), values_with(600), against(rival, 0.0))
    assert estimate is not None
    assert estimate.drop_ci is not None
    assert 0.05 <= estimate.drop_ci[0] < 0.3 < estimate.drop_ci[1]
    assert estimate.value == pytest.approx(1.0 - estimate.drop)


def test_a_last_batch_that_is_short_counts_as_much_as_it_holds() -> None:
    order = order_of(16, n=N - 5)
    contest = Contest(order, TOP1, Score(1.0, BASELINE[:-5], N - 5), against(BASELINE[:-5], 0.01))
    contest.values[:] = 0.0
    verdicts = [contest.verdict_after(block) for block in list(order.blocks())[:3]]
    found = [verdict for verdict in verdicts if verdict is not None]
    assert found
    assert all(verdict.drop_ci is not None and verdict.drop_ci[1] <= 1.0 + 1e-9 for verdict in found)


def test_intervals_of_stopped_candidates_hold_over_many_orders() -> None:
    values = values_with(160)  # 8 %
    found = [run(order_of(seed=seed), values, against(BASELINE, 0.01)) for seed in range(60)]
    intervals = [estimate.drop_ci for estimate in found if estimate is not None]
    assert len(intervals) > 50
    missed = sum(not low <= 0.08 <= high for low, high in filter(None, intervals))
    assert missed / len(intervals) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(intervals))


def test_a_number_fixed_beforehand_stops_whatever_is_seen() -> None:
    values = values_with(400)
    order = order_of()
    estimate = run(order, values, Stopping(n_max=128))
    first = np.concatenate([piece.positions for piece in order.first(128)])
    assert estimate is not None
    assert estimate.n_examples == 128
    assert estimate.drop == pytest.approx(1.0 - values[first].mean())
