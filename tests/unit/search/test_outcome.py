from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.choices import Candidate, Choice
from autoq.core.errors import UnknownNameError
from autoq.core.fronts import dominates
from autoq.core.measurements import Accuracy, Latency, Measurement, Size
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.outcome import Outcome, build_outcome, finalists, holds
from autoq.search.records import (
    FinalMeasurement,
    SearchRecord,
    SearchState,
    TestAccuracy,
    TrialRecord,
    TrialState,
)
from autoq.testing.synthetic import synthetic_baseline

SPEC: dict[str, Any] = {"metric": "top1", "search": {"strategy": "tpe"}}
RECORD = SearchRecord("bench", SPEC, "0", SearchState.FINISHED, baseline=synthetic_baseline())
BOTH = (Objective.ACCURACY, Objective.LATENCY)


def measured(drop: float, ms: float, size: int = 1_000, *, spread: float = 0.0) -> Measurement:
    ci = (ms * (1 - spread), ms * (1 + spread))
    return Measurement(
        Accuracy(0.9 - drop, drop, (drop, drop), 100),
        Latency(ms, ci, ms, 1 / ms, (1 / ms, 1 / ms), 10),
        Size(size, size),
    )


def trial(number: int, measurement: Measurement | None, **changes: Any) -> TrialRecord:
    candidate = Candidate.of({"conv": Choice.of("int8", sparsity=number / 1000)})
    state = TrialState.COMPLETE if measurement else TrialState.FAILED
    return replace(TrialRecord(number, "tpe", {}, candidate, state, measurement), **changes)


def outcome_of(measurements: Sequence[Measurement | None], **goals: Any) -> Outcome:
    trials = [trial(number, measurement) for number, measurement in enumerate(measurements)]
    return build_outcome(RECORD, Goals(**{"objectives": BOTH, **goals}), trials)


def numbers(points: Sequence[Any]) -> list[int]:
    return [point.trial.number for point in points]


SLOW_GOOD, MIDDLE, FAST_BAD = measured(0.0, 1.0), measured(0.01, 0.5), measured(0.1, 0.3)


def test_the_front_is_sorted_from_the_fastest() -> None:
    outcome = outcome_of([SLOW_GOOD, measured(0.2, 0.6), FAST_BAD, MIDDLE, None])
    assert numbers(outcome.front) == [2, 3, 0]
    assert (outcome.n_trials, outcome.n_failed) == (5, 1)


def estimated(measurement: Measurement) -> Measurement:
    return replace(measurement, accuracy=replace(measurement.accuracy, is_estimate=True))


def test_an_estimate_is_not_on_the_front_nor_best_nor_in_the_final_round_and_beats_nobody() -> None:
    luck = estimated(measured(-0.1, 0.2))
    outcome = outcome_of([SLOW_GOOD, MIDDLE, luck])
    assert numbers(outcome.points) == [0, 1, 2]
    assert numbers(outcome.front) == [1, 0]
    assert outcome.best is not None
    assert outcome.best.trial.number != 2
    assert sorted(numbers(finalists(outcome, 10))) == [0, 1]
    assert outcome.select("2").to_json()["is_estimate"]


def test_when_all_are_estimates_the_nearest_is_one_and_there_is_no_front() -> None:
    slow = [estimated(measured(0.0, ms)) for ms in (1.0, 0.7)]
    outcome = outcome_of(slow, constraints=Constraints(max_latency_ms=0.5))
    assert outcome.front == ()
    assert outcome.nearest is not None
    assert outcome.nearest.trial.number == 1
    assert numbers(finalists(outcome, 10)) == [1]
    with pytest.raises(UnknownNameError, match="found nothing feasible; the nearest is trial 1"):
        outcome.select("fastest")


def test_a_repeated_trial_is_neither_counted_nor_a_second_point() -> None:
    first = trial(0, MIDDLE)
    repeated = replace(first, number=1, state=TrialState.REPEATED)
    outcome = build_outcome(RECORD, Goals(BOTH), [first, repeated])
    assert outcome.n_trials == 1
    assert numbers(outcome.points) == [0]


