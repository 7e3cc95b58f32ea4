"""Whole searches by the guided strategy, over arithmetic."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoq.core.choices import AS_IT_IS, Candidate, Rewrites
from autoq.core.hypervolume import hypervolume
from autoq.core.measurements import Measurement
from autoq.search.engine import StopReason
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.records import TrialRecord, TrialState
from autoq.testing.synthetic import SyntheticRunner
from autoq.testing.synthetic_guide import synthetic_guide

MakeBench = Callable[..., Any]
OBJECTIVES = [
    objectives
    for n_objectives in range(1, 5)
    for objectives in itertools.combinations(Objective, n_objectives)
]
KINDS = {"anchor", "seed", "genes", "flip", "repeat"}


def every_fourth_fails(candidate: Candidate) -> str:
    return "no memory" if int(candidate.digest, 16) % 4 == 0 else ""


class Racing(SyntheticRunner):
    """Breaks accuracy off for whatever loses much, as a race does."""

    def run_trial(self, candidate: Candidate) -> Measurement:
        found = super().run_trial(candidate)
        if found.accuracy.drop < 0.03:
            return found
        return replace(found, accuracy=replace(found.accuracy, n_examples=7, is_estimate=True))


def reloaded(trial: TrialRecord) -> TrialRecord:
    """Return a trial as a store gives it back."""
    names = ("params", "sampler_notes", "reasons")
    changes = {name: json.loads(json.dumps(dict(getattr(trial, name)))) for name in names}
    return replace(trial, **changes)


def volume_of(bench: Any, digests: list[str]) -> float:
    """Hypervolume that some trials hold, measured as a user would see it."""
    points = [
        (max(t.measurement.accuracy.drop, 0.0), float(np.log(t.measurement.latency.latency_ms)))
        for t in bench.trials
        if t.digest in digests and t.measurement is not None
    ]
    return hypervolume(np.array(points), np.array([0.1, 0.0]))


def test_a_search_runs_to_its_end_and_says_why_it_tried_each_trial(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_trials=18)
    assert bench.run().reason is StopReason.TRIALS
    n_anchors = len(bench.plan.anchors)
    assert [trial.state for trial in bench.trials] == [TrialState.COMPLETE] * 18
    assert [trial.reasons["kind"] for trial in bench.trials[:n_anchors]] == ["anchor"] * n_anchors
    for trial in bench.trials[n_anchors:]:
        reasons = trial.reasons
        assert trial.origin == f"guided {reasons['kind']}"
        assert reasons["kind"] in KINDS
        assert reasons["why"]
        assert reasons["aim"] in ("best", "front")
        assert reasons["predicted_latency_sd_ms"] > 0.0
        assert json.loads(json.dumps(dict(reasons))) == reasons


def test_what_is_foretold_comes_true(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_layers=4, n_trials=20)
    bench.run()
    proposed = bench.trials[len(bench.plan.anchors) :]
    latency = [t.reasons["predicted_latency_ms"] / t.measurement.latency.latency_ms - 1.0 for t in proposed]
    assert np.median(np.abs(latency)) <= 0.05
    drops = [(t.reasons["predicted_drop"], t.measurement.accuracy.drop) for t in proposed]
    assert np.median([abs(foretold - found) for foretold, found in drops]) <= 0.01
    sizes = [t.reasons["predicted_bundle_bytes"] / t.measurement.size.bundle_bytes - 1.0 for t in proposed]
    assert np.median(np.abs(sizes)) <= 0.15


def test_few_guided_trials_hold_more_of_the_front_than_many_random_ones(make_bench: MakeBench) -> None:
    guided = make_bench("guided", n_layers=4, n_trials=16)
    guided.run()
    held = volume_of(guided, guided.digests)
    for seed in range(2):
        blind = make_bench("random", n_layers=4, n_trials=100, seed=seed)
        blind.run()
        assert held > volume_of(blind, blind.digests)


@pytest.mark.parametrize("fails", [False, True])
def test_a_search_interrupted_anywhere_goes_on_with_the_same_candidates(
    make_bench: MakeBench, fails: bool
) -> None:
    plan = {"n_layers": 2, "n_trials": 14, "seed": 3, "fail": every_fourth_fails if fails else lambda _: ""}
    whole = make_bench("guided", **plan)
    whole.run()
    for n_done in (2, 6, 9, 12):  # within the anchors, before the first seed, among genes and flips
        again = make_bench("guided", **plan)
        for trial in whole.trials[:n_done]:
            again.ledger.add_trial("bench", reloaded(trial))
        again.run()
        assert again.digests == whole.digests, f"interrupted after {n_done} trials"
        assert [t.params for t in again.trials] == [t.params for t in whole.trials]
        assert [t.reasons for t in again.trials] == [t.reasons for t in whole.trials]


def test_another_seed_asks_for_other_genes(make_bench: MakeBench) -> None:
    found = []
    for seed in (0, 1):
        bench = make_bench("guided", n_trials=16, seed=seed)
        bench.run()
        found.append(bench.digests)
    assert found[0][:6] == found[1][:6]
    assert found[0] != found[1]


def test_nothing_is_tried_twice(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_layers=2, n_trials=24, fail=every_fourth_fails)
    bench.run()
    assert len(set(bench.digests)) == len(bench.digests) == 24
    assert any(trial.state is TrialState.FAILED for trial in bench.trials)


@pytest.mark.parametrize("objectives", OBJECTIVES, ids=["+".join(one) for one in OBJECTIVES])
def test_every_combination_of_objectives_is_searched(
    make_bench: MakeBench, objectives: tuple[Objective, ...]
) -> None:
    bench = make_bench("guided", n_layers=2, n_trials=11, goals=Goals(objectives))
    assert bench.run().reason is StopReason.TRIALS
    assert len(set(bench.digests)) == 11


@pytest.mark.parametrize(
    "bounds",
    [
        Constraints(max_latency_ratio=0.5),
        Constraints(max_latency_ms=0.5, max_accuracy_drop=0.02),
        Constraints(max_size_bytes=1_500),
        Constraints(max_bundle_bytes=1_000, max_accuracy_drop=0.05),
        Constraints(max_accuracy_drop=0.0),
    ],
    ids=["half the time", "time and drop", "size", "bundle and drop", "no drop at all"],
)
def test_the_best_point_keeps_every_bound(make_bench: MakeBench, bounds: Constraints) -> None:
    goals = Goals((Objective.ACCURACY, Objective.LATENCY), bounds)
    bench = make_bench("guided", n_layers=2, n_trials=12, goals=goals)
    assert bench.run().reason is StopReason.TRIALS
    progress = bench.listener.progress[-1]
    assert progress.best is not None
    assert goals.feasible(progress.best.trial.measurement, bench.record.baseline)
    assert not bench.listener.notes


def test_with_a_bound_on_bytes_out_of_reach_the_nearest_point_is_sought(make_bench: MakeBench) -> None:
    goals = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(max_bundle_bytes=10))
    bench = make_bench("guided", n_layers=3, n_trials=14, goals=goals)
    bench.run()
    n_anchors = len(bench.plan.anchors)
    assert {trial.reasons["aim"] for trial in bench.trials[n_anchors:]} == {"nearest"}
    sizes = [trial.measurement.size.bundle_bytes for trial in bench.trials]
    assert min(sizes[n_anchors:]) < min(sizes[:n_anchors])


def test_a_budget_out_of_reach_is_said_once_and_the_nearest_point_is_sought(make_bench: MakeBench) -> None:
    goals = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(max_latency_ms=0.05))
    bench = make_bench("guided", n_layers=3, n_trials=14, goals=goals)
    bench.run()
    (note,) = bench.listener.notes
    assert note.startswith("warning: the latency budget of 0.05 ms looks out of reach: nothing in this space")
    n_anchors = len(bench.plan.anchors)
    assert {trial.reasons["aim"] for trial in bench.trials[n_anchors:]} == {"nearest"}
    fastest = min(trial.measurement.latency.latency_ms for trial in bench.trials)
    assert fastest <= min(trial.measurement.latency.latency_ms for trial in bench.trials[:n_anchors])


def test_a_budget_within_reach_is_not_called_out_of_reach(make_bench: MakeBench) -> None:
    goals = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(max_latency_ms=0.24))
    bench = make_bench("guided", n_trials=12, goals=goals)
    bench.run()
    assert bench.listener.notes == []


def test_an_anchor_outside_the_space_is_kept_and_nothing_is_foretold_of_it(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_trials=8)
    bench.run()
    mine = next(trial for trial in bench.trials if trial.origin == "anchor mine")
    assert mine.reasons == {"kind": "anchor", "why": "outside the space: nothing is foretold"}
    assert mine.params == {}
    assert bench.plan.guide.stitch(mine.candidate) is None


def test_a_search_without_anchors_begins_with_the_seeds(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_trials=5)
    bench.run(anchors=())
    assert [trial.reasons["kind"] for trial in bench.trials[:2]] == ["seed", "seed"]
    assert len(set(bench.digests)) == 5


def test_anchors_alone_are_a_search(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_trials=3)
    assert bench.run().reason is StopReason.TRIALS
    assert [trial.reasons["kind"] for trial in bench.trials] == ["anchor"] * 3


def test_raced_out_trials_are_estimates_and_no_members_of_the_front(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_layers=3, n_trials=20)
    bench.runner = Racing()
    assert bench.run().reason is StopReason.TRIALS
    assert len(set(bench.digests)) == 20
    raced = {trial.number for trial in bench.trials if trial.measurement.accuracy.is_estimate}
    assert raced
    parents = [int(t.reasons["why"].split()[1]) for t in bench.trials if t.reasons["kind"] == "flip"]
    assert not raced & set(parents)


def test_a_search_whose_probes_all_failed_still_runs(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_trials=14)
    bench.plan = replace(bench.plan, guide=replace(bench.plan.guide, error_probes=(), latency_probes=()))
    assert bench.run().reason is StopReason.TRIALS
    assert len(set(bench.digests)) == 14


def test_a_search_whose_anchors_all_failed_still_runs(make_bench: MakeBench) -> None:
    anchors = {anchor.candidate.digest for anchor in make_bench().plan.anchors}
    bench = make_bench("guided", n_trials=14, fail=lambda c: "no kernel" if c.digest in anchors else "")
    assert bench.run().reason is StopReason.TRIALS
    assert sum(trial.state is TrialState.COMPLETE for trial in bench.trials) == 14 - len(anchors)


def test_a_tiny_space_is_tried_until_nothing_is_left_and_called_exhausted(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_layers=1, n_trials=1_000)
    guide = bench.plan.guide
    few = tuple(replace(slot, options=slot.options[:4]) if slot.is_layer else slot for slot in guide.usual)
    plain = replace(guide, slots={AS_IT_IS: few}, error_probes=(), latency_probes=())
    stop = bench.run(guide=plain)
    assert stop.reason is StopReason.EXHAUSTED
    measured = {trial.digest for trial in bench.trials if trial.state is TrialState.COMPLETE}
    assert len(measured) == len(bench.runner.measured) > len(bench.plan.anchors)
    assert bench.trials[-1].state is TrialState.REPEATED
    assert bench.trials[-1].reasons["kind"] == "repeat"


def test_a_space_of_one_candidate_is_exhausted_at_once(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_layers=1, n_trials=1_000)
    guide = bench.plan.guide
    only = tuple(replace(slot, options=slot.options[:1]) for slot in guide.usual)
    single = replace(guide, slots={AS_IT_IS: only}, error_probes=(), latency_probes=())
    assert bench.run(guide=single, anchors=()).reason is StopReason.EXHAUSTED
    assert len(bench.runner.measured) == 1


def test_several_float_models_are_all_tried(make_bench: MakeBench) -> None:
    bench = make_bench("guided", n_layers=2, n_trials=16)
    rewrites = (AS_IT_IS, Rewrites(equalize=True))
    guide = synthetic_guide(bench.plan.space, SyntheticRunner(), rewrites=rewrites)
    assert bench.run(guide=guide).reason is StopReason.TRIALS
    assert {trial.candidate.rewrites for trial in bench.trials} == set(rewrites)
    genes = [trial.params for trial in bench.trials if trial.reasons["kind"] == "genes"]
    assert all(isinstance(one["rewrites"], int) for one in genes)


def test_an_error_that_is_better_lower_is_searched_as_well(make_bench: MakeBench) -> None:
    goals = Goals(
        (Objective.ACCURACY, Objective.LATENCY), Constraints(max_accuracy_drop=0.03), maximize=False
    )
    bench = make_bench("guided", n_layers=2, n_trials=14, goals=goals)
    assert bench.run().reason is StopReason.TRIALS
    assert bench.listener.progress[-1].n_feasible > 1
