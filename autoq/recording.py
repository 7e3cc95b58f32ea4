"""Keep the Optuna study and MLflow in step with the ledger while a search runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from autoq.home import Home
from autoq.search.engine import Plan
from autoq.search.records import SearchRecord, TrialRecord
from autoq.search.strategies import create_strategy
from autoq.spec.schema import SearchSpec

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from autoq.storage.study import StudyLedger
    from autoq.tracking.resilient import ResilientTracker


class StudyHook:
    """Keeps the Optuna study in the database in step with the ledger."""

    part = "store"

    def __init__(self, home: Home, record: SearchRecord, plan: Plan) -> None:
        self._home, self._record, self._plan, self._goals = home, record, plan, plan.goals
        self._frozen: list[FrozenTrial] = []
        self._is_open = False

    def sync(self, trials: Sequence[TrialRecord]) -> None:
        """Add the trials that the study has not heard of; a new study waits for the first of them.

        Raises:
            StoreError: The database has a study of that name which is not this search's.
        """
        from autoq.storage.study import study_exists

        if not trials and not study_exists(self._home.storage_url, self._record.name):
            return
        self._is_open = True
        self._frozen = [self._freeze(trial) for trial in trials]
        self._study.sync(self._frozen)

    def on_trial_recorded(self, trial: TrialRecord) -> None:
        """Add one trial; before the study is open they wait for the next `sync`."""
        if self._is_open:
            self._frozen.append(self._freeze(trial))
            self._study.sync(self._frozen)

    @cached_property
    def _study(self) -> StudyLedger:
        from autoq.storage.study import StudyLedger

        return StudyLedger(
            self._home.storage_url,
            self._record.name,
            directions=self._goals.directions,
            metric_names=[str(objective) for objective in self._goals.objectives],
        )

    @cached_property
    def _distributions(self) -> Mapping[str, BaseDistribution]:
        assert self._record.baseline is not None
        return create_strategy(self._plan, self._record.baseline).distributions

    def _freeze(self, trial: TrialRecord) -> FrozenTrial:
        from autoq.search.studies import to_frozen

        assert self._record.baseline is not None
        frozen = to_frozen(trial, self._goals, self._record.baseline, self._distributions)
        frozen.number = trial.number
        return frozen


class TrackingHook:
    """Shows trials in MLflow while the search runs."""

    part = "track"

    def __init__(self, tracker: ResilientTracker, record: SearchRecord, spec: SearchSpec) -> None:
        self._tracker, self._record, self._goals = tracker, record, spec.goals
        self._is_open = False

    def open(self) -> None:
        """Open the run of the search, unless it is open."""
        if not self._is_open:
            self._tracker.start_search(self._record)
            self._is_open = True

    def sync(self, trials: Sequence[TrialRecord]) -> None:
        """Add the trials that MLflow has not heard of; while there is none, MLflow is not woken up."""
        if trials:
            self.open()
        for trial in trials:
            self.on_trial_recorded(trial)

    def on_trial_recorded(self, trial: TrialRecord) -> None:
        """Add one trial; before the run is open they wait for the next `sync`."""
        if not self._is_open:
            return
        measured, baseline = trial.measurement, self._record.baseline
        assert baseline is not None
        feasible = measured is not None and self._goals.feasible(measured, baseline)
        self._tracker.log_trial(self._record, trial, feasible=feasible)