def test_a_budget_of_time_is_spent_on_accuracy() -> None:
    outcome = outcome_of(
        [SLOW_GOOD, MIDDLE, FAST_BAD, measured(0.01, 0.4)], constraints=Constraints(max_latency_ms=0.6)
    )
    assert outcome.best is not None
    assert outcome.best.trial.number == 3  # as accurate as trial 1, and faster


def test_an_allowed_drop_alone_is_spent_on_speed() -> None:
    outcome = outcome_of([SLOW_GOOD, MIDDLE, FAST_BAD], constraints=Constraints(max_accuracy_drop=0.05))
    assert outcome.best is not None
    assert outcome.best.trial.number == 1


def test_without_bounds_the_best_is_the_knee() -> None:
    outcome = outcome_of([SLOW_GOOD, measured(0.09, 0.32), MIDDLE, FAST_BAD])
    assert outcome.best is not None
    assert outcome.best.trial.number == 2
    assert outcome.select("knee") == outcome.best


def test_when_nothing_is_feasible_the_nearest_is_told_with_its_broken_bound() -> None:
    bounds = Constraints(max_latency_ms=0.2, max_accuracy_drop=0.05)
    outcome = outcome_of([SLOW_GOOD, MIDDLE, FAST_BAD], constraints=bounds)
    assert outcome.best is None
    assert not outcome.any_feasible
    assert outcome.to_json()["nearest"] == {
        "trial": 2,
        "failed_bounds": ["max_accuracy_drop", "max_latency_ms"],
    }
    with pytest.raises(UnknownNameError, match="nothing feasible; the nearest is trial 2"):
        outcome.select("best")


def test_a_final_latency_replaces_the_trials_and_decides_feasibility() -> None:
    trials = [trial(0, SLOW_GOOD), trial(1, measured(0.01, 0.59))]
    test = TestAccuracy(Accuracy(0.5, 0.4, (0.3, 0.5), 10), "no")
    final = FinalMeasurement(trials[1].digest, measured(0.0, 0.61).latency, test)
    goals = Goals(BOTH, Constraints(max_latency_ms=0.6))
    assert build_outcome(RECORD, goals, trials).best is not None
    outcome = build_outcome(RECORD, goals, trials, [final])
    assert outcome.best is None
    assert outcome.points[1].measurement.latency.latency_ms == 0.61
    # The test split annotates and does not decide: the point is still on the front.
    assert outcome.front[0].to_json()["holds"] == "no"
    assert outcome.front[0].measurement.accuracy.value == trials[1].measurement.accuracy.value  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("which", "expected"), [("fastest", 1), ("smallest", 0), ("best", 0), ("1", 1), ("3", 3)]
)
def test_a_point_is_selected_by_name_or_number(which: str, expected: int) -> None:
    outcome = outcome_of(
        [
            measured(0.0, 1.0, 500),
            measured(0.01, 0.5, 1_000),
            measured(0.1, 0.3, 100),
            measured(0.02, 0.9, 2_000),
        ],
        objectives=(*BOTH, Objective.SIZE),
        constraints=Constraints(max_accuracy_drop=0.05, max_latency_ms=2.0),
    )
    assert outcome.select(which).trial.number == expected


