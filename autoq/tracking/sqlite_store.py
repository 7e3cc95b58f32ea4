"""The embedded MLflow store: one SQLite file, created quickly and whole."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from autoq.tracking.connection import environment
from autoq.tracking.run_content import EXPERIMENT_PREFIX

_PREFIX = "sqlite:///"
# Where MLflow keeps addresses of artifacts.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


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


def follow_home(path: Path, artifact_root: Path) -> None:
    """Let a database that was moved with its home refer to the artifacts beside it, not to where they were.

    MLflow stores whole addresses, and would go on writing to the old ones. A database elsewhere is left
    alone.
    """
    here = artifact_root.resolve().as_uri()
    if path.resolve().parent != artifact_root.resolve().parent:
        return
    with closing(sqlite3.connect(path)) as database, database:
        found = database.execute(
            "SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE ?", (f"{EXPERIMENT_PREFIX}%",)
        )
        moved = [
            place for (place,) in found if place != here and place.endswith(f"/{quote(artifact_root.name)}")
        ]
        for place in moved:
            for table, column in _PLACES:
                update = f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                is_there = f"WHERE substr({column}, 1, ?) = ?"
                database.execute(f"{update} {is_there}", (here, len(place) + 1, len(place), place))


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
