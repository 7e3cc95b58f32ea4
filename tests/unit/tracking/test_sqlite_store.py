from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

from autoq.tracking.sqlite_store import create_sqlite_store, sqlite_path, sqlite_uri


def test_the_store_is_whole_when_its_file_appears(empty_store: Path) -> None:
    with sqlite3.connect(empty_store) as store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"experiments", "runs", "params", "alembic_version"} <= tables
        assert store.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert store.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_no_unfinished_file_is_left_beside_the_store(empty_store: Path) -> None:
    assert [path for path in empty_store.parent.iterdir() if path.suffix not in (".db", ".lock")] == []


def test_a_store_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"precious")
    create_sqlite_store(path)
    assert path.read_bytes() == b"precious"


def test_the_file_of_a_sqlite_uri_is_found_and_of_no_other(tmp_path: Path) -> None:
    assert sqlite_path(sqlite_uri(tmp_path / "a b.db")) == tmp_path / "a b.db"
    assert sqlite_path("postgresql://user@host/db") is None


def test_importing_the_tracking_package_does_not_import_mlflow() -> None:
    modules = ("mlflow_tracking", "resilient", "server", "connection", "sqlite_store")
    imports = "; ".join(f"import autoq.tracking.{module}" for module in modules)
    code = f"import sys; {imports}; print([m for m in ('mlflow', 'matplotlib', 'torch') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
