from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from autoq.core.choices import Candidate
from autoq.core.errors import StoreUnavailable, TrialTimeout
from autoq.core.fronts import dominates
from autoq.core.measurements import Measurement
from autoq.search.engine import MAX_REPEATS, Services, StopReason, run_search
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.outcome import build_outcome
from autoq.search.records import SearchState, TrialRecord, TrialState
from autoq.testing.synthetic import SyntheticRunner

MakeBench = Callable[..., Any]
STRATEGIES = ["tpe", "nsga2", "random"]


def every_third_fails(candidate: Candidate) -> str:
    return "no memory" if int(candidate.digest, 16) % 3 == 0 else ""


def everything_fails(candidate: Candidate) -> str:
    return "no kernel" if int(candidate.digest, 16) % 4 else "bad luck"


def reloaded(trial: TrialRecord) -> TrialRecord:
    """Return a trial as a store gives it back: its parameters and notes went through JSON."""
    notes = json.loads(json.dumps(dict(trial.sampler_notes)))
    return replace(trial, params=json.loads(json.dumps(dict(trial.params))), sampler_notes=notes)


def assert_any_interruption_changes_nothing(
    make_bench: MakeBench, strategy: str, *, first: int = 0, **plan: Any
) -> None:
    whole = make_bench(strategy, **plan)
    whole.run()
    for n_done in range(first, len(whole.trials)):
        again = make_bench(strategy, **plan)
        for trial in whole.trials[:n_done]:
            again.ledger.add_trial("bench", reloaded(trial))
        again.run()
        assert again.digests == whole.digests, f"interrupted after {n_done} trials"
        assert [t.sampler_notes for t in again.trials] == [t.sampler_notes for t in whole.trials]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_search_interrupted_anywhere_goes_on_with_the_same_candidates(
    make_bench: MakeBench, strategy: str
) -> None:
    # NSGA-II's second and third generation begin after 32 and 48 trials.
    n_trials = 52 if strategy == "nsga2" else 24
    assert_any_interruption_changes_nothing(
        make_bench, strategy, n_trials=n_trials, fail=every_third_fails, seed=3
    )


def test_gp_interrupted_anywhere_goes_on_with_the_same_candidates(make_bench: MakeBench) -> None:
    # Its model takes over after ten complete trials inside the space, and costs time.
    assert_any_interruption_changes_nothing(make_bench, "gp", first=10, n_layers=2, n_trials=14)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "gp"])
@pytest.mark.parametrize(
    "goals",
    [
        Goals((Objective.LATENCY,)),
        Goals((Objective.ACCURACY, Objective.LATENCY, Objective.STORAGE), Constraints(max_latency_ratio=0.5)),
        Goals((Objective.ACCURACY, Objective.SIZE), Constraints(max_latency_ms=1e-3, max_size_bytes=1)),
    ],
    ids=["one objective, no bound", "three objectives", "nothing is feasible"],
)
def test_every_strategy_takes_one_to_three_objectives(
    make_bench: MakeBench, strategy: str, goals: Goals
) -> None:
    bench = make_bench(strategy, goals=goals, n_layers=2, n_trials=13 if strategy == "gp" else 36)
    assert bench.run().reason is StopReason.TRIALS
    assert len({trial.digest for trial in bench.trials}) >= 13


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_seed_gives_other_candidates(make_bench: MakeBench, strategy: str) -> None:
    digests = []
    for seed in (0, 1):
        bench = make_bench(strategy, seed=seed, n_trials=12)
        bench.run()
        digests.append(bench.digests)
    n_anchors = len(bench.plan.anchors)
    assert digests[0][:n_anchors] == digests[1][:n_anchors]
    assert digests[0][n_anchors:] != digests[1][n_anchors:]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_anchors_come_first_in_every_strategy(make_bench: MakeBench, strategy: str) -> None:
    bench = make_bench(strategy, n_trials=10)
    bench.run()
    names = [anchor.name for anchor in bench.plan.anchors]
    assert names[0] == "float"
    assert names[-1] == "mine"
    assert [trial.origin for trial in bench.trials[:7]] == [*(f"anchor {name}" for name in names), strategy]
    assert dict(bench.trials[len(names) - 1].params) == {}
    assert bench.plan.space.encode(bench.trials[1].candidate) == bench.trials[1].params


