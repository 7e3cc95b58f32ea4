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
from autoq.search.engine import Plan
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.guided import GuidedStrategy
from autoq.search.proposals import Proposal, Strategy
from autoq.search.records import TrialRecord, TrialState
from autoq.search.samplers import SAMPLERS
from autoq.search.space import SearchSpace
from autoq.search.strategies import GUIDED, create_strategy, strategy_names
from autoq.search.studies import space_distributions
from autoq.testing.synthetic import synthetic_baseline, synthetic_measurement

MakeBench = Callable[..., Any]
BASELINE = synthetic_baseline()
GOALS = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(max_accuracy_drop=0.05))


@pytest.fixture
def space(make_bench: MakeBench) -> SearchSpace:
    found: SearchSpace = make_bench(n_layers=6).plan.space
    return found


def plan_of(name: str, space: SearchSpace, goals: Goals = GOALS) -> Plan:
    return Plan(goals, space, (), name, n_trials=60)


def strategy_on(name: str, space: SearchSpace, goals: Goals = GOALS) -> Strategy:
    return create_strategy(plan_of(name, space, goals), BASELINE)


def trial_of(space: SearchSpace, proposal: Proposal, number: int = 0, **changes: Any) -> TrialRecord:
    """Record a proposal, as the loop does."""
    trial = TrialRecord(
        number,
        "tpe",
        proposal.params,
        proposal.candidate,
        TrialState.COMPLETE,
        synthetic_measurement(proposal.candidate),
        sampler_notes=proposal.notes,
    )
    return replace(trial, **changes)


def narrow(space: SearchSpace, bits: int) -> Candidate:
    """Every layer at one width."""
    choices = {
        layer.name: Choice.of("int8", weight_bits=bits, calibration="percentile99.99")
        for layer in space.layers
    }
    return Candidate.of(choices, space.decode({}).by_op)


def test_guided_is_the_usual_strategy_and_samplers_are_the_others() -> None:
    assert strategy_names() == [GUIDED, "tpe", "nsga2", "gp", "random"]


def test_every_named_strategy_exists_and_others_are_refused(
    space: SearchSpace, make_bench: MakeBench
) -> None:
    for name in SAMPLERS:
        assert strategy_on(name, space).propose(0).params.keys() == space_distributions(space).keys()
    guided = make_bench(GUIDED, n_layers=1)
    assert isinstance(create_strategy(guided.plan, BASELINE), GuidedStrategy)
    refused = r"no strategy named 'psychic'.*known: guided, tpe, nsga2, gp, random"
    with pytest.raises(UnknownNameError, match=refused):
        strategy_on("psychic", space)


def test_the_guided_strategy_does_not_start_without_a_guide(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="needs a guide"):
        strategy_on(GUIDED, space)


def test_a_samplers_proposal_is_what_its_parameters_say(space: SearchSpace) -> None:
    for name in SAMPLERS:
        proposal = strategy_on(name, space).propose(0)
        assert proposal.candidate == space.decode(proposal.params)
        assert (proposal.reasons, proposal.origin, proposal.warning) == ({}, "", "")


def test_an_anchor_is_adopted_with_its_parameters_and_one_outside_without(space: SearchSpace) -> None:
    inside = narrow(space, 8)
    outside = inside.with_choice("layer0", Choice.of("int8_dynamic"))
    for name in SAMPLERS:
        strategy = strategy_on(name, space)
        assert strategy.adopt(inside).params == space.encode(inside)
        assert strategy.adopt(outside) == Proposal(outside)


def test_a_proposal_out_of_turn_is_refused(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="trial 3 is asked for, but 0 were taught"):
        strategy_on("random", space).propose(3)


def test_nsga2_breeds_from_the_anchors(space: SearchSpace) -> None:
    strategy = strategy_on("nsga2", space)
    anchor = narrow(space, 8)
    params = space.encode(anchor)
    for number in range(16):
        strategy.teach(trial_of(space, strategy.adopt(anchor), number))
    child = strategy.propose(16).params
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
            proposal = strategy.adopt(candidate)
            strategy.teach(
                trial_of(space, proposal, number, measurement=replace(measurement, latency=faster))
            )
        proposed = space.decode(strategy.propose(40).params)
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
        adopted = strategy.adopt(first or narrow(space, 8))
        strategy.teach(trial_of(space, adopted, 0, **({} if first else reason)))
        for number in range(1, 18):
            adopted = strategy.adopt(narrow(space, 4 + number % 5))
            strategy.teach(trial_of(space, adopted, number))
    assert dict(with_outsider.propose(18).params) == dict(without.propose(18).params)


def test_importing_the_strategies_imports_neither_optuna_nor_torch() -> None:
    code = (
        "import sys, autoq.search.engine, autoq.search.strategies, autoq.search.guided; "
        "sys.exit(bool({'optuna', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_making_a_study_is_silent_and_leaves_optunas_log_level_alone(
    space: SearchSpace, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    strategy_on("tpe", space).propose(0)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""
