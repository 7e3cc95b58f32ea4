"""Tracking that a search can rely on not to stop or slow it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autoq.core.errors import InfrastructureError
from autoq.search.outcome import Outcome
from autoq.search.records import SearchRecord, TrialRecord
from autoq.tracking.mlflow_tracking import MlflowTracker
from autoq.tracking.onnx_model import DeployedModel

FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 480.0  # a server that hangs costs a time-out a try: under 1 % of the search
SLOW_S = 0.5  # of one trial's writing; 10 to 30 ms is usual


class ResilientTracker:
    """A tracker that notes when its server goes away or comes back, and never raises for it.

    While the server is away, or so slow that trials would wait for it, calls return at once; the server
    is tried again after 30 s, then after twice as long each time. What it missed is added at the end, or
    by `autoq sync`.
    """

    def __init__(
        self,
        tracker: MlflowTracker,
        on_note: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._on_note = on_note
        self._clock = clock
        self._pause_s = 0.0  # 0: the server answers, and quickly
        self.retry_at = 0.0

    def prepare(self) -> None:
        """Import MLflow and create what is missing; see `MlflowTracker.prepare`."""
        self._try(self._tracker.prepare)

    def start_search(self, record: SearchRecord) -> None:
        """Open the parent run."""
        self._try(lambda: self._tracker.start_search(record))

    def log_trial(self, record: SearchRecord, trial: TrialRecord, *, feasible: bool) -> None:
        """Write a trial."""
        self._try(lambda: self._tracker.log_trial(record, trial, feasible=feasible), limit_s=SLOW_S)

    def finish_search(
        self,
        record: SearchRecord,
        trials: Sequence[TrialRecord],
        outcome: Outcome,
        artifacts: Mapping[str, Path],
        model: DeployedModel | None = None,
    ) -> bool:
        """Write the end of the search, and every trial that was missed. Return whether all is there."""
        self.retry_at = 0.0  # the last chance
        if self._try(lambda: self._tracker.sync(record, trials, outcome, artifacts, model)):
            return True
        self._on_note(
            f"MLflow does not show all of this search; `autoq sync {record.name}` adds what is missing"
        )
        return False

    def _try(self, write: Callable[[], object], *, limit_s: float = math.inf) -> bool:
        began = self._clock()
        if self._pause_s and began < self.retry_at:
            return False
        try:
            write()
        except InfrastructureError as error:
            self._pause(f"{error}; the search goes on without it")
            return False
        took_s = self._clock() - began
        if took_s > limit_s:
            self._pause(f"the tracking server takes {took_s:.1f} s a trial; the search does not wait for it")
        elif self._pause_s:
            self._on_note("the tracking server is back")
            self._pause_s = 0.0
        return True

    def _pause(self, reason: str) -> None:
        if not self._pause_s:
            self._on_note(reason)
        self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self.retry_at = self._clock() + self._pause_s