def test_no_candidate_is_measured_twice_and_repeats_do_not_count(make_bench: MakeBench) -> None:
    bench = make_bench("random", n_layers=1, n_trials=40)
    bench.run()
    trials = bench.trials
    repeated = [trial for trial in trials if trial.state is TrialState.REPEATED]
    assert repeated, "the space is small enough for repeats"
    assert len(trials) - len(repeated) == 40
    assert len(set(bench.runner.measured)) == len(bench.runner.measured) == 40
    first = {trial.digest: trial for trial in reversed(trials)}
    assert all(trial.measurement == first[trial.digest].measurement for trial in repeated)
    assert not any(trial.number in bench.listener.started for trial in repeated)


def test_a_candidate_that_failed_is_not_tried_again(make_bench: MakeBench) -> None:
    bench = make_bench("random", n_layers=1, n_trials=40, fail=every_third_fails)
    bench.run()
    failed = {trial.digest for trial in bench.trials if trial.state is TrialState.FAILED}
    again = [t for t in bench.trials if t.digest in failed and t.state is TrialState.REPEATED]
    assert again
    assert all(trial.measurement is None and trial.reason == "TrialError: no memory" for trial in again)
    assert len(set(bench.runner.measured)) == len(bench.runner.measured)


def test_a_space_without_anything_new_ends_the_search(make_bench: MakeBench) -> None:
    bench = make_bench("random", n_layers=1, n_trials=1000)
    stop = bench.run()
    assert stop.reason is StopReason.EXHAUSTED
    assert stop.state is SearchState.FINISHED
    assert {trial.state for trial in bench.trials[-MAX_REPEATS:]} == {TrialState.REPEATED}
    assert bench.trials[-MAX_REPEATS - 1].state is not TrialState.REPEATED


def test_a_trial_that_breaks_a_bound_is_infeasible_and_not_failed(make_bench: MakeBench) -> None:
    bench = make_bench(goals=Goals((Objective.LATENCY,), Constraints(max_latency_ms=1e-3)), n_trials=8)
    assert bench.run().reason is StopReason.TRIALS
    assert {trial.state for trial in bench.trials} == {TrialState.COMPLETE}
    assert bench.listener.progress[-1].n_failed == 0
    assert bench.listener.progress[-1].n_feasible == 0
    assert bench.listener.progress[-1].best is None


def test_failed_trials_count_and_keep_their_reason(make_bench: MakeBench) -> None:
    bench = make_bench(n_trials=20, fail=every_third_fails)
    assert bench.run().reason is StopReason.TRIALS
    failed = [trial for trial in bench.trials if trial.state is TrialState.FAILED]
    assert 0 < len(failed) < 20
    assert {trial.reason for trial in failed} == {"TrialError: no memory"}
    assert bench.listener.progress[-1].n_failed == len(failed)
    assert bench.listener.progress[-1].n_done == 20


@pytest.mark.parametrize(("n_trials", "n_run"), [(40, 10), (4, 4)])
def test_a_search_whose_first_trials_all_fail_stops_with_the_commonest_reason(
    make_bench: MakeBench, n_trials: int, n_run: int
) -> None:
    bench = make_bench(n_trials=n_trials, fail=everything_fails)
    stop = bench.run()
    assert stop.reason is StopReason.FAILED
    assert stop.message == f"all {n_run} trials failed: TrialError: no kernel"
    assert len(bench.trials) == n_run
    record = bench.ledger.load_search("bench")
    assert (record.state, record.message) == (SearchState.FAILED, stop.message)


def test_ten_failures_after_a_success_do_not_end_a_search(make_bench: MakeBench) -> None:
    float_only = make_bench().plan.anchors[0].candidate.digest
    bench = make_bench(n_trials=15, fail=lambda c: "" if c.digest == float_only else "no kernel")
    assert bench.run().reason is StopReason.TRIALS


