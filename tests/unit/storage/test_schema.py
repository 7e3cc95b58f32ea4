from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import autoq.storage
from autoq.core.errors import StoreError
from autoq.search.records import TrialState
from autoq.storage.engine import create_engine, parse_url
from autoq.storage.ledger import SqlLedger
from autoq.storage.optuna_rdb import open_storage
from autoq.storage.schema import REVISIONS, VERSION_TABLE, current_revision, upgrade
from autoq.storage.study import StudyLedger
from autoq.storage.tables import METADATA, SEARCHES, Json
from autoq.testing.ledger_contract import example_trial

OPEN = """
import sys
from autoq.storage.ledger import SqlLedger
from autoq.storage.study import StudyLedger
import autoq.storage.optuna_rdb
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    SqlLedger(sys.argv[1]).close()
    StudyLedger(sys.argv[1], "glyphs", directions=["minimize"], metric_names=["latency"]).close()
"""
SCRIPTS = ScriptDirectory(str(Path(autoq.storage.__file__).parent / "migrations"))


def test_the_tables_are_what_the_migrations_make(store_url: str) -> None:
    study = StudyLedger(store_url, "glyphs", directions=["minimize"], metric_names=["latency"])
    study.close()
    engine = create_engine(parse_url(store_url))
    upgrade(engine)

    def is_ours(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or (str(name).startswith("autoq_") and name != VERSION_TABLE)

    def default_differs(*compared: Any) -> bool | None:
        _, _, column, found, _, wanted = compared
        if not isinstance(column.type, Json):
            return None  # as Alembic does it
        # As text: PostgreSQL has no equality of JSON.
        return str(found).removesuffix("::json").strip("'") != str(wanted).strip("'")

    options: dict[str, Any] = {"include_name": is_ours, "compare_server_default": default_differs}
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)
    engine.dispose()
    assert found == []


def test_the_revisions_are_those_of_the_scripts() -> None:
    assert list(REVISIONS) == [script.revision for script in SCRIPTS.walk_revisions()][::-1]


def test_a_database_of_the_first_revision_is_upgraded_with_its_rows(store_url: str) -> None:
    engine = create_engine(parse_url(store_url))
    first = SCRIPTS.get_base()
    assert first is not None
    upgrade(engine, first)
    assert current_revision(engine) == first
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO autoq_searches (name, spec, spec_digest, state, created_at, model_digest,"
            " environment, preparation_s, message)"
            " VALUES ('old', '{}', 's', 'finished', 1.0, 'm', '{}', '{}', '')"
        )
    ledger = SqlLedger(store_url)
    assert [record.name for record in ledger.list_searches()] == ["old"]
    ledger.close()
    assert current_revision(engine) == SCRIPTS.get_current_head()
    engine.dispose()


def test_trials_from_before_reasons_were_kept_have_none(store_url: str) -> None:
    engine = create_engine(parse_url(store_url))
    upgrade(engine, "0001")
    old = example_trial(state=TrialState.FAILED, measurement=None, reason="died", reasons={})
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO autoq_searches (name, spec, spec_digest, state, created_at, model_digest,"
            " environment, preparation_s, message)"
            " VALUES ('old', '{}', 's', 'interrupted', 1.0, 'm', '{}', '{}', '')"
        )
        tables = sa.MetaData()
        tables.reflect(connection, only=["autoq_trials"])
        table = tables.tables["autoq_trials"]
        assert "reasons" not in table.columns
        (search_id,) = connection.exec_driver_sql("SELECT id FROM autoq_searches").one()
        row = {
            "search_id": search_id,
            "number": old.number,
            "origin": old.origin,
            "params": dict(old.params),
            "candidate": old.candidate.to_json(),
            "digest": old.digest,
            "state": str(old.state),
            "reason": old.reason,
            "sampler_notes": dict(old.sampler_notes),
            "started_at": old.started_at,
            "seconds": dict(old.seconds),
        }
        connection.execute(table.insert().values(row))
    engine.dispose()
    ledger = SqlLedger(store_url)
    assert ledger.load_trials("old") == [old]
    new = example_trial(1, state=TrialState.FAILED, measurement=None, reason="died")
    ledger.add_trial("old", new)
    assert ledger.load_trials("old") == [old, new]
    ledger.close()


def test_opening_a_current_database_writes_nothing(sqlite_url: str) -> None:
    SqlLedger(sqlite_url).close()
    before = Path(parse_url(sqlite_url).database or "").read_bytes()
    SqlLedger(sqlite_url).close()
    assert Path(parse_url(sqlite_url).database or "").read_bytes() == before


def test_a_newer_database_is_refused_and_left_alone(store_url: str) -> None:
    SqlLedger(store_url).close()
    engine = create_engine(parse_url(store_url))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"has schema 9999, this autoq knows up to \d+ .*newer autoq"):
        SqlLedger(store_url)
    assert current_revision(engine) == "9999"
    engine.dispose()


def test_a_migration_that_breaks_leaves_no_table(sqlite_url: str) -> None:
    engine = create_engine(parse_url(sqlite_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE autoq_finals (id INTEGER)")
    with pytest.raises(StoreError, match="autoq_finals already exists"):
        SqlLedger(sqlite_url)
    assert sa.inspect(engine).get_table_names() == ["autoq_finals"]
    engine.dispose()


def test_processes_that_open_one_fresh_database_at_once_all_succeed(store_url: str) -> None:
    command = [sys.executable, "-c", OPEN, store_url, "3"]
    racers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
    engine = create_engine(parse_url(store_url))
    with engine.connect() as connection:
        assert connection.execute(sa.select(SEARCHES)).all() == []
    engine.dispose()


def test_sqlite_keeps_its_writers_and_readers_apart(sqlite_url: str) -> None:
    SqlLedger(sqlite_url).close()
    engine = create_engine(parse_url(sqlite_url))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()


def test_commits_do_not_wait_for_the_disk(sqlite_url: str) -> None:
    SqlLedger(sqlite_url).close()
    ours = create_engine(parse_url(sqlite_url))
    for engine in (ours, open_storage(ours).engine):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
        engine.dispose()


def test_the_ledger_loads_without_optuna() -> None:
    code = "import sys, autoq.storage.ledger; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
