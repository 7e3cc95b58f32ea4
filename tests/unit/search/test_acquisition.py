from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoq.core.choices import Candidate, Choice
from autoq.core.measurements import Measurement
from autoq.search.acquisition import Forecast, Worth
from autoq.search.goals import Constraints, Goals, Objective
from autoq.testing.synthetic import synthetic_baseline, synthetic_measurement

BASELINE = synthetic_baseline()  # 1 ms, 4,000 bytes, accuracy 0.9
BOTH = (Objective.ACCURACY, Objective.LATENCY)


def measured(drop: float, latency_ms: float, *, n_bytes: int = 2_000) -> Measurement:
    found = synthetic_measurement(Candidate.of({"layer": Choice.of("int8")}))
    return replace(
        found,
        accuracy=replace(found.accuracy, drop=drop, value=0.9 - drop),
        latency=replace(found.latency, latency_ms=latency_ms),
        size=replace(found.size, size_bytes=n_bytes, bundle_bytes=n_bytes // 2),
    )


def forecast(*points: tuple[float, float], sd: float = 1e-6, size: float = 0.5) -> Forecast:
    """Points (drop, latency ratio), all equally sure."""
    drop, latency = (np.array(one, np.float64) for one in zip(*points, strict=True))
    doubt, sizes = np.full(len(points), sd), np.full(len(points), size)
    return Forecast(drop, doubt, latency, doubt, sizes, sizes / 2)


def test_the_reference_is_twice_the_drop_and_the_float_model() -> None:
    worth = Worth(Goals(BOTH, Constraints(max_accuracy_drop=0.03)), BASELINE, [])
    assert worth.reference == pytest.approx([0.06, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("bounds", "ratio"),
    [
        (Constraints(max_latency_ms=0.5), 0.5),
        (Constraints(max_latency_ratio=0.4), 0.4),
        (Constraints(max_latency_ms=0.5, max_latency_ratio=0.4), 0.4),
        (Constraints(max_latency_ms=0.3, max_latency_ratio=0.4), 0.3),
    ],
)
def test_a_budget_is_the_reference_where_there_is_one(bounds: Constraints, ratio: float) -> None:
    worth = Worth(Goals(BOTH, bounds), BASELINE, [])
    assert worth.max_latency == pytest.approx(ratio)
    assert worth.reference[1] == pytest.approx(np.log(ratio), abs=1e-5)


def test_what_is_slower_than_the_budget_gains_nothing_and_right_at_it_counts() -> None:
    worth = Worth(Goals(BOTH, Constraints(max_latency_ratio=0.5)), BASELINE, [])
    gains = worth.front_gain(forecast((0.001, 0.6), (0.001, 0.5), (0.001, 0.4)))
    assert gains[0] == 0.0
    assert 0.0 < gains[1] < gains[2]


def test_a_sure_candidate_that_is_dominated_gains_nothing_and_one_that_dominates_does() -> None:
    worth = Worth(Goals(BOTH), BASELINE, [measured(0.01, 0.5)])
    gains = worth.front_gain(forecast((0.012, 0.6), (0.01, 0.5), (0.012, 0.4), (0.005, 0.4)))
    assert gains[:2] == pytest.approx([0.0, 0.0], abs=1e-3)
    assert gains[2] > 0.01
    assert gains[3] > gains[2]


def test_doubt_makes_a_dominated_candidate_worth_something() -> None:
    worth = Worth(Goals(BOTH), BASELINE, [measured(0.01, 0.5)])
    dominated = (0.012, 0.5)
    assert worth.front_gain(forecast(dominated, sd=0.01))[0] > worth.front_gain(forecast(dominated))[0]


def test_the_gain_is_the_mean_over_what_the_drop_may_turn_out_to_be() -> None:
    """Against draws of the drop, every one of them counted as measured."""
    known = [measured(0.01, 0.5), measured(0.002, 0.8)]
    worth = Worth(Goals(BOTH), BASELINE, known)
    rng = np.random.default_rng(0)
    drawn = [worth.front_gain(forecast((0.008 + 0.004 * z, 0.45)))[0] for z in rng.standard_normal(300)]
    assert worth.front_gain(forecast((0.008, 0.45), sd=0.004))[0] == pytest.approx(np.mean(drawn), rel=0.15)


def test_a_drop_better_than_none_counts_as_none() -> None:
    worth = Worth(Goals(BOTH), BASELINE, [])
    gains = worth.front_gain(forecast((-0.01, 0.5), (0.0, 0.5)))
    assert gains[0] == pytest.approx(gains[1], rel=1e-3)


def test_the_chance_is_that_of_keeping_every_bound() -> None:
    bounds = Constraints(max_accuracy_drop=0.02, max_latency_ratio=0.5, max_size_bytes=2_400)
    worth = Worth(Goals(BOTH, bounds), BASELINE, [])
    sure = worth.chance(forecast((0.01, 0.4), (0.03, 0.4), (0.01, 0.6)))
    assert sure == pytest.approx([1.0, 0.0, 0.0])
    assert worth.chance(forecast((0.02, 0.5), sd=0.01)) == pytest.approx([0.25])
    assert worth.chance(forecast((0.01, 0.4), size=0.7)).tolist() == [0.0]


def test_with_no_bound_everything_is_kept() -> None:
    worth = Worth(Goals(BOTH), BASELINE, [])
    assert not worth.has_bounds
    assert worth.chance(forecast((0.5, 2.0))).tolist() == [1.0]
    assert worth.excess(forecast((0.5, 2.0))).tolist() == [0.0]


def test_with_a_drop_alone_the_faster_is_the_better() -> None:
    worth = Worth(Goals(BOTH, Constraints(max_accuracy_drop=0.02)), BASELINE, [measured(0.01, 0.5)])
    gains = worth.best_gain(forecast((0.001, 0.6), (0.015, 0.4), (0.03, 0.3)))
    assert gains[1] == pytest.approx(np.log(0.5 / 0.4), rel=0.01)
    assert gains[[0, 2]] == pytest.approx([0.0, 0.0], abs=1e-3)


def test_within_a_latency_budget_the_more_accurate_is_the_better() -> None:
    bounds = Constraints(max_latency_ratio=0.5)
    worth = Worth(Goals(BOTH, bounds), BASELINE, [measured(0.01, 0.45), measured(0.0, 0.9)])
    gains = worth.best_gain(forecast((0.004, 0.49), (0.002, 0.6), (0.02, 0.3)))
    assert gains[0] > 0.0
    assert gains[1:] == pytest.approx([0.0, 0.0], abs=1e-3)


def test_the_excess_adds_up_how_far_bounds_are_broken() -> None:
    bounds = Constraints(max_accuracy_drop=0.02, max_latency_ratio=0.5, max_bundle_bytes=500)
    worth = Worth(Goals(BOTH, bounds), BASELINE, [])
    excess = worth.excess(forecast((0.01, 0.4), (0.04, 0.4), (0.01, 1.0), (0.04, 1.0), size=0.25))
    assert excess == pytest.approx([0.0, 1.0, 1.0, 2.0])
    assert worth.excess(forecast((0.01, 0.4), size=0.5)) == pytest.approx([1.0])


def test_an_estimate_is_never_the_point_to_beat() -> None:
    raced = measured(0.0, 0.1)
    raced = replace(raced, accuracy=replace(raced.accuracy, is_estimate=True))
    goals = Goals(BOTH, Constraints(max_accuracy_drop=0.02))
    gain = Worth(goals, BASELINE, [measured(0.01, 0.5), raced]).best_gain(forecast((0.01, 0.4)))
    assert gain[0] > 0.1


def test_what_a_trial_holds_is_what_the_front_loses_without_it() -> None:
    goals = Goals((Objective.ACCURACY, Objective.LATENCY, Objective.SIZE), Constraints(max_accuracy_drop=0.1))
    rng = np.random.default_rng(0)
    trials = [
        measured(*rng.uniform(0.0, 0.15, 2) * (1, 5), n_bytes=int(rng.integers(500, 4_500)))
        for _ in range(12)
    ]
    whole = Worth(goals, BASELINE, trials)
    lost = [
        whole.volume - Worth(goals, BASELINE, [*trials[:at], *trials[at + 1 :]]).volume for at in range(12)
    ]
    assert whole.held() == pytest.approx(lost, abs=1e-12)
    assert 0 < np.count_nonzero(whole.held() > 1e-12) < 12


def test_where_no_drop_is_bounded_what_the_budget_costs_is_within_reach() -> None:
    dear = [measured(drop, 0.3) for drop in (0.2, 0.25, 0.3)]
    goals = Goals(BOTH, Constraints(max_latency_ratio=0.4))
    worth = Worth(goals, BASELINE, dear)
    assert worth.max_drop == pytest.approx(0.25)
    assert worth.volume > 0.0


def test_what_breaks_a_bound_beside_the_objectives_is_no_part_of_the_front() -> None:
    goals = Goals(BOTH, Constraints(max_accuracy_drop=0.02, max_bundle_bytes=600))
    large, small = measured(0.0, 0.2, n_bytes=2_000), measured(0.01, 0.5, n_bytes=1_000)
    worth = Worth(goals, BASELINE, [large, small])
    assert worth.volume == Worth(goals, BASELINE, [small]).volume
    assert worth.held()[0] == 0.0
    better = forecast((0.005, 0.4), size=0.25)  # behind what is too large, and before what is not
    assert worth.front_gain(better)[0] > 0.1
    assert worth.front_gain(forecast((0.0, 0.1), size=0.5))[0] == 0.0  # 1,000 bytes of bundle


def test_a_bound_on_a_drop_that_is_no_objective_counts_by_its_chance() -> None:
    goals = Goals((Objective.LATENCY, Objective.STORAGE), Constraints(max_accuracy_drop=0.02))
    worth = Worth(goals, BASELINE, [])
    even, sure = (worth.front_gain(forecast((drop, 0.4), sd=0.001))[0] for drop in (0.02, 0.0))
    assert even == pytest.approx(sure / 2)
    assert worth.front_gain(forecast((0.5, 0.01)))[0] == 0.0


def test_a_gain_of_next_to_nothing_is_none_that_a_search_goes_after() -> None:
    """Far beyond a bound the chance to keep it is tiny, and never quite zero."""
    goals = Goals((Objective.LATENCY, Objective.STORAGE), Constraints(max_accuracy_drop=0.005))
    worth = Worth(goals, BASELINE, [])
    assert not worth.any_feasible
    assert 0.0 < worth.front_gain(forecast((0.016, 0.4), sd=0.001))[0] < 1e-20


def test_where_nobody_searches_for_speed_the_smaller_is_the_better() -> None:
    goals = Goals((Objective.ACCURACY, Objective.STORAGE), Constraints(max_accuracy_drop=0.02))
    worth = Worth(goals, BASELINE, [measured(0.01, 0.5, n_bytes=4_000)])  # a bundle of half of the float file
    fast, small = (
        worth.best_gain(forecast((0.01, latency), size=size))[0] for latency, size in ((0.1, 1.0), (0.9, 0.5))
    )
    assert fast == pytest.approx(0.0, abs=1e-6)
    assert small == pytest.approx(np.log(2.0))


def test_a_drop_of_nothing_is_counted_on_the_scale_of_the_metric() -> None:
    worth = Worth(Goals(BOTH, Constraints(max_accuracy_drop=0.0)), BASELINE, [])
    assert worth.excess(forecast((0.009, 0.5))) == pytest.approx([1.0], rel=1e-3)  # a hundredth of 0.9
