from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoq.core.measurements import Accuracy
from autoq.reporting.charts import Chart, Dots, Plot, Role
from autoq.reporting.pareto import pareto_charts
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.outcome import Outcome
from autoq.search.records import TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeOutcome = Callable[..., Outcome]


def charts(outcome: Outcome) -> list[Chart]:
    assert outcome.record.baseline is not None
    return pareto_charts(outcome, outcome.record.baseline)


def plot(outcome: Outcome) -> Plot:
    body = charts(outcome)[0].body
    assert isinstance(body, Plot)
    return body


def places(drawn: Plot, role: Role) -> list[tuple[float, float]]:
    return [
        (round(dot.x, 3), round(dot.y, 3)) for dots in drawn.dots if dots.role is role for dot in dots.dots
    ]


def kind(drawn: Plot, role: Role) -> Dots:
    (found,) = [dots for dots in drawn.dots if dots.role is role]
    return found


def test_every_point_is_drawn_once_as_what_it_is(outcome: Outcome) -> None:
    drawn = plot(outcome)
    assert places(drawn, Role.ANCHOR) == [(2.0, 89.0), (2.4, 88.8)]
    assert places(drawn, Role.SEARCHED) == [(3.0, 89.6), (4.0, 89.9)]
    assert places(drawn, Role.INFEASIBLE) == [(6.0, 89.8)]
    assert places(drawn, Role.BASELINE) == [(10.0, 90.0)]
    assert places(drawn, Role.CHOSEN) == [(4.0, 89.9)]


def test_the_front_is_stairs_through_the_front_and_nothing_else(
    make_outcome: MakeOutcome, goals: Goals
) -> None:
    drawn = plot(make_outcome(of=replace(goals, objectives=(Objective.ACCURACY, Objective.LATENCY))))
    (front,) = drawn.lines
    assert front.is_stairs
    assert front.x == pytest.approx((2.0, 3.0, 4.0))
    assert front.y == pytest.approx((89.0, 89.6, 89.9))


def test_the_bars_of_a_front_member_are_its_intervals_and_others_have_none(outcome: Outcome) -> None:
    member = kind(plot(outcome), Role.SEARCHED).dots[0]
    assert member.x_interval == pytest.approx((2.91, 3.09))
    assert member.y_interval == pytest.approx((89.0, 90.0))  # a drop of 0 to 1 points
    (beaten,) = kind(plot(outcome), Role.INFEASIBLE).dots
    assert (beaten.x_interval, beaten.y_interval) == (None, None)


def test_where_lower_is_better_a_drop_is_drawn_upwards(
    make_outcome: MakeOutcome, make_trial: MakeTrial, goals: Goals
) -> None:
    trial = make_trial(0, drop=0.004, latency_ms=3.0)
    assert trial.measurement is not None
    accuracy = replace(trial.measurement.accuracy, value=0.904)
    worse = replace(trial, measurement=replace(trial.measurement, accuracy=accuracy))
    drawn = plot(make_outcome([worse], of=replace(goals, maximize=False)))
    assert kind(drawn, Role.SEARCHED).dots[0].y_interval == pytest.approx((90.0, 91.0))
    assert "lower is better" in drawn.y.title


def test_a_metric_without_intervals_gets_no_bar_for_the_accuracy(
    make_outcome: MakeOutcome, make_trial: MakeTrial, record: Any
) -> None:
    spec = {**record.spec, "metric": {"python": "metrics.py:f1", "scope": "set"}}
    drawn = plot(make_outcome([make_trial(0, interval=False)], spec=spec))
    (dot,) = kind(drawn, Role.SEARCHED).dots
    assert dot.y_interval is None
    assert dot.y == pytest.approx(0.897)  # a user's metric is drawn in its own unit
    assert drawn.y.title == "f1"


def test_the_bounds_stand_where_feasible_points_end(outcome: Outcome) -> None:
    budget, allowed = plot(outcome).rules
    assert (budget.is_vertical, budget.value, budget.label) == (True, 5.0, "budget 5.00 ms")
    assert (allowed.is_vertical, allowed.label) == (False, "allowed drop 2 pt")
    assert allowed.value == pytest.approx(88.0)


def test_a_relative_budget_is_drawn_in_milliseconds_and_the_tighter_one_counts(
    make_outcome: MakeOutcome, goals: Goals
) -> None:
    bounds = Constraints(max_latency_ms=5.0, max_latency_ratio=0.35)
    (budget,) = plot(make_outcome(of=replace(goals, constraints=bounds))).rules
    assert budget.value == pytest.approx(3.5)


def test_a_point_that_was_stopped_early_is_drawn_as_an_estimate(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    trial = make_trial(0, drop=0.015)
    assert trial.measurement is not None
    raced = cast(Accuracy, SimpleNamespace(**asdict(trial.measurement.accuracy) | {"is_estimate": True}))
    stopped = replace(trial, measurement=replace(trial.measurement, accuracy=raced))
    drawn = plot(make_outcome([stopped, make_trial(1)]))
    (dot,) = kind(drawn, Role.RACED_OUT).dots
    assert dot.y == pytest.approx(88.5)
    assert "estimate from 500 examples" in dot.hover
    assert len(kind(drawn, Role.SEARCHED).dots) == 1


def test_a_collapsed_or_very_slow_candidate_lies_on_the_edge_and_does_not_flatten_the_rest(
    make_outcome: MakeOutcome, make_trial: MakeTrial, trials: list[TrialRecord]
) -> None:
    bad = [make_trial(5, drop=0.8, latency_ms=1.9), make_trial(6, drop=0.003, latency_ms=90.0)]
    drawn = plot(make_outcome([*trials, *bad]))
    collapsed, slow = kind(drawn, Role.OFF_SCALE).dots
    assert drawn.y.span is not None
    low, high = drawn.y.span
    assert 85.0 < low < collapsed.y < high
    assert (collapsed.x, slow.y) == pytest.approx((1.9, 89.7))
    assert slow.x < 12.0
    assert "90.0 ms" in slow.hover


def test_bytes_that_are_an_objective_get_a_picture_of_their_own(outcome: Outcome) -> None:
    latency, storage = charts(outcome)
    assert (latency.slug, storage.slug) == ("pareto", "pareto-storage")
    assert isinstance(storage.body, Plot)
    assert storage.body.x.title == "bundle (MB)"
    assert places(storage.body, Role.BASELINE) == [(4.0, 90.0)]


def test_latencies_that_differ_more_than_tenfold_get_a_logarithmic_axis(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    for latency_ms, is_log in ((1.1, False), (0.9, True)):  # the float model takes 10 ms
        assert plot(make_outcome([make_trial(0, latency_ms=latency_ms)])).x.is_log is is_log


def test_the_text_for_those_who_cannot_see_it_says_what_is_best(outcome: Outcome) -> None:
    assert (
        "The best is trial 3: top1 89.90 % at 4.00 ms, where the float model takes 10.0 ms"
        in charts(outcome)[0].alt
    )


def test_without_a_feasible_point_the_nearest_is_marked(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    drawn = plot(make_outcome([make_trial(0, latency_ms=6.0), make_trial(1, latency_ms=9.0)]))
    assert kind(drawn, Role.CHOSEN).label == "nearest to feasible"
    assert places(drawn, Role.CHOSEN) == [(6.0, 89.7)]
