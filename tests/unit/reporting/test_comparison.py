from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autoq.core.errors import UserError
from autoq.reporting.comparison import check_names, compare
from autoq.search.goals import Goals, Objective
from autoq.search.outcome import Outcome
from autoq.search.records import SearchRecord, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeOutcome = Callable[..., Outcome]


def drawn_at_random(
    make_outcome: MakeOutcome, make_trial: MakeTrial, name: str, rng: np.random.Generator
) -> Outcome:
    # On a coarse grid, so that equal figures occur.
    trials = [
        make_trial(n, drop=0.001 * int(rng.integers(0, 15)), latency_ms=0.5 * int(rng.integers(2, 10)))
        for n in range(25)
    ]
    goals = Goals((Objective.ACCURACY, Objective.LATENCY))
    return make_outcome(trials, of=goals, name=name)


def figures(outcome: Outcome, number: int) -> tuple[float, float]:
    (point,) = [point for point in outcome.points if point.trial.number == number]
    return point.measurement.accuracy.drop, point.measurement.latency.latency_ms


@pytest.mark.parametrize("seed", range(5))
def test_who_beats_whom_is_what_trying_every_pair_says(
    make_outcome: MakeOutcome, make_trial: MakeTrial, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    outcomes = {name: drawn_at_random(make_outcome, make_trial, name, rng) for name in ("a", "b", "c")}
    comparison = compare(list(outcomes.values()))
    members = [(member.search, member.point.trial.number) for member in comparison.members]
    expected = {
        (name, trial): {
            (other, rival)
            for other, rival in members
            if other != name
            and all(np.less_equal(figures(outcomes[other], rival), figures(outcomes[name], trial)))
            and figures(outcomes[other], rival) != figures(outcomes[name], trial)
        }
        for name, trial in members
    }
    assert {(m.search, m.point.trial.number): set(m.beaten_by) for m in comparison.members} == expected
    for name, counts in comparison.counts().items():
        mine = [rivals for (search, _), rivals in expected.items() if search == name]
        for other in outcomes.keys() - {name}:
            assert counts[other] == sum(any(by == other for by, _ in rivals) for rivals in mine)


def test_equal_points_do_not_beat_each_other(make_outcome: MakeOutcome, make_trial: MakeTrial) -> None:
    comparison = compare([make_outcome([make_trial(0)], name="a"), make_outcome([make_trial(0)], name="b")])
    assert [member.beaten_by for member in comparison.members] == [(), ()]


def test_an_infeasible_member_is_not_compared_where_there_are_feasible_ones(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    trials = [make_trial(0, drop=0.01, latency_ms=4.0), make_trial(1, drop=0.05, latency_ms=1.0)]
    comparison = compare([make_outcome(trials, name="a"), make_outcome([make_trial(0)], name="b")])
    assert [(m.search, m.point.trial.number) for m in comparison.members] == [("a", 0), ("b", 0)]


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a", "b", "a"], "'a' is named twice"), (["a"], "1 search"), (list("abcde"), "5 searches")],
)
def test_a_comparison_that_says_nothing_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_names(names)


def test_a_search_without_a_front_is_refused(make_outcome: MakeOutcome) -> None:
    with pytest.raises(UserError, match="'b' has no front"):
        compare([make_outcome(name="a"), make_outcome([], name="b")])


def test_a_busier_hour_does_not_decide_between_searches_of_one_model_on_one_target(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    quiet = make_trial(0, drop=0.004, latency_ms=2.0)
    assert quiet.measurement is not None
    slower = replace(quiet.measurement.latency, latency_ms=3.0, latency_ms_ci=(2.9, 3.1))
    busy = replace(quiet, measurement=replace(quiet.measurement, latency=slower))  # of the same speed-up
    outcomes = [make_outcome([quiet], name="a"), make_outcome([busy], name="b")]
    comparison = compare(outcomes)
    assert comparison.is_relative
    assert [member.beaten_by for member in comparison.members] == [(), ()]
    other_target = make_outcome([busy], name="b", environment={"threads": 2})
    absolute = compare([outcomes[0], other_target])
    assert not absolute.is_relative
    assert [member.beaten_by for member in absolute.members] == [(), (("a", 0),)]


def test_what_makes_figures_less_comparable_is_said(make_outcome: MakeOutcome, record: SearchRecord) -> None:
    other = make_outcome(
        name="b",
        spec={**record.spec, "metric": {"python": "m.py:f1", "scope": "set"}},
        model_digest="another",
        environment={**record.environment, "threads": 2, "cpu": {"model": "EPYC"}},
    )
    warnings = compare([make_outcome(name="a"), other]).warnings
    assert len(warnings) == 4
    assert "metrics differ (f1, top1): drops are compared" in warnings[0]
    assert "threads (1, 2)" in warnings[3]
    assert compare([make_outcome(name="a"), make_outcome(name="b")]).warnings == ()
