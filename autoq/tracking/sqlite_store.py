"""The embedded MLflow store: one SQLite file, created quickly and whole."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

from autoq.tracking.connection import environment

_PREFIX = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """Return the tracking URI of a SQLite file."""
    return _PREFIX + str(path.resolve())


def sqlite_path(tracking_uri: str) -> Path | None:
    """Return the file of a SQLite tracking URI, None for any other store."""
    return Path(tracking_uri.removeprefix(_PREFIX)) if tracking_uri.startswith(_PREFIX) else None


def create_sqlite_store(path: Path) -> None:
    """Create an MLflow database unless the file exists.

    MLflow's migrations write to disk hundreds of times, 5 s on a slow disk, and a kill in their midst
    leaves a file that nothing can open. So they run in memory, and the result is moved into place.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            _write_empty_store(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def relax_durability(tracking_uri: str, artifact_root: str) -> None:
    """Let this process not wait for the disk at every write of a SQLite store.

    A power cut may then lose the last runs, never the file; `autoq sync` adds what is missing.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event

    # Engines are shared by URI, so this one is the client's too.
    engine = SqlAlchemyStore(tracking_uri, artifact_root).engine
    if not event.contains(engine, "connect", _relax):
        event.listen(engine, "connect", _relax)
        engine.dispose()  # connections opened before the listener


def _relax(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def _write_empty_store(path: Path) -> None:
    from mlflow import MlflowClient

    # A shared in-memory database lives as long as one connection to it.
    memory = f"file:{uuid.uuid4().hex}?mode=memory&cache=shared"
    source, target = sqlite3.connect(memory, uri=True), sqlite3.connect(path)
    try:
        with environment({"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "SingletonThreadPool"}):
            MlflowClient(tracking_uri=f"{_PREFIX}{memory}&uri=true").search_experiments(max_results=1)
        source.backup(target)
        # Stays with the file: one disk flush a commit instead of three, and readers never block.
        target.execute("PRAGMA journal_mode=WAL")
    finally:
        target.close()
        source.close()
