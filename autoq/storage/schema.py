"""Migrations: bring a database to the tables this code expects, or refuse it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

from autoq.core.errors import StoreError
from autoq.storage.engine import enable_wal, is_sqlite, schema_lock, shown, writer

VERSION_TABLE = "autoq_alembic_version"  # `alembic_version` is Optuna's


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate a database up to a revision, in one transaction; a current one is only read.

    Processes that open one fresh database at the same time wait for each other.

    Raises:
        StoreError: The database was written by a newer autoq.
    """
    scripts = ScriptDirectory.from_config(_config())
    wanted = scripts.get_current_head() if revision == "head" else revision
    if _checked_revision(engine, scripts) == wanted:
        return
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
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


def _checked_revision(engine: Engine, scripts: ScriptDirectory) -> str | None:
    found = current_revision(engine)
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(
            f"the store {shown(engine.url)} has schema {found}, this autoq knows up to "
            f"{scripts.get_current_head()}",
            hint="it was written by a newer autoq: update this one",
        )
    return found


def _config() -> Config:
    config = Config()
    # The option is interpolated as in an ini file, where % is special.
    folder = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", folder)
    config.set_main_option("path_separator", "os")
    return config
