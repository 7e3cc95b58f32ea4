from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from autoq.reporting.charts import Bars, Chart, Missing, Plot, Role
from autoq.reporting.trial_charts import (
    best_so_far,
    predicted_and_measured,
    prediction_chart,
    progress_chart,
    time_by_part,
    time_chart,
)
from autoq.search.goals import Constraints, Goals
from autoq.search.outcome import Outcome
from autoq.search.records import TrialRecord, TrialState

MakeTrial = Callable[..., TrialRecord]
MakeOutcome = Callable[..., Outcome]


def with_reasons(trial: TrialRecord, **reasons: Any) -> TrialRecord:
    fields = {name: getattr(trial, name) for name in ("number", "measurement", "state")}
    return cast(TrialRecord, SimpleNamespace(**fields, reasons=reasons))


def body(chart: Chart | Missing) -> Any:
    assert isinstance(chart, Chart)
    return chart.body


def test_the_best_so_far_is_the_running_minimum_of_what_is_feasible() -> None:
    rng = np.random.default_rng(3)
    trials = [
        (n, float(v), bool(f))
        for n, (v, f) in enumerate(zip(rng.random(60), rng.random(60) > 0.4, strict=True))
    ]
    xs, ys = best_so_far(trials)
    for number in range(60):
        feasible = [value for n, value, kept in trials if kept and n <= number]
        reached = [y for x, y in zip(xs, ys, strict=True) if x <= number]
        assert (reached[-1:] or [None]) == ([min(feasible)] if feasible else [None])


def test_with_a_budget_progress_is_the_drop_and_with_a_drop_alone_the_latency(
    make_outcome: MakeOutcome, goals: Goals
) -> None:
    baseline = make_outcome().record.baseline
    assert baseline is not None
    drop = body(progress_chart(make_outcome(), baseline))
    assert "drop of top1" in drop.y.title
    assert drop.lines[0].y == pytest.approx((1.0, 0.4, 0.1, 0.1))
    only_drop = replace(goals, constraints=Constraints(max_accuracy_drop=0.011))
    latency = body(progress_chart(make_outcome(of=only_drop), baseline))
    assert latency.y.title == "latency (ms)"
    assert latency.lines[0].y == pytest.approx((2.0, 2.0))


def test_without_bounds_progress_is_the_area_the_front_has_won(
    make_outcome: MakeOutcome, goals: Goals
) -> None:
    baseline = make_outcome().record.baseline
    assert baseline is not None
    drawn = body(progress_chart(make_outcome(of=replace(goals, constraints=Constraints())), baseline))
    (line,) = drawn.lines
    assert list(line.y) == sorted(line.y)
    assert line.y[-1] == pytest.approx(100.0)


def test_when_nothing_is_feasible_there_are_points_and_no_line(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    outcome = make_outcome([make_trial(0, latency_ms=7.0)])
    assert outcome.record.baseline is not None
    drawn = body(progress_chart(outcome, outcome.record.baseline))
    assert drawn.lines == ()
    assert [dots.role for dots in drawn.dots] == [Role.INFEASIBLE]


def test_times_add_up_to_the_total_and_spanning_parts_are_not_counted_twice(make_trial: MakeTrial) -> None:
    seconds = {"build": 1.0, "latency": 3.0, "accuracy": 2.0, "inference": 4.8, "run": 6.5, "total": 7.0}
    trials = [make_trial(0, seconds=seconds), make_trial(1, seconds=seconds)]
    spent = time_by_part(trials)
    assert spent == pytest.approx({"build": 2.0, "latency": 6.0, "accuracy": 4.0, "other": 2.0})
    assert sum(spent.values()) == pytest.approx(sum(trial.seconds["total"] for trial in trials))


def test_the_longest_part_is_the_first_bar(outcome: Outcome, trials: list[TrialRecord]) -> None:
    drawn = body(time_chart(outcome, trials))
    assert isinstance(drawn, Bars)
    assert [bar.label for bar in drawn.bars] == [
        "prepare: statistics",
        "building the model",
        "choosing a candidate",
        "everything else",
    ]
    assert drawn.bars[0].text == "2.5 s, 56%"  # of 2.5 s + 5 x 0.4 s


def test_predictions_are_paired_with_what_was_measured(make_trial: MakeTrial, outcome: Outcome) -> None:
    trials = [
        with_reasons(make_trial(0, latency_ms=2.0), predicted_latency_ms=2.2, kind="seed"),
        with_reasons(make_trial(1, latency_ms=4.0), kind="anchor"),
        with_reasons(make_trial(2, latency_ms=4.0), predicted_latency_ms=3.2),
        with_reasons(replace(make_trial(3), state=TrialState.REPEATED), predicted_latency_ms=3.0),
        with_reasons(replace(make_trial(4), measurement=None), predicted_latency_ms=3.0),
        make_trial(5),
    ]
    assert predicted_and_measured(trials) == [(0, 2.2, 2.0), (2, 3.2, 4.0)]
    chart = prediction_chart(outcome, trials)
    drawn = body(chart)
    assert isinstance(drawn, Plot)
    assert [(dot.x, dot.y) for dot in drawn.dots[0].dots] == [(2.0, 2.2), (4.0, 3.2)]
    assert isinstance(chart, Chart)
    assert "Median error 15.0%" in chart.subtitle  # of 10 % and 20 %


def test_a_strategy_that_predicts_nothing_is_said_to(outcome: Outcome, trials: list[TrialRecord]) -> None:
    missing = prediction_chart(outcome, trials)
    assert isinstance(missing, Missing)
    assert "tpe" in missing.reason
