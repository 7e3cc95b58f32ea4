"""Migrations: bring a database to the tables this code expects, or refuse it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from autoq.core.errors import StoreError
from autoq.storage.engine import enable_wal, is_sqlite, schema_lock, shown, writer

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "autoq_alembic_version"  # `alembic_version` is Optuna's
REVISIONS = ("0001", "0002")  # of `migrations`, oldest first; here, so that opening a store needs no Alembic


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate a database up to a revision, in one transaction; a current one is only read.

    Processes that open one fresh database at the same time wait for each other.

    Raises:
        StoreError: The database was written by a newer autoq.
    """
    wanted = REVISIONS[-1] if revision == "head" else revision
    if _checked_revision(engine) == wanted:
        return
    from alembic import command  # a fifth of a second, once for each store

    with schema_lock(engine):
        if is_sqlite(engine.url):
            enable_wal(engine)
        with writer(engine).begin() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)


def current_revision(engine: Engine) -> str | None:
    """Return the revision of a database; None when it has none of our tables yet."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one_or_none()
        return None if found is None else str(found)


def _checked_revision(engine: Engine) -> str | None:
    found = current_revision(engine)
    if found is not None and found not in REVISIONS:
        raise StoreError(
            f"the store {shown(engine.url)} has schema {found}, this autoq knows up to {REVISIONS[-1]}",
            hint="it was written by a newer autoq: update this one",
        )
    return found


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # The option is interpolated as in an ini file, where % is special.
    folder = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", folder)
    config.set_main_option("path_separator", "os")
    return config