@pytest.mark.parametrize(("which", "message"), [("7", "no trial 7"), ("slowest", "cannot select 'slowest'")])
def test_a_point_that_does_not_exist_is_named(which: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        outcome_of([SLOW_GOOD, MIDDLE]).select(which)


def test_a_search_without_a_measured_trial_has_nothing_to_select() -> None:
    outcome = outcome_of([None, None])
    assert (outcome.front, outcome.best, outcome.nearest) == ((), None, None)
    with pytest.raises(UnknownNameError, match="no measured trial"):
        outcome.select("fastest")
    json.dumps(outcome.to_json())


def test_the_json_has_the_contracts_fields() -> None:
    found = json.loads(json.dumps(outcome_of([SLOW_GOOD, MIDDLE, FAST_BAD]).to_json()))
    assert found["front"][0]["choices"]["conv"]["format"] == "int8"
    assert found["front"][0]["latency_ms_ci"] == [0.3, 0.3]
    assert found["front"][0]["test_accuracy"] is None
    assert (found["trials"], found["feasible"], found["metric"]) == (3, 3, "top1")


def test_finalists_are_the_front_and_what_noise_may_keep_off_it() -> None:
    outcome = outcome_of(
        [
            measured(0.0, 1.0, spread=0.02),
            measured(0.01, 0.5, spread=0.02),
            measured(0.01, 0.51, spread=0.02),  # within the noise of trial 1
            measured(0.01, 0.6, spread=0.02),  # beaten at any rate
        ],
        constraints=Constraints(max_accuracy_drop=0.02),
    )
    assert numbers(outcome.front) == [1, 0]
    assert numbers(finalists(outcome, 10)) == [1, 0, 2]
    assert numbers(finalists(outcome, 1)) == [1]


def test_feasible_finalists_come_before_infeasible_ones() -> None:
    outcome = outcome_of([FAST_BAD, MIDDLE, SLOW_GOOD], constraints=Constraints(max_accuracy_drop=0.05))
    assert numbers(finalists(outcome, 10)) == [1, 2, 0]


def test_the_nearest_point_is_a_finalist_when_nothing_is_feasible() -> None:
    outcome = outcome_of(
        [measured(0.5, 0.1), measured(0.2, 0.5)],
        objectives=(Objective.LATENCY,),
        constraints=Constraints(max_accuracy_drop=0.1),
    )
    assert numbers(finalists(outcome, 1)) == [1]


FIGURES = st.tuples(st.sampled_from([0.0, 0.01, 0.02, 0.1]), st.sampled_from([0.3, 0.5, 0.51, 1.0]))


@given(st.lists(FIGURES, min_size=1, max_size=8), st.sampled_from([None, 0.01, 0.05]))
def test_the_best_is_on_the_front_of_what_is_feasible(
    figures: list[tuple[float, float]], max_drop: float | None
) -> None:
    outcome = outcome_of([measured(*f) for f in figures], constraints=Constraints(max_accuracy_drop=max_drop))
    feasible = [point for point in outcome.points if point.feasible]
    assert (outcome.best is None) == (not feasible)
    if outcome.best is not None:
        costs = outcome.goals.costs(outcome.best.measurement)
        assert not any(dominates(outcome.goals.costs(p.measurement), costs) for p in feasible)
    assert {p.trial.number for p in outcome.front} <= set(numbers(finalists(outcome, 100)))


def accuracy(drop: float, ci: tuple[float, float] | None) -> Accuracy:
    return Accuracy(0.9 - drop, drop, ci, 100)


@pytest.mark.parametrize(
    ("found", "bound", "expected"),
    [
        (accuracy(0.005, (0.001, 0.009)), 0.01, "yes"),
        (accuracy(0.005, (-0.01, 0.02)), 0.01, "undecided"),
        (accuracy(0.03, (0.02, 0.04)), 0.01, "no"),
        (accuracy(0.0, (-0.05, 0.05)), 0.01, "undecided"),
        (accuracy(-0.01, (-0.03, 0.02)), None, "yes"),
        (accuracy(0.01, (-0.01, 0.03)), None, "undecided"),
        (accuracy(0.0, None), 0.01, "undecided"),
    ],
)
def test_the_test_split_bears_a_drop_out_or_not(found: Accuracy, bound: float | None, expected: str) -> None:
    assert holds(found, bound) == expected


def test_where_latency_is_no_objective_the_best_is_the_smallest() -> None:
    found, bounds = [measured(0.0, 0.3, 1_000), measured(0.01, 0.5, 500)], Constraints(max_accuracy_drop=0.02)
    of_storage = (Objective.ACCURACY, Objective.STORAGE)
    best = outcome_of(found, objectives=of_storage, constraints=bounds).best
    assert best is not None
    assert best.trial.number == 1
    best = outcome_of(found, objectives=(*of_storage, Objective.LATENCY), constraints=bounds).best
    assert best is not None
    assert best.trial.number == 0
