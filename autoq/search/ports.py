"""What a search needs from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from autoq.core.choices import Candidate
from autoq.core.measurements import Baseline, Latency, Measurement
from autoq.search.outcome import Point
from autoq.search.records import FinalMeasurement, SearchRecord, TrialRecord


class Ledger(Protocol):
    """Where searches and measurements are kept. Its contract: `autoq.testing.LedgerContract`.

    Every method is one transaction: when it returns, kill -9 loses nothing it wrote.

    Raises (every method):
        StoreUnavailable: The database went away; trying again may help.
    """

    def create_search(self, record: SearchRecord) -> None:
        """Add a search.

        Raises:
            StoreError: The name is taken.
        """
        ...

    def update_search(self, record: SearchRecord) -> None:
        """Replace the search of that name.

        Raises:
            UnknownNameError: No search has that name.
        """
        ...

    def load_search(self, name: str) -> SearchRecord | None:
        """Return the search of that name, or None."""
        ...

    def list_searches(self) -> list[SearchRecord]:
        """Return all searches, oldest first."""
        ...

    def delete_search(self, name: str) -> None:
        """Remove a search, its trials, its final measurements and its Optuna study.

        Raises:
            UnknownNameError: No search has that name.
        """
        ...

    def add_trial(self, name: str, trial: TrialRecord) -> None:
        """Add a trial. Adding the same number again replaces it, so a retry is harmless.

        A candidate has one measurement in a search: trials that repeat it share the latest.

        Raises:
            UnknownNameError: No search has that name.
        """
        ...

    def update_trial_seconds(self, name: str, number: int, seconds: Mapping[str, float]) -> None:
        """Replace where one trial's time went: what storing it cost is known only afterwards.

        Raises:
            UnknownNameError: The search has no such trial.
        """
        ...

    def load_trials(self, name: str) -> list[TrialRecord]:
        """Return all trials by ascending number; none for an unknown name."""
        ...

    def save_finals(self, name: str, finals: Sequence[FinalMeasurement]) -> None:
        """Replace the final measurements of a search.

        Raises:
            UnknownNameError: No search has that name.
        """
        ...

    def load_finals(self, name: str) -> list[FinalMeasurement]:
        """Return the final measurements, in the order they were saved; none for an unknown name."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far a search is, for views."""

    n_done: int
    n_total: int
    n_feasible: int
    n_failed: int
    best: Point | None
    elapsed_s: float
    left_s: float | None  # None until a trial has shown how long one takes


class SearchListener(Protocol):
    """Whoever wants to see a search while it runs. Called between measurements, never during one."""

    def on_phase(self, name: str, detail: str) -> None:
        """Tell that a phase begins: `statistics`, `baseline`, `variants`, `trials`, `final round`."""
        ...

    def on_note(self, text: str) -> None:
        """Tell something worth a line, such as a warning or a cache hit."""
        ...

    def on_trial_start(self, number: int, origin: str) -> None:
        """Tell that a trial begins."""
        ...

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        """Tell how a trial ended."""
        ...


class TrialHook(Protocol):
    """Whoever follows the ledger: the Optuna study in the database, MLflow.

    A hook whose server may be away keeps that to itself and catches up at the next `sync`, of which
    there is one before the first trial and one after it; what it raises ends the search.
    """

    @property
    def part(self) -> str:
        """Name under which its time is logged: `store`, `track`."""
        ...

    def sync(self, trials: Sequence[TrialRecord]) -> None:
        """Take in those of all recorded trials that it has not heard of. Idempotent."""
        ...

    def on_trial_recorded(self, trial: TrialRecord) -> None:
        """Take in one trial that the ledger has just committed."""
        ...


class TrialRunner(Protocol):
    """Where candidates are measured."""

    def turn(self) -> AbstractContextManager[object]:
        """Get ready to measure: wait for the machine, start what has to run. Freed at the end.

        Whatever is measured outside takes a turn of its own; inside, nothing waits and nothing starts.
        """
        ...

    def measure_baseline(self) -> Baseline:
        """Score and time the float model, with the A/A control that gives the noise floor."""
        ...

    def run_trial(self, candidate: Candidate) -> Measurement:
        """Assemble and measure one candidate on the search split.

        Raises:
            TrialError: The candidate failed; the runner is ready for the next one.
        """
        ...

    def measure_divergence(self, candidate: Candidate) -> float:
        """Say how far a candidate's outputs are from the float model's on a few examples, without labels.

        Raises:
            TrialError: The candidate failed; the runner is ready for the next one.
        """
        ...

    def measure_latency(self, candidate: Candidate) -> Latency:
        """Time a candidate, more shortly than a trial does.

        Raises:
            TrialError: The candidate failed; the runner is ready for the next one.
        """
        ...

    def run_final(self, candidate: Candidate) -> FinalMeasurement:
        """Measure one candidate afresh and for longer, and score it on the test split if there is one.

        Raises:
            TrialError: The candidate failed; the runner is ready for the next one.
        """
        ...
