from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from autoq.core.errors import StoreError, StoreUnavailable
from autoq.storage.ledger import SqlLedger
from autoq.storage.study import StudyLedger
from autoq.testing.ledger_contract import LedgerContract, example_final, example_search, example_trial

ADD_AND_DIE = """
import os, signal, sys
from autoq.storage.ledger import SqlLedger
from autoq.testing.ledger_contract import example_search, example_trial
ledger = SqlLedger(sys.argv[1])
ledger.create_search(example_search())
ledger.add_trial("glyphs", example_trial())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def ledger(store_url: str) -> Iterator[SqlLedger]:
    ledger = SqlLedger(store_url)
    yield ledger
    ledger.close()


class TestSqlLedger(LedgerContract):
    pass


def test_what_was_written_is_there_after_kill_9(store_url: str) -> None:
    died = subprocess.run([sys.executable, "-c", ADD_AND_DIE, store_url], env=dict(os.environ), check=False)
    assert died.returncode == -signal.SIGKILL
    ledger = SqlLedger(store_url)
    assert ledger.load_trials("glyphs") == [example_trial()]
    ledger.close()


def test_a_measurement_is_stored_once_for_all_trials_of_its_candidate(
    ledger: SqlLedger, store_url: str
) -> None:
    ledger.create_search(example_search())
    ledger.add_trial("glyphs", example_trial(0))
    ledger.add_trial("glyphs", example_trial(1))
    assert _rows(store_url, "SELECT digest, latency_ms, size_bytes FROM autoq_measurements") == [
        (example_trial().digest, 0.1 + 0.2, 2**33 + 1)
    ]


def test_a_deleted_search_leaves_no_row_in_any_table(ledger: SqlLedger, store_url: str) -> None:
    ledger.create_search(example_search())
    ledger.add_trial("glyphs", example_trial())
    ledger.save_finals("glyphs", [example_final()])
    study = StudyLedger(store_url, "glyphs", directions=["minimize"], metric_names=["latency"])
    study.close()
    ledger.delete_search("glyphs")
    for table in ("autoq_searches", "autoq_trials", "autoq_measurements", "autoq_finals", "studies"):
        assert _rows(store_url, f"SELECT count(*) FROM {table}") == [(0,)], table


def test_a_second_ledger_sees_what_the_first_wrote(ledger: SqlLedger, store_url: str) -> None:
    ledger.create_search(example_search())
    second = SqlLedger(store_url)
    second.add_trial("glyphs", example_trial())
    second.close()
    assert ledger.load_trials("glyphs") == [example_trial()]


def test_writers_wait_for_each_other(store_url: str) -> None:
    ledgers = [SqlLedger(store_url) for _ in range(3)]
    ledgers[0].create_search(example_search())

    def add_trials(writer: int) -> None:
        for number in range(writer, 45, 3):
            ledgers[writer].add_trial("glyphs", example_trial(number, weight_bits=2 + writer))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(add_trials, range(3)))
    assert [trial.number for trial in ledgers[0].load_trials("glyphs")] == list(range(45))
    for ledger in ledgers:
        ledger.close()


def test_a_sqlite_file_locked_for_too_long_is_unavailable(sqlite_url: str) -> None:
    ledger = SqlLedger(f"{sqlite_url}?timeout=0.05")
    other = sa.create_engine(sqlite_url)
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match=r"autoq\.db.* is away: database is locked"):
            ledger.create_search(example_search())
    other.dispose()
    ledger.create_search(example_search())
    ledger.close()


def test_a_sqlite_file_can_be_read_while_somebody_writes(sqlite_url: str) -> None:
    ledger = SqlLedger(f"{sqlite_url}?timeout=0.05")
    ledger.create_search(example_search())
    other = sa.create_engine(sqlite_url)
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("UPDATE autoq_searches SET message = 'half'")
        assert ledger.load_search("glyphs") == example_search()
    other.dispose()
    ledger.close()


def test_a_postgresql_database_that_goes_away_is_unavailable(
    postgres_url: str, postgres_server: sa.URL
) -> None:
    ledger = SqlLedger(postgres_url)
    admin = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {sa.make_url(postgres_url).database} WITH (FORCE)")
    with pytest.raises(StoreUnavailable, match="does not exist"):
        ledger.list_searches()
    ledger.close()


def test_a_postgresql_ledger_outlives_a_restart_of_its_connections(
    postgres_url: str, postgres_server: sa.URL
) -> None:
    ledger = SqlLedger(postgres_url)
    ledger.create_search(example_search())
    admin = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(
            sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
            {"name": sa.make_url(postgres_url).database},
        )
    assert ledger.load_search("glyphs") == example_search()
    ledger.close()


def _rows(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def test_a_search_is_run_by_one_process_at_a_time_whatever_its_home(
    ledger: SqlLedger, store_url: str
) -> None:
    other = SqlLedger(store_url)
    with ledger.owning("glyphs"):
        with (
            pytest.raises(StoreError, match="search 'glyphs' is being run by another process"),
            other.owning("glyphs"),
        ):
            pass
        with other.owning("letters"):  # another search is nobody's business
            pass
    with other.owning("glyphs"):
        pass
    other.close()


HOLD = """
import sys
from autoq.storage.ledger import SqlLedger
with SqlLedger(sys.argv[1]).owning("glyphs"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_search_is_free_again_when_its_process_is_killed(ledger: SqlLedger, store_url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError), ledger.owning("glyphs"):
            pass
        holder.kill()
    deadline = time.monotonic() + 30.0  # PostgreSQL notices when the connection breaks
    while True:
        try:
            with ledger.owning("glyphs"):
                return
        except StoreError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_whoever_lost_its_search_writes_no_more(postgres_url: str) -> None:
    """A server that was started again has forgotten who owned it."""
    ledger = SqlLedger(postgres_url)
    with ledger.owning("glyphs"):
        ledger.create_search(example_search())
        _rows(postgres_url, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        with pytest.raises(StoreUnavailable):
            ledger.add_trial("glyphs", example_trial())
    assert ledger.load_trials("glyphs") == []
    ledger.close()
