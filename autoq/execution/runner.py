"""Trials in a child process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from autoq.core.choices import Candidate
from autoq.core.errors import TrialOutOfMemory, UserError
from autoq.core.measurements import Baseline, Latency, Measurement
from autoq.evaluation.clock import CLOCK_PATH, is_clock_free, machine_clock
from autoq.evaluation.workbench import FinalFigures, Workbench
from autoq.execution.worker import ChildProcess
from autoq.search.outcome import holds
from autoq.search.records import FinalMeasurement, TestAccuracy


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What one trial may use."""

    timeout_s: float = 120.0
    final_timeout_s: float = 240.0  # it times for longer and scores another split
    memory_mb: float = 4096.0  # resident


class ChildTrialRunner:
    """Measures candidates on a workbench in a child process, which is replaced when it dies.

    It owns the machine's clock for as long as the child works, but for what `begin` starts; neither waiting
    for another search nor starting a child counts against a trial.
    """

    def __init__(
        self,
        factory: Callable[[], Workbench],
        limits: TrialLimits,
        *,
        max_accuracy_drop: float | None = None,
        child: ChildProcess[Workbench] | None = None,
        log_path: Path | None = None,
        clock_path: Path = CLOCK_PATH,
    ) -> None:
        """Remember how to build the workbench; nothing is started yet.

        Args:
            factory: Builds the workbench in the child; picklable.
            limits: Of every trial.
            max_accuracy_drop: Bound that the test split is asked about.
            child: One that may have been launched already; it is the runner's from now on.
            log_path: File for what a child of its own prints; standard error by default.
            clock_path: Lock file of the machine's clock.
        """
        self._factory = factory
        self._limits = limits
        self._max_accuracy_drop = max_accuracy_drop
        self._clock_path = clock_path
        self._has_turn = False
        self._child = child or ChildProcess(log_path=log_path)
        self._child.replace_factory(factory)

    def __enter__(self) -> ChildTrialRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Own the machine's clock, with a child that is ready; a turn within a turn changes nothing.

        Raises:
            InfrastructureError: The child cannot be started.
        """
        if self._has_turn:
            yield
            return
        with machine_clock(self._clock_path):
            self._has_turn = True
            try:
                self._child.start()
                yield
            finally:
                self._has_turn = False

    def begin(self) -> None:
        """Let the child get ready ahead of the first turn, unless somebody measures on this machine.

        Getting ready may run the float model, where its outputs are no longer kept.
        """
        if is_clock_free(self._clock_path):
            self._child.begin()

    def measure_baseline(self) -> Baseline:
        """Score and time the float model, with the A/A control; without a time limit.

        Raises:
            UserError: The float model alone needs more memory than a trial may have.
            TrialCrashed: It took the child down.
        """
        try:
            baseline: Baseline = self._measure("measure_baseline", timeout_s=None)
        except TrialOutOfMemory as error:
            raise UserError(
                f"the float model alone: {error.args[0]}", hint="raise search.trial_memory_mb"
            ) from error
        self._child.replace_factory(partial(_restored, self._factory, baseline))
        return baseline

    def restore(self, baseline: Baseline) -> None:
        """Take up a baseline that was measured in an earlier session, instead of measuring it."""
        if self._child.is_begun:
            self._child.close()
        self._child.replace_factory(partial(_restored, self._factory, baseline))

    def run_trial(self, candidate: Candidate) -> Measurement:
        """Assemble and measure one candidate on the search split.

        Raises:
            TrialError: The candidate failed, took too long, took too much memory, or crashed; the
                runner is ready for the next one.
            InfrastructureError: The child cannot be started.
        """
        measurement: Measurement = self._measure("run_trial", candidate, timeout_s=self._limits.timeout_s)
        return measurement

    def measure_divergence(self, candidate: Candidate) -> float:
        """Say how far a candidate is from the float model on a few examples, without scoring or timing it.

        Raises:
            TrialError: As `run_trial`.
            InfrastructureError: The child cannot be started.
        """
        divergence: float = self._measure("measure_divergence", candidate, timeout_s=self._limits.timeout_s)
        return divergence

    def measure_latency(self, candidate: Candidate) -> Latency:
        """Time a candidate, shortly.

        Raises:
            TrialError: As `run_trial`.
            InfrastructureError: The child cannot be started.
        """
        latency: Latency = self._measure("measure_latency", candidate, timeout_s=self._limits.timeout_s)
        return latency

    def run_final(self, candidate: Candidate) -> FinalMeasurement:
        """Measure one candidate afresh and for longer, and score it on the test split if there is one.

        Raises:
            TrialError: The candidate failed, or the runtime is unfaithful to it.
            InfrastructureError: The child cannot be started.
        """
        figures: FinalFigures = self._measure("run_final", candidate, timeout_s=self._limits.final_timeout_s)
        test = None
        if figures.test is not None:
            test = TestAccuracy(figures.test, holds(figures.test, self._max_accuracy_drop))
        return FinalMeasurement(candidate.digest, figures.latency, test)

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def _measure(self, method: str, *args: Any, timeout_s: float | None) -> Any:
        with self.turn():
            return self._child.call(method, *args, timeout_s=timeout_s, memory_mb=self._limits.memory_mb)


def _restored(factory: Callable[[], Workbench], baseline: Baseline) -> Workbench:
    workbench = factory()
    workbench.restore(baseline)
    return workbench
