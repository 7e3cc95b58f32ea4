"""The ledger on SQL: searches, trials, measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from autoq.core.choices import Candidate
from autoq.core.errors import StoreError, UnknownNameError
from autoq.core.measurements import Baseline, Measurement
from autoq.search.records import FinalMeasurement, SearchRecord, SearchState, TrialRecord, TrialState
from autoq.storage.engine import create_engine, opening, parse_url, search_lock, shown, working, writer
from autoq.storage.schema import upgrade
from autoq.storage.study import delete_study, foreign_study, is_foreign_study
from autoq.storage.tables import FINALS, MEASUREMENTS, SEARCHES, TRIALS

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class SqlLedger:
    """`autoq.search.ports.Ledger` in a SQLite file or a PostgreSQL database.

    Writes to a name that no search has raise `UnknownNameError`; reads of one find nothing.
    """

    def __init__(self, url: str) -> None:
        """Open the store, creating or upgrading its tables.

        Raises:
            StoreError: The URL is wrong, the database cannot be reached, or a newer autoq wrote it.
        """
        self._url = parse_url(url)
        self._engine = create_engine(self._url)
        self._check_lock: Callable[[], None] | None = None  # of the search that this process owns
        with ExitStack() as on_failure, opening(self._url):
            on_failure.callback(self._engine.dispose)
            upgrade(self._engine)
            on_failure.pop_all()

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    @contextmanager
    def owning(self, name: str) -> Iterator[None]:
        """Keep other processes out of a search, there or not yet, for the length of the block.

        Writes check that the lock is still held.

        Raises:
            StoreError: Another process is at it.
        """
        with search_lock(self._engine, name) as check:
            self._check_lock = check
            try:
                yield
            finally:
                self._check_lock = None

    def check_free(self, name: str) -> None:
        """Refuse a name that an Optuna study in this database has which is nobody's search.

        Raises:
            StoreError: There is one.
        """
        if is_foreign_study(self._engine, name):
            raise foreign_study(self._url, name)

    def create_search(self, record: SearchRecord) -> None:
        """See `Ledger.create_search`."""
        with self._writing() as connection:
            statement = _INSERT[connection.dialect.name](SEARCHES).values(_search_values(record))
            statement = statement.on_conflict_do_nothing(index_elements=["name"]).returning(SEARCHES.c.id)
            if connection.execute(statement).one_or_none() is None:
                raise StoreError(f"the store {shown(self._url)} already has a search named {record.name!r}")

    def update_search(self, record: SearchRecord) -> None:
        """See `Ledger.update_search`."""
        with self._writing() as connection:
            search_id = self._search_id(connection, record.name)
            connection.execute(
                sa.update(SEARCHES).where(SEARCHES.c.id == search_id).values(_search_values(record))
            )

    def load_search(self, name: str) -> SearchRecord | None:
        """See `Ledger.load_search`."""
        with self._reading() as connection:
            row = connection.execute(sa.select(SEARCHES).where(SEARCHES.c.name == name)).one_or_none()
        return None if row is None else _search_of(row)

    def list_searches(self) -> list[SearchRecord]:
        """See `Ledger.list_searches`."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(SEARCHES).order_by(SEARCHES.c.created_at, SEARCHES.c.id))
            return [_search_of(row) for row in rows]

    def delete_search(self, name: str) -> None:
        """See `Ledger.delete_search`."""
        with self._reading() as connection:
            self._search_id(connection, name)
        # The study first: killed in between, the search is still there to be deleted again.
        delete_study(self._engine, name)
        with self._writing() as connection:
            connection.execute(sa.delete(SEARCHES).where(SEARCHES.c.name == name))

    def add_trial(self, name: str, trial: TrialRecord) -> None:
        """See `Ledger.add_trial`."""
        with self._writing() as connection:
            search_id = self._search_id(connection, name)
            measurement_id = None
            if trial.measurement is not None:
                values = _measurement_values(trial.digest, trial.measurement)
                measurement_id = _upsert(connection, MEASUREMENTS, {"search_id": search_id}, "digest", values)
            keys = {"search_id": search_id}
            values = {**_trial_values(trial), "measurement_id": measurement_id}
            _upsert(connection, TRIALS, keys, "number", values)

    def update_trial_seconds(self, name: str, number: int, seconds: Mapping[str, float]) -> None:
        """See `Ledger.update_trial_seconds`."""
        with self._writing() as connection:
            search_id = self._search_id(connection, name)
            row = (TRIALS.c.search_id == search_id) & (TRIALS.c.number == number)
            changed = connection.execute(sa.update(TRIALS).where(row).values(seconds=dict(seconds)))
            if changed.rowcount == 0:
                raise UnknownNameError(f"search {name!r} has no trial {number}")

    def load_trials(self, name: str) -> list[TrialRecord]:
        """See `Ledger.load_trials`."""
        statement = (
            sa.select(TRIALS, MEASUREMENTS.c.measurement)
            .join(SEARCHES, SEARCHES.c.id == TRIALS.c.search_id)
            .outerjoin(MEASUREMENTS, MEASUREMENTS.c.id == TRIALS.c.measurement_id)
            .where(SEARCHES.c.name == name)
            .order_by(TRIALS.c.number)
        )
        with self._reading() as connection:
            return [_trial_of(row) for row in connection.execute(statement)]

    def save_finals(self, name: str, finals: Sequence[FinalMeasurement]) -> None:
        """See `Ledger.save_finals`."""
        with self._writing() as connection:
            search_id = self._search_id(connection, name)
            connection.execute(sa.delete(FINALS).where(FINALS.c.search_id == search_id))
            rows = [
                {"search_id": search_id, "position": position, **_final_values(final)}
                for position, final in enumerate(finals)
            ]
            if rows:
                connection.execute(sa.insert(FINALS), rows)

    def load_finals(self, name: str) -> list[FinalMeasurement]:
        """See `Ledger.load_finals`."""
        statement = (
            sa.select(FINALS.c.final)
            .join(SEARCHES, SEARCHES.c.id == FINALS.c.search_id)
            .where(SEARCHES.c.name == name)
            .order_by(FINALS.c.position)
        )
        with self._reading() as connection:
            return [FinalMeasurement.from_json(final) for final in connection.scalars(statement)]

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with working(self._url), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._check_lock is not None:
            self._check_lock()
        with working(self._url), writer(self._engine).begin() as connection:
            yield connection

    def _search_id(self, connection: Connection, name: str) -> int:
        found = connection.scalar(sa.select(SEARCHES.c.id).where(SEARCHES.c.name == name))
        if found is None:
            raise UnknownNameError(f"the store {shown(self._url)} has no search named {name!r}")
        return int(found)


