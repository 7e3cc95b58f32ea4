"""A ledger in memory: what the search is tested with, and the shortest description of a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoq.core.errors import StoreError, UnknownNameError
from autoq.search.records import FinalMeasurement, SearchRecord, TrialRecord


@dataclass
class _Shelf:
    record: SearchRecord
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    finals: list[FinalMeasurement] = field(default_factory=list)


class InMemoryLedger:
    """Keeps searches as long as the process lives. Implements `autoq.search.ports.Ledger`."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}

    def create_search(self, record: SearchRecord) -> None:
        """Add a search."""
        if record.name in self._shelves:
            raise StoreError(f"the store already has a search named {record.name!r}")
        self._shelves[record.name] = _Shelf(record)

    def update_search(self, record: SearchRecord) -> None:
        """Replace the search of that name."""
        self._shelf(record.name).record = record

    def load_search(self, name: str) -> SearchRecord | None:
        """Return the search of that name, or None."""
        return self._shelves[name].record if name in self._shelves else None

    def list_searches(self) -> list[SearchRecord]:
        """Return all searches, oldest first."""
        records = [shelf.record for shelf in self._shelves.values()]
        return sorted(records, key=lambda record: record.created_at)

    def delete_search(self, name: str) -> None:
        """Remove a search and all it holds."""
        self._shelf(name)
        del self._shelves[name]

    def add_trial(self, name: str, trial: TrialRecord) -> None:
        """Add a trial, or replace the one of that number."""
        self._shelf(name).trials[trial.number] = trial

    def update_trial_seconds(self, name: str, number: int, seconds: Mapping[str, float]) -> None:
        """Replace where one trial's time went."""
        trials = self._shelf(name).trials
        if number not in trials:
            raise UnknownNameError(f"search {name!r} has no trial {number}")
        trials[number] = replace(trials[number], seconds=dict(seconds))

    def load_trials(self, name: str) -> list[TrialRecord]:
        """Return all trials by ascending number."""
        trials = self._shelves[name].trials if name in self._shelves else {}
        return [trials[number] for number in sorted(trials)]

    def save_finals(self, name: str, finals: Sequence[FinalMeasurement]) -> None:
        """Replace the final measurements of a search."""
        self._shelf(name).finals = list(finals)

    def load_finals(self, name: str) -> list[FinalMeasurement]:
        """Return the final measurements, in the order they were saved."""
        return list(self._shelves[name].finals) if name in self._shelves else []

    def _shelf(self, name: str) -> _Shelf:
        if name not in self._shelves:
            raise UnknownNameError(f"no search named {name!r}")
        return self._shelves[name]