def test_the_kind_of_error_is_part_of_the_reason(make_bench: MakeBench) -> None:
    class SlowRunner(SyntheticRunner):
        def run_trial(self, candidate: Candidate) -> Measurement:
            raise TrialTimeout("120 s are over")

    bench = make_bench(n_trials=1)
    bench.runner = SlowRunner()
    bench.run()
    assert bench.trials[0].reason == "TrialTimeout: 120 s are over"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_a_failed_trial(make_bench: MakeBench, value: float) -> None:
    class BrokenMetric(SyntheticRunner):
        def run_trial(self, candidate: Candidate) -> Measurement:
            found = super().run_trial(candidate)
            return replace(found, accuracy=replace(found.accuracy, value=value))

    bench = make_bench("tpe", n_trials=3)
    bench.runner = BrokenMetric()
    assert bench.run().reason is StopReason.FAILED
    assert bench.trials[0].reason == f"TrialError: the accuracy is {value}"


def test_an_interrupted_search_says_so_and_resumes_to_the_same_number(make_bench: MakeBench) -> None:
    bench = make_bench(n_trials=12)
    stop = bench.run(should_stop=bench.stop_at(5))
    assert stop.reason is StopReason.INTERRUPTED
    assert bench.ledger.load_search("bench").state is SearchState.INTERRUPTED
    assert len(bench.trials) == 5
    bench.run()
    assert len(bench.trials) == len(set(bench.runner.measured)) == len(bench.runner.measured) == 12
    assert bench.ledger.load_search("bench").state is SearchState.RUNNING


def test_a_search_without_a_measured_baseline_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    with pytest.raises(ValueError, match="no baseline"):
        run_search(bench.record.but(baseline=None), bench.plan, bench.services())


def ticking(step_s: float) -> Callable[[], float]:
    """Clock on which every look takes the same time."""
    ticks = itertools.count()
    return lambda: next(ticks) * step_s


def test_the_time_budget_is_kept_over_interruptions(make_bench: MakeBench) -> None:
    def run(bench: Any, **changes: Any) -> Any:
        services = Services(bench.ledger, bench.runner, bench.listener, clock=ticking(1.0), **changes)
        return run_search(bench.record, replace(bench.plan, time_budget_s=100.0), services)

    whole = make_bench(n_trials=1000)
    stop = run(whole)
    assert stop.reason is StopReason.TIME
    assert stop.state is SearchState.FINISHED
    spent = [trial.seconds["total"] for trial in whole.trials]
    assert sum(spent) >= 100.0 > sum(spent[:-1])
    parts = make_bench(n_trials=1000)
    run(parts, should_stop=parts.stop_at(3))
    run(parts)
    assert len(parts.trials) == len(whole.trials)
    assert parts.listener.progress[-1].left_s == 0.0


def test_patience_counts_trials_since_the_front_last_grew(make_bench: MakeBench) -> None:
    bench = make_bench("random", n_trials=1000, patience=6)
    stop = bench.run()
    assert stop.reason is StopReason.PATIENCE
    counted = [trial for trial in bench.trials if trial.state is not TrialState.REPEATED]
    costs = [bench.plan.goals.costs(trial.measurement) for trial in counted]
    new = [n for n, mine in enumerate(costs) if not any(dominates(c, mine) or c == mine for c in costs[:n])]
    assert len(counted) == max(new[-1] + 1, len(bench.plan.anchors)) + 6


def test_an_estimate_never_grows_the_front(make_bench: MakeBench) -> None:
    class AllStopped(SyntheticRunner):
        def run_trial(self, candidate: Candidate) -> Measurement:
            measurement = super().run_trial(candidate)
            return replace(measurement, accuracy=replace(measurement.accuracy, is_estimate=True))

    bench = make_bench("random", n_trials=1000, patience=3)
    bench.runner = AllStopped()
    assert bench.run().reason is StopReason.PATIENCE
    assert len(bench.trials) == len(bench.plan.anchors) + 3


def test_patience_does_not_cut_the_anchors_short(make_bench: MakeBench) -> None:
    bench = make_bench(n_trials=1000, patience=1)
    bench.run()
    assert len(bench.trials) >= len(bench.plan.anchors)