def _upsert(
    connection: Connection, table: sa.Table, owner: dict[str, int], key: str, values: dict[str, Any]
) -> int:
    """Insert a row, or replace the one of the same owner and key; return its id."""
    statement = _INSERT[connection.dialect.name](table).values({**owner, **values})
    statement = statement.on_conflict_do_update(index_elements=[*owner, key], set_=values)
    return int(connection.execute(statement.returning(table.c.id)).scalar_one())


def _search_values(record: SearchRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "spec": record.spec,
        "spec_digest": record.spec_digest,
        "state": str(record.state),
        "created_at": record.created_at,
        "model_digest": record.model_digest,
        "environment": record.environment,
        "baseline": None if record.baseline is None else record.baseline.to_json(),
        "preparation_s": record.preparation_s,
        "message": _storable(record.message),
    }


def _search_of(row: Row[Any]) -> SearchRecord:
    return SearchRecord(
        name=row.name,
        spec=row.spec,
        spec_digest=row.spec_digest,
        state=SearchState(row.state),
        created_at=row.created_at,
        model_digest=row.model_digest,
        environment=row.environment,
        baseline=None if row.baseline is None else Baseline.from_json(row.baseline),
        preparation_s=row.preparation_s,
        message=row.message,
    )


def _measurement_values(digest: str, measurement: Measurement) -> dict[str, Any]:
    return {
        "digest": digest,
        "accuracy": measurement.accuracy.value,
        "accuracy_drop": measurement.accuracy.drop,
        "latency_ms": measurement.latency.latency_ms,
        "speedup": measurement.latency.speedup,
        "size_bytes": measurement.size.size_bytes,
        "bundle_bytes": measurement.size.bundle_bytes,
        "measurement": measurement.to_json(),
    }


def _trial_values(trial: TrialRecord) -> dict[str, Any]:
    return {
        "number": trial.number,
        "origin": trial.origin,
        "state": str(trial.state),
        "digest": trial.digest,
        "candidate": trial.candidate.to_json(),
        "params": trial.params,
        "sampler_notes": trial.sampler_notes,
        "reason": _storable(trial.reason),
        "started_at": trial.started_at,
        "seconds": trial.seconds,
        "reasons": trial.reasons,
    }


def _trial_of(row: Row[Any]) -> TrialRecord:
    return TrialRecord(
        number=row.number,
        origin=row.origin,
        params=row.params,
        candidate=Candidate.from_json(row.candidate),
        state=TrialState(row.state),
        measurement=None if row.measurement is None else Measurement.from_json(row.measurement),
        reason=row.reason,
        sampler_notes=row.sampler_notes,
        started_at=row.started_at,
        seconds=row.seconds,
        reasons=row.reasons,
    )


def _final_values(final: FinalMeasurement) -> dict[str, Any]:
    return {
        "digest": final.digest,
        "latency_ms": final.latency.latency_ms,
        "speedup": final.latency.speedup,
        "final": final.to_json(),
    }


def _storable(text: str) -> str:
    """Replace what text columns refuse: NUL, and bytes of a message that were no UTF-8."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
