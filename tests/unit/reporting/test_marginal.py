from __future__ import annotations

from collections.abc import Callable

import pytest

from autoq.reporting.charts import Bars, Chart, Missing, Role
from autoq.reporting.marginal import marginal_chart, steps_of
from autoq.search.outcome import Outcome
from autoq.search.records import TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeOutcome = Callable[..., Outcome]


def test_each_step_goes_to_the_next_faster_member_and_prices_what_it_saves(outcome: Outcome) -> None:
    steps = steps_of(outcome.front)
    assert [(step.slower.trial.number, step.faster.trial.number) for step in steps] == [(3, 2), (2, 0)]
    assert [step.per_ms for step in steps] == pytest.approx([0.003, 0.006])


def test_a_step_inside_the_intervals_is_drawn_faintly(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    trials = [
        make_trial(0, drop=0.018, latency_ms=2.0),
        make_trial(1, drop=0.005, latency_ms=3.0),  # 0.001 to 0.011: clear of trial 0, not of trial 2
        make_trial(2, drop=0.001, latency_ms=4.0),
    ]
    chart = marginal_chart(make_outcome(trials))
    assert isinstance(chart, Chart)
    assert isinstance(chart.body, Bars)
    assert [(bar.label, bar.role) for bar in chart.body.bars] == [
        ("trial 2 → 1", Role.FAINT),
        ("trial 1 → 0", Role.FIRST),
    ]
    assert [bar.value for bar in chart.body.bars] == pytest.approx([0.4, 1.3])  # points per ms
    assert chart.body.bars[0].text == "+0.40 pt for 1.00 ms"


def test_a_single_member_trades_nothing(make_outcome: MakeOutcome, make_trial: MakeTrial) -> None:
    assert isinstance(marginal_chart(make_outcome([make_trial(0)])), Missing)
