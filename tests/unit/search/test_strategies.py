from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest

from autoq.core.choices import Candidate, Choice
from autoq.core.errors import UnknownNameError
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.records import TrialRecord, TrialState
from autoq.search.space import SearchSpace
from autoq.search.strategies import Strategy, distributions, strategy_names, to_frozen
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


def strategy_on(name: str, space: SearchSpace, goals: Goals = GOALS) -> Strategy:
    return Strategy(name, space=space, goals=goals, baseline=BASELINE, seed=0)


def narrow(space: SearchSpace, bits: int) -> Candidate:
    """Every layer at one width."""
    choices = {
        layer.name: Choice.of("int8", weight_bits=bits, calibration="percentile99.99")
        for layer in space.layers
    }
    return Candidate.of(choices, space.decode({}).by_op)


def test_every_named_strategy_exists_and_others_are_refused(space: SearchSpace) -> None:
    for name in strategy_names():
        assert strategy_on(name, space).suggest(0).params.keys() == distributions(space).keys()
    with pytest.raises(UnknownNameError, match=r"no strategy named 'guided'.*known: tpe, nsga2, gp, random"):
        strategy_on("guided", space)


def test_a_proposal_out_of_turn_is_refused(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="trial 3 is asked for, but 0 were taught"):
        strategy_on("random", space).suggest(3)


def test_nsga2_breeds_from_the_anchors(space: SearchSpace) -> None:
    strategy = strategy_on("nsga2", space)
    anchor = narrow(space, 8)
    params = space.encode(anchor)
    for number in range(16):
        notes = strategy.notes_for_anchor(params)
        strategy.teach(trial_of(space, anchor, number, sampler_notes=notes))
    child = strategy.suggest(16).params
    assert params is not None
    # All parents are alike, so only mutated genes differ: one of 19 on average.
    assert sum(child[name] == params[name] for name in params) >= len(params) - 5


def test_tpe_learns_from_the_bounds_and_not_from_the_values_alone(space: SearchSpace) -> None:
    """The fastest candidates break the bound, so what is proposed must move away from them."""

    def mean_bits(goals: Goals) -> float:
        strategy = strategy_on("tpe", space, goals)
        for number in range(40):
            candidate = narrow(space, 4 + number % 5)
            measurement = synthetic_measurement(candidate)
            # Fewer bits are faster here, and only 8 bits keep the bound.
            faster = replace(measurement.latency, latency_ms=candidate.choices[0][1].weight_bits / 8)
            strategy.teach(
                trial_of(space, candidate, number, measurement=replace(measurement, latency=faster))
            )
        proposed = space.decode(strategy.suggest(40).params)
        bits = [choice.weight_bits for _, choice in proposed.choices if choice.weight_bits <= 8]
        return sum(bits) / len(bits)

    free = mean_bits(Goals((Objective.LATENCY,)))
    bounded = mean_bits(Goals((Objective.LATENCY,), Constraints(max_accuracy_drop=0.05)))
    assert bounded > free + 1.0


@pytest.mark.parametrize("name", ["tpe", "nsga2", "gp"])
def test_a_trial_outside_the_space_does_not_blind_a_strategy(space: SearchSpace, name: str) -> None:
    """A complete trial without parameters would empty the space that samplers infer."""
    with_outsider, without = strategy_on(name, space), strategy_on(name, space)
    outside = narrow(space, 8).with_choice("layer0", Choice.of("int8_dynamic"))
    for strategy, first in ((with_outsider, outside), (without, None)):
        reason = {"state": TrialState.FAILED, "measurement": None, "reason": "died"}
        strategy.teach(trial_of(space, first or narrow(space, 8), 0, **({} if first else reason)))
        for number in range(1, 18):
            candidate = narrow(space, 4 + number % 5)
            notes = strategy.notes_for_anchor({"any": 1})
            strategy.teach(trial_of(space, candidate, number, sampler_notes=notes))
    assert dict(with_outsider.suggest(18).params) == dict(without.suggest(18).params)


def test_a_feasible_trial_is_complete_with_its_natural_values(space: SearchSpace) -> None:
    trial = trial_of(space, narrow(space, 8), sampler_notes={"NSGAIISampler:generation": 2})
    frozen = to_frozen(trial, GOALS, BASELINE, space)
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
    frozen = to_frozen(trial_of(space, narrow(space, 4)), GOALS, BASELINE, space)
    assert frozen.state is optuna.trial.TrialState.COMPLETE
    assert frozen.constraints["max_accuracy_drop"] > 0.0


def test_a_failed_trial_is_failed_with_a_reason_that_fits_the_database(space: SearchSpace) -> None:
    trial = trial_of(space, narrow(space, 8), state=TrialState.FAILED, measurement=None, reason="x" * 10_000)
    frozen = to_frozen(trial, GOALS, BASELINE, space)
    assert frozen.state is optuna.trial.TrialState.FAIL
    assert 0 < len(frozen.user_attrs["reason"]) < 2_000
    assert frozen.params == trial.params
    assert frozen.constraints == {}


def test_a_repeated_trial_has_the_values_and_says_so(space: SearchSpace) -> None:
    frozen = to_frozen(trial_of(space, narrow(space, 8), state=TrialState.REPEATED), GOALS, BASELINE, space)
    assert frozen.state is optuna.trial.TrialState.COMPLETE
    assert frozen.user_attrs["repeated"] is True


def test_a_trial_outside_the_space_has_values_and_no_parameters(space: SearchSpace) -> None:
    outside = narrow(space, 8).with_choice("layer0", Choice.of("int8_dynamic"))
    frozen = to_frozen(trial_of(space, outside), GOALS, BASELINE, space)
    assert frozen.params == {}
    assert frozen.state is optuna.trial.TrialState.COMPLETE


def test_frozen_trials_survive_a_database_and_optuna_agrees_on_feasibility(
    space: SearchSpace, sqlite_url: str
) -> None:
    study = optuna.create_study(storage=sqlite_url, directions=GOALS.directions)
    for number, bits in enumerate((4, 8)):
        study.add_trial(to_frozen(trial_of(space, narrow(space, bits), number), GOALS, BASELINE, space))
    assert [trial.number for trial in study.best_trials] == [1]
    assert study.trials[1].params == space.encode(narrow(space, 8))


def test_importing_the_strategies_imports_neither_optuna_nor_torch() -> None:
    code = (
        "import sys, autoq.search.engine, autoq.search.strategies; "
        "sys.exit(bool({'optuna', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_making_a_study_is_silent_and_leaves_optunas_log_level_alone(
    space: SearchSpace, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    strategy_on("tpe", space).suggest(0)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""
