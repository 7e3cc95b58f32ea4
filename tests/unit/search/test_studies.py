"""Records as Optuna sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest

from autoq.core.choices import Candidate, Choice
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.records import TrialRecord, TrialState
from autoq.search.space import SearchSpace
from autoq.search.studies import for_samplers, space_distributions, study_of, to_frozen
from autoq.testing.synthetic import synthetic_baseline, synthetic_measurement

MakeBench = Callable[..., Any]
BASELINE = synthetic_baseline()
GOALS = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(max_accuracy_drop=0.05))


@pytest.fixture
def space(make_bench: MakeBench) -> SearchSpace:
    found: SearchSpace = make_bench(n_layers=6).plan.space
    return found


def trial_of(space: SearchSpace, candidate: Candidate, number: int = 0, **changes: Any) -> TrialRecord:
    trial = TrialRecord(
        number,
        "tpe",
        space.encode(candidate) or {},
        candidate,
        TrialState.COMPLETE,
        synthetic_measurement(candidate),
        started_at=1_000.0,
        seconds={"total": 2.5},
    )
    return replace(trial, **changes)


def frozen_of(trial: TrialRecord, space: SearchSpace) -> optuna.trial.FrozenTrial:
    return to_frozen(trial, GOALS, BASELINE, space_distributions(space))


def narrow(space: SearchSpace, bits: int) -> Candidate:
    """Every layer at one width."""
    choices = {
        layer.name: Choice.of("int8", weight_bits=bits, calibration="percentile99.99")
        for layer in space.layers
    }
    return Candidate.of(choices, space.decode({}).by_op)


def test_a_feasible_trial_is_complete_with_its_natural_values(space: SearchSpace) -> None:
    trial = trial_of(space, narrow(space, 8), sampler_notes={"NSGAIISampler:generation": 2})
    frozen = frozen_of(trial, space)
    assert frozen.state is optuna.trial.TrialState.COMPLETE
    assert trial.measurement is not None
    assert frozen.values == [trial.measurement.accuracy.value, trial.measurement.latency.latency_ms]
    assert frozen.params == trial.params
    assert frozen.constraints["max_accuracy_drop"] <= 0.0
    assert frozen.user_attrs["digest"] == trial.digest
    assert frozen.user_attrs["origin"] == "tpe"
    assert frozen.system_attrs["NSGAIISampler:generation"] == 2
    assert frozen.duration is not None
    assert frozen.duration.total_seconds() == 2.5


def test_a_trial_that_breaks_a_bound_is_complete_with_a_positive_constraint(space: SearchSpace) -> None:
    frozen = frozen_of(trial_of(space, narrow(space, 4)), space)
    assert frozen.state is optuna.trial.TrialState.COMPLETE
    assert frozen.constraints["max_accuracy_drop"] > 0.0


def test_a_failed_trial_is_failed_with_a_reason_that_fits_the_database(space: SearchSpace) -> None:
    trial = trial_of(space, narrow(space, 8), state=TrialState.FAILED, measurement=None, reason="x" * 10_000)
    frozen = frozen_of(trial, space)
    assert frozen.state is optuna.trial.TrialState.FAIL
    assert 0 < len(frozen.user_attrs["reason"]) < 2_000
    assert frozen.params == trial.params
    assert frozen.constraints == {}


def test_a_repeated_trial_has_the_values_and_says_so(space: SearchSpace) -> None:
    frozen = frozen_of(trial_of(space, narrow(space, 8), state=TrialState.REPEATED), space)
    assert frozen.state is optuna.trial.TrialState.COMPLETE
    assert frozen.user_attrs["repeated"] is True


def test_a_trial_outside_the_space_has_values_and_no_parameters(space: SearchSpace) -> None:
    outside = narrow(space, 8).with_choice("layer0", Choice.of("int8_dynamic"))
    frozen = frozen_of(trial_of(space, outside), space)
    assert frozen.params == {}
    assert frozen.state is optuna.trial.TrialState.COMPLETE


def test_frozen_trials_survive_a_database_and_optuna_agrees_on_feasibility(
    space: SearchSpace, sqlite_url: str
) -> None:
    study = optuna.create_study(storage=sqlite_url, directions=GOALS.directions)
    for number, bits in enumerate((4, 8)):
        study.add_trial(frozen_of(trial_of(space, narrow(space, bits), number), space))
    assert [trial.number for trial in study.best_trials] == [1]
    assert study.trials[1].params == space.encode(narrow(space, 8))


def test_a_sampler_passes_over_a_trial_it_cannot_express(space: SearchSpace) -> None:
    """Complete without parameters, it would empty the space that samplers infer."""
    known = space_distributions(space)
    outside = narrow(space, 8).with_choice("layer0", Choice.of("int8_dynamic"))
    passed = for_samplers(trial_of(space, outside), GOALS, BASELINE, known)
    assert passed.state is optuna.trial.TrialState.FAIL
    inside = trial_of(space, narrow(space, 8))
    assert for_samplers(inside, GOALS, BASELINE, known) == to_frozen(inside, GOALS, BASELINE, known)


def test_a_study_in_memory_numbers_trials_as_the_records_do(space: SearchSpace) -> None:
    trials = [trial_of(space, narrow(space, bits), number) for number, bits in enumerate((8, 5, 4))]
    study = study_of(trials, GOALS, BASELINE, space_distributions(space))
    assert [(trial.number, trial.params) for trial in study.trials] == [
        (trial.number, dict(trial.params)) for trial in trials
    ]


def test_reasons_are_attributes_of_the_trial(space: SearchSpace) -> None:
    reasons = {"kind": "seed", "predicted_latency_ms": 0.25}
    frozen = frozen_of(trial_of(space, narrow(space, 8), reasons=reasons), space)
    assert frozen.user_attrs.items() >= reasons.items()
