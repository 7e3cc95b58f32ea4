"""The loop of a search: propose a candidate, measure it, commit it, tell everybody."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from autoq.core.choices import Candidate, Rounding
from autoq.core.errors import TrialError
from autoq.core.fronts import dominates
from autoq.core.measurements import Measurement
from autoq.search.anchors import Anchor
from autoq.search.goals import Goals
from autoq.search.guide import Guide
from autoq.search.outcome import build_outcome
from autoq.search.ports import Ledger, Progress, SearchListener, TrialHook, TrialRunner
from autoq.search.proposals import Proposal
from autoq.search.records import SearchRecord, SearchState, TrialRecord, TrialState
from autoq.search.refinement import is_refinement, refinements
from autoq.search.space import SearchSpace
from autoq.search.stopwatch import Stopwatch
from autoq.search.strategies import create_strategy

MAX_REPEATS = 50  # in a row: the space has nothing new, or the sampler cannot find it
MAX_FIRST_FAILURES = 10
# Share of what is being improved that a forecast has to promise to count as a gain, where there is one.
_LEAST_GAIN = 1e-3


@dataclass(frozen=True)
class Plan:
    """What is searched, and when to stop. Anchors count as trials; repeated candidates do not."""

    goals: Goals
    space: SearchSpace
    anchors: tuple[Anchor, ...]
    strategy: str
    n_trials: int
    seed: int = 0
    time_budget_s: float | None = None  # of trials, over all sessions of the search
    patience: int | None = None  # counted trials that gain the front nothing, or promised next to nothing
    guide: Guide | None = None  # what the guided strategy starts from
    finalist_rounding: Rounding | None = None  # tried on the best points beyond the counted trials


@dataclass(frozen=True)
class Services:
    """What the loop works with."""

    ledger: Ledger
    runner: TrialRunner
    listener: SearchListener
    hooks: Sequence[TrialHook] = ()
    should_stop: Callable[[], bool] = lambda: False  # asked between measurements
    build_ahead: Callable[[Candidate], object] = lambda candidate: None  # of what takes longer than a trial
    now: Callable[[], float] = time.time  # seconds since the epoch
    clock: Callable[[], float] = time.perf_counter  # seconds, for durations


class StopReason(StrEnum):
    """Why a loop came to its end."""

    TRIALS = "trials"
    TIME = "time"
    PATIENCE = "patience"
    EXHAUSTED = "exhausted"  # nothing new is proposed any more
    INTERRUPTED = "interrupted"
    FAILED = "failed"  # every trial failed


@dataclass(frozen=True)
class Stop:
    """The end of a loop, for code and for people."""

    reason: StopReason
    message: str

    @property
    def state(self) -> SearchState:
        """State of a search that ends so."""
        ends = {
            StopReason.INTERRUPTED: SearchState.INTERRUPTED,
            StopReason.FAILED: SearchState.FAILED,
        }
        return ends.get(self.reason, SearchState.FINISHED)


def run_search(record: SearchRecord, plan: Plan, services: Services) -> Stop:
    """Run the trials of a search that the ledger holds, from where it stands to its end.

    Every trial is committed before anyone is told. The record is `running` afterwards, awaiting its
    final round, unless the search was interrupted or failed.

    Raises:
        InfrastructureError: The store or the target went away; what is committed can be resumed.
    """
    services.ledger.update_search(record.but(state=SearchState.RUNNING, message=""))
    loop = _Loop(record, plan, services)
    services.listener.on_phase("trials", f"{loop.n_counted} of {plan.n_trials} done")
    with services.runner.turn():  # what hooks write must not disturb another search's timing
        for hook in services.hooks:
            hook.sync(tuple(loop.trials))
    is_first = True
    while (stop := loop.stop()) is None:
        loop.run_one()
        if is_first:  # a hook that takes long to wake up has let the first trial start before it
            for hook in services.hooks:
                hook.sync(tuple(loop.trials))
        is_first = False
    if stop.state is SearchState.FINISHED and plan.finalist_rounding is not None:
        stop = loop.refine(plan.finalist_rounding) or stop
    if stop.state is not SearchState.FINISHED:
        services.ledger.update_search(record.but(state=stop.state, message=stop.message))
    return stop


class _Loop:
    """The trials so far, and what follows from them: no state that the ledger could not rebuild."""

    def __init__(self, record: SearchRecord, plan: Plan, services: Services) -> None:
        if record.baseline is None:
            raise ValueError(f"search {record.name!r} has no baseline; it is measured before the trials")
        self._record, self._plan, self._services = record, plan, services
        self._strategy = create_strategy(plan, record.baseline)
        self._first: dict[str, TrialRecord] = {}  # by digest
        self._front: list[list[float]] = []
        self._any_feasible = False
        self._n_without_gain = 0
        self.trials: list[TrialRecord] = []
        self.n_counted = 0
        for trial in services.ledger.load_trials(record.name):
            self._strategy.teach(trial)
            self._take(trial)
        self._n_failed_before = self._n_failed

    def stop(self) -> Stop | None:
        """Say whether the search is over, and why."""
        plan, n_failed = self._plan, self._n_failed
        over = self.n_counted >= plan.n_trials
        # Failures of this session: whoever resumes has mended something, and gets new attempts.
        hopeless = n_failed - self._n_failed_before >= MAX_FIRST_FAILURES
        if n_failed and n_failed == self.n_counted and (over or hopeless):
            return Stop(StopReason.FAILED, f"all {n_failed} trials failed: {self._commonest_failure()}")
        if over:
            return Stop(StopReason.TRIALS, f"{self.n_counted} trials are done")
        if plan.time_budget_s is not None and self._spent_s >= plan.time_budget_s:
            return Stop(StopReason.TIME, f"the time budget of {plan.time_budget_s:g} s is spent")
        if self._n_repeats >= MAX_REPEATS:
            return Stop(StopReason.EXHAUSTED, f"space exhausted: {MAX_REPEATS} proposals in a row were known")
        anchors_done = len(self.trials) >= len(plan.anchors)
        if plan.patience is not None and anchors_done and self._n_without_gain >= plan.patience:
            return Stop(
                StopReason.PATIENCE,
                f"no new point on the front, or none to be expected, in the last {plan.patience} trials",
            )
        if self._services.should_stop():
            return Stop(StopReason.INTERRUPTED, f"interrupted after {self.n_counted} trials")
        return None

    def refine(self, rounding: Rounding) -> Stop | None:
        """Try the best points with another rounding; say so if that was interrupted."""
        services = self._services
        for one in refinements(self._record, self._plan.goals, self.trials, rounding):
            if services.should_stop():
                return Stop(StopReason.INTERRUPTED, f"interrupted before {one.origin}")
            services.listener.on_phase("trials", one.origin)
            services.build_ahead(one.candidate)
            with services.runner.turn():
                self._run(partial(self._given, one.origin, one.candidate))
        return None

    def run_one(self) -> None:
        """Propose, measure and commit one trial, then tell everybody.

        The machine is ours for all of it: what waits for it, or what a resumed search starts first, is
        no part of the trial's time, and our own writing disturbs nobody's clock.
        """
        with self._services.runner.turn():
            self._run(partial(self._propose, len(self.trials)))

    def _run(self, propose: Callable[[], Proposal]) -> None:
        services, number = self._services, len(self.trials)
        started_at, watch = services.now(), Stopwatch(services.clock)
        with watch.part("suggest"):
            proposal = propose()
        if proposal.warning:
            services.listener.on_note(f"warning: {proposal.warning}")
        origin = proposal.origin or self._plan.strategy
        trial = TrialRecord(
            number,
            origin,
            proposal.params,
            proposal.candidate,
            TrialState.COMPLETE,
            sampler_notes=proposal.notes,
            started_at=started_at,
            reasons=proposal.reasons,
        )
        if before := self._first.get(trial.digest):
            trial = replace(
                trial, state=TrialState.REPEATED, measurement=before.measurement, reason=before.reason
            )
        else:
            services.listener.on_trial_start(number, origin)
            with watch.part("run"):
                trial = self._measured(trial)
        trial = self._recorded(trial, watch)
        self._take(trial)
        if before is None:
            services.listener.on_trial_end(trial, self._progress())

    def _propose(self, number: int) -> Proposal:
        if number < len(self._plan.anchors):
            anchor = self._plan.anchors[number]
            return self._given(f"anchor {anchor.name}", anchor.candidate)
        return self._strategy.propose(number)

    def _given(self, origin: str, candidate: Candidate) -> Proposal:
        """Propose a candidate that the strategy was not asked for, and that may lie outside the space."""
        return replace(self._strategy.adopt(candidate), origin=origin)

    def _measured(self, trial: TrialRecord) -> TrialRecord:
        try:
            measurement = self._services.runner.run_trial(trial.candidate)
            _check_finite(measurement)
        except TrialError as error:
            return replace(trial, state=TrialState.FAILED, reason=reason_of(error))
        return replace(trial, measurement=measurement)

    def _recorded(self, trial: TrialRecord, watch: Stopwatch) -> TrialRecord:
        """Commit a trial, then tell the strategy and the hooks, and note what all that took."""
        ledger, name = self._services.ledger, self._record.name
        repeated = trial.state is TrialState.REPEATED
        parts = {} if trial.measurement is None or repeated else trial.measurement.seconds
        # With its time so far: this may be the last thing the process does.
        trial = replace(trial, seconds={**parts, **watch.read()})
        with watch.part("store"):
            ledger.add_trial(name, trial)
        with watch.part("suggest"):
            self._strategy.teach(trial)
        for hook in self._services.hooks:
            with watch.part(hook.part):
                hook.on_trial_recorded(trial)
        trial = replace(trial, seconds={**parts, **watch.read()})
        ledger.update_trial_seconds(name, trial.number, trial.seconds)
        return trial

    def _take(self, trial: TrialRecord) -> None:
        self.trials.append(trial)
        if trial.state is not TrialState.REPEATED:
            self._first.setdefault(trial.digest, trial)
        if trial.state is not TrialState.REPEATED and not is_refinement(trial):
            self.n_counted += 1
            gained = self._joins_front(trial) and trial.reasons.get("expected_gain", 1.0) >= _LEAST_GAIN
            # Anchors are no attempts to gain something: whoever proposes has its patience whole.
            is_attempt = len(self.trials) > len(self._plan.anchors)
            self._n_without_gain = self._n_without_gain + 1 if is_attempt and not gained else 0

    def _joins_front(self, trial: TrialRecord) -> bool:
        """Whether a trial is on the front; once a point keeps every bound, only those that do count."""
        measured, baseline = trial.measurement, self._record.baseline
        if measured is None or measured.accuracy.is_estimate:
            return False
        assert baseline is not None
        is_feasible = self._plan.goals.feasible(measured, baseline)
        if is_feasible and not self._any_feasible:
            self._any_feasible, self._front = True, []
        if self._any_feasible and not is_feasible:
            return False
        costs = self._plan.goals.costs(measured)
        if any(dominates(member, costs) or member == costs for member in self._front):
            return False
        self._front = [member for member in self._front if not dominates(costs, member)] + [costs]
        return True

    @property
    def _n_failed(self) -> int:
        return sum(trial.state is TrialState.FAILED and not is_refinement(trial) for trial in self.trials)

    @property
    def _n_repeats(self) -> int:
        """Number of repeated candidates since the last new one."""
        new = (n for n, t in enumerate(reversed(self.trials)) if t.state is not TrialState.REPEATED)
        return next(new, len(self.trials))

    @property
    def _spent_s(self) -> float:
        return sum(trial.seconds.get("total", 0.0) for trial in self.trials)

    def _commonest_failure(self) -> str:
        reasons = Counter(trial.reason for trial in self.trials if trial.state is TrialState.FAILED)
        return reasons.most_common(1)[0][0]

    def _progress(self) -> Progress:
        plan, spent_s = self._plan, self._spent_s
        outcome = build_outcome(self._record, plan.goals, self.trials)
        left_s = spent_s / self.n_counted * (plan.n_trials - self.n_counted)
        if plan.time_budget_s is not None:
            left_s = min(left_s, max(plan.time_budget_s - spent_s, 0.0))
        return Progress(
            n_done=self.n_counted,
            n_total=plan.n_trials,
            n_feasible=sum(point.feasible for point in outcome.points),
            n_failed=outcome.n_failed,
            best=outcome.best,
            elapsed_s=spent_s,
            left_s=left_s,
        )


def reason_of(error: TrialError) -> str:
    """Write why a trial failed: the kind of error and its message."""
    return f"{type(error).__name__}: {error}"


def _check_finite(measurement: Measurement) -> None:
    """Turn a figure that no sampler and no front can place into a failed trial."""
    figures = {
        "accuracy": measurement.accuracy.value,
        "accuracy drop": measurement.accuracy.drop,
        "latency": measurement.latency.latency_ms,
    }
    for name, value in figures.items():
        if not math.isfinite(value):
            raise TrialError(f"the {name} is {value}")