def test_every_part_of_a_trials_time_is_kept(make_bench: MakeBench) -> None:
    bench = make_bench(n_trials=9)
    bench.run(hooks=[RecordingHook("track")])
    seconds = bench.trials[-1].seconds
    assert set(seconds) == {"suggest", "build", "latency", "accuracy", "run", "store", "track", "total"}
    own = sum(seconds[part] for part in ("suggest", "run", "store", "track"))
    assert own <= seconds["total"] < own + 0.1
    assert bench.listener.ended[-1].seconds == seconds


@dataclass
class RecordingHook:
    part: str
    synced: list[list[int]] = field(default_factory=list)
    heard: list[TrialRecord] = field(default_factory=list)

    def sync(self, trials: Sequence[TrialRecord]) -> None:
        self.synced.append([trial.number for trial in trials])

    def on_trial_recorded(self, trial: TrialRecord) -> None:
        self.heard.append(trial)


def test_hooks_hear_of_old_trials_around_the_first_and_of_each_new_one(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(n_trials=9)
    bench.run(should_stop=bench.stop_at(4))
    hook = RecordingHook("track")
    bench.run(hooks=[hook])
    assert hook.synced == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert [trial.number for trial in hook.heard] == [4, 5, 6, 7, 8]


def test_a_trial_is_committed_before_a_hook_can_lose_it(make_bench: MakeBench) -> None:
    class LostStore(RecordingHook):
        def on_trial_recorded(self, trial: TrialRecord) -> None:
            raise StoreUnavailable("the database went away")

    bench = make_bench(n_trials=9)
    with pytest.raises(StoreUnavailable):
        bench.run(hooks=[LostStore("store")])
    assert len(bench.trials) == len(bench.runner.measured) == 1
    assert bench.trials[0].seconds["total"] > 0.0


def test_progress_tells_what_the_outcome_would_say(make_bench: MakeBench) -> None:
    bench = make_bench(n_trials=15, fail=every_third_fails)
    bench.run()
    outcome = build_outcome(bench.record, bench.plan.goals, bench.trials)
    progress = bench.listener.progress[-1]
    assert (progress.n_done, progress.n_total, progress.left_s) == (15, 15, 0.0)
    assert progress.n_feasible == sum(point.feasible for point in outcome.points)
    assert progress.best is not None
    assert outcome.best is not None
    assert progress.best.trial.number == outcome.best.trial.number
    assert bench.listener.progress[0].left_s is not None


def test_nsga2_counts_anchors_to_its_first_generation(make_bench: MakeBench) -> None:
    bench = make_bench("nsga2", n_trials=40)
    bench.run()
    generations = [trial.sampler_notes.get("NSGAIISampler:generation") for trial in bench.trials]
    assert generations[:7] == [0, 0, 0, 0, 0, None, 0]  # the sixth lies outside the space
    assert generations.count(0) == 16
    assert generations[-1] == 2


def test_a_search_that_failed_gets_new_attempts_when_it_is_resumed(make_bench: MakeBench) -> None:
    bench = make_bench(n_trials=30, fail=everything_fails)
    assert bench.run().reason is StopReason.FAILED
    n_before = len(bench.trials)
    bench.runner._fail = lambda candidate: ""  # mended
    assert bench.run().reason is StopReason.TRIALS
    assert any(trial.state is TrialState.COMPLETE for trial in bench.trials[n_before:])


def test_patience_begins_with_the_first_proposal(make_bench: MakeBench) -> None:
    bench = make_bench("random", n_trials=1000, patience=2)
    bench.run()
    assert len(bench.trials) >= len(bench.plan.anchors) + 2


def test_once_a_point_keeps_every_bound_others_no_longer_renew_the_patience(make_bench: MakeBench) -> None:
    class Descending(SyntheticRunner):
        """Each candidate is faster than the one before, and only the first keeps the bound on the drop."""

        def run_trial(self, candidate: Candidate) -> Measurement:
            measurement = super().run_trial(candidate)
            n, drop = len(self.measured), 0.0 if len(self.measured) == 1 else 0.9
            latency = replace(measurement.latency, latency_ms=1.0 / n)
            return replace(measurement, latency=latency, accuracy=replace(measurement.accuracy, drop=drop))

    bench = make_bench("random", n_trials=1000, patience=4)
    bench.runner = Descending()
    assert bench.run().reason is StopReason.PATIENCE
    assert len(bench.trials) == len(bench.plan.anchors) + 4
