"""Finalists are tried again with AdaRound: who, on which layers, and what a stop in between leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autoq.core.choices import Rounding
from autoq.search.engine import StopReason, run_search
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.outcome import build_outcome
from autoq.search.records import SearchState
from autoq.search.refinement import MAX_REFINED, is_refinement

MakeBench = Callable[..., Any]
N_TRIALS = 24
GOALS = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints())  # few bits are feasible too


@pytest.fixture
def bench(make_bench: MakeBench) -> Any:
    return make_bench(n_trials=N_TRIALS, goals=GOALS, finalist_rounding=Rounding.ADAROUND)


def extras(bench: Any) -> list[Any]:
    return [trial for trial in bench.trials if is_refinement(trial)]


def test_the_best_points_are_tried_again_beyond_the_budget_of_trials(bench: Any) -> None:
    stop = bench.run()
    assert stop.reason is StopReason.TRIALS
    plain = [trial for trial in bench.trials if not is_refinement(trial)]
    assert len({trial.digest for trial in plain}) == N_TRIALS
    assert 1 <= len(extras(bench)) <= MAX_REFINED
    outcome = build_outcome(bench.record, bench.plan.goals, plain)
    allowed = {point.trial.number for point in outcome.front if point.feasible}
    allowed |= {outcome.best.trial.number}
    for trial in extras(bench):
        assert int(trial.origin.removeprefix("adaround of trial ")) in allowed


def test_exactly_the_layers_below_eight_bits_change_their_rounding(bench: Any) -> None:
    bench.run()
    by_number = {trial.number: trial for trial in bench.trials}
    for trial in extras(bench):
        before = by_number[int(trial.origin.rpartition(" ")[2])].candidate
        assert trial.candidate.by_op == before.by_op
        for name, choice in trial.candidate.choices:
            was = before.by_layer[name]
            if was.weight_bits < 8:
                assert choice.rounding is Rounding.ADAROUND
                assert choice.label == was.label
                assert choice.weight_bits == was.weight_bits
            else:
                assert choice == was


def test_without_the_option_nothing_is_tried_again(make_bench: MakeBench) -> None:
    bench = make_bench(n_trials=N_TRIALS)
    bench.run()
    assert extras(bench) == []


def test_an_interrupted_round_goes_on_and_measures_nothing_twice(bench: Any, make_bench: MakeBench) -> None:
    whole = make_bench(n_trials=N_TRIALS, goals=GOALS, finalist_rounding=Rounding.ADAROUND)
    whole.run()
    n_before = len(whole.trials) - len(extras(whole))
    assert len(extras(whole)) > 1
    stop = bench.run(should_stop=bench.stop_at(n_before + 1))
    assert stop.reason is StopReason.INTERRUPTED
    assert bench.ledger.load_search("bench").state is SearchState.INTERRUPTED
    assert len(extras(bench)) == 1
    bench.run()
    bench.run()
    assert bench.digests == whole.digests
    assert len(set(bench.runner.measured)) == len(bench.runner.measured)


def test_a_search_that_goes_on_with_more_trials_gets_all_of_them(bench: Any) -> None:
    bench.run()
    n_extras = len(extras(bench))
    bench.run(n_trials=N_TRIALS + 6, finalist_rounding=None)
    plain = {trial.digest for trial in bench.trials if not is_refinement(trial)}
    assert len(plain) == N_TRIALS + 6
    assert len(extras(bench)) == n_extras


def test_variants_are_built_before_the_clock_of_a_trial_runs(bench: Any) -> None:
    built: list[tuple[str, int]] = []

    def build_ahead(candidate: Any) -> None:
        built.append((candidate.digest, len(bench.runner.measured)))

    run_search(bench.record, bench.plan, bench.services(build_ahead=build_ahead))
    assert [digest for digest, _ in built] == [trial.digest for trial in extras(bench)]
    assert [n for _, n in built] == [len(bench.runner.measured) - k for k in range(len(built), 0, -1)]
