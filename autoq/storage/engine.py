"""Database engines: SQLite and PostgreSQL opened so that the rest of the store cannot tell them apart."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from autoq.core.errors import StoreError, StoreUnavailable

EXPECTED = "expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_SECRET_KEYS = ("password", "sslpassword", "passfile")
_BUSY_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 10
_SCHEMA_LOCK_TIMEOUT_S = 60
_SCHEMA_LOCK_KEY = 0x6175746F71  # any constant that no other program is likely to choose
_SEARCH_LOCK_KEY = 0x6175746F  # with a number made of the name
_SQLITE_BEGIN = "sqlite_begin"


def parse_url(text: str) -> URL:
    """Read a database URL; `postgresql://` means psycopg 3.

    Raises:
        StoreError: It is no URL of a SQLite file or a PostgreSQL database.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"{_masked(text)!r} is not a database URL", hint=EXPECTED) from error
    if url.drivername not in _DRIVERS:
        raise StoreError(f"stores are not kept in {url.drivername!r}: {shown(url)}", hint=EXPECTED)
    url = url.set(drivername=_DRIVERS[url.drivername])
    if is_sqlite(url) and (url.database in (None, "", ":memory:") or str(url.database).startswith("file:")):
        raise StoreError(f"the store {shown(url)} names no file", hint=EXPECTED)
    return url


def shown(url: URL) -> str:
    """Write a URL for people, without its password."""
    return url.difference_update_query(_SECRET_KEYS).render_as_string(hide_password=True)


def is_sqlite(url: URL) -> bool:
    """Whether the URL names a SQLite file."""
    return url.get_backend_name() == "sqlite"


def connect_arguments(url: URL) -> dict[str, Any]:
    """Arguments of the driver that the URL leaves open: how long to wait."""
    key, seconds = ("timeout", _BUSY_TIMEOUT_S) if is_sqlite(url) else ("connect_timeout", _CONNECT_TIMEOUT_S)
    return {} if key in url.query else {key: seconds}


def create_engine(url: URL) -> Engine:
    """Build the engine of a store; nothing is connected yet.

    Raises:
        StoreError: The file's folder does not exist, or the PostgreSQL driver is not installed.
    """
    if is_sqlite(url):
        folder = Path(str(url.database)).absolute().parent
        if not folder.is_dir():
            raise StoreError(f"cannot open the store {shown(url)}: folder {folder} does not exist")
    try:
        engine = sa.create_engine(url, connect_args=connect_arguments(url), pool_pre_ping=not is_sqlite(url))
    except ImportError as error:
        raise StoreError(
            f"cannot open the store {shown(url)}: {error}", hint="pip install 'autoq[postgresql]'"
        ) from error
    if is_sqlite(url):
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        flush_seldom(engine)
    return engine


def flush_seldom(engine: Engine) -> None:
    """Let a SQLite engine leave flushing the disk to checkpoints of the write-ahead log.

    A flush may take a third of a second while others write. A power cut may now cost the last trials,
    never the file; a killed process costs nothing.
    """
    event.listen(engine, "connect", _leave_flushing)
    engine.dispose()  # connections opened before the listener


def writer(engine: Engine) -> Engine:
    """Return the engine for transactions that write.

    SQLite takes its write lock at the start of them: a transaction that reads first and writes later
    fails at once, without waiting, when somebody else has written in between.
    """
    return engine.execution_options(**{_SQLITE_BEGIN: "IMMEDIATE"})


def enable_wal(engine: Engine) -> None:
    """Let readers of a SQLite file go on while somebody writes; the file remembers it.

    Call it under `schema_lock`: switching does not wait for others, it fails.
    """
    with engine.execution_options(**{_SQLITE_BEGIN: ""}).connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    engine.dispose()  # connections from before flush at every commit


@contextmanager
def schema_lock(engine: Engine) -> Iterator[None]:
    """Let one process at a time create or upgrade tables, ours or Optuna's.

    Raises:
        StoreError: Another process kept the lock for a minute.
    """
    if is_sqlite(engine.url):
        try:
            with filelock.FileLock(f"{engine.url.database}.lock", timeout=_SCHEMA_LOCK_TIMEOUT_S):
                yield
        except filelock.Timeout as error:
            raise StoreError(f"another process is still upgrading {shown(engine.url)}") from error
        return
    with engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_SCHEMA_LOCK_TIMEOUT_S}s'"))
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK_KEY)))
        yield


@contextmanager
def search_lock(engine: Engine, name: str) -> Iterator[Callable[[], None]]:
    """Let one process at a time run or delete a search, whichever homes they use this store from.

    The lock goes with the process that holds it, however that dies. Yields what checks that it is still
    held: a server that was started again has forgotten it.

    Raises:
        StoreError: Another process holds it.
        StoreUnavailable: The database went away.
    """
    taken = f"search {name!r} is being run by another process"
    if is_sqlite(engine.url):
        database = Path(str(engine.url.database)).resolve()
        with locked(database.parent / f".{database.name}.{name}.lock", taken):
            yield lambda: None
        return
    keys = (_SEARCH_LOCK_KEY, int(np.uint32(zlib.crc32(name.encode())).astype(np.int32)))
    # Without a transaction: one that stays open for hours would keep the database from tidying up.
    with ExitStack() as stack:
        with working(engine.url):
            connection = stack.enter_context(engine.execution_options(isolation_level="AUTOCOMMIT").connect())
            is_ours = connection.scalar(sa.select(sa.func.pg_try_advisory_lock(*keys)))
        if not is_ours:
            raise StoreError(taken)

        def check() -> None:
            with working(engine.url):
                connection.execute(sa.select(1))

        try:
            yield check
        finally:
            with suppress(SQLAlchemyError):  # gone with the connection
                connection.execute(sa.select(sa.func.pg_advisory_unlock(*keys)))


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file for the length of the block.

    Raises:
        StoreError: Somebody else holds it, which `taken` says, or it cannot be written.
    """
    lock = filelock.FileLock(path, timeout=0, mode=0o666)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StoreError(taken) from None
    except OSError as error:
        raise StoreError(f"cannot lock {path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Turn whatever a database says while it is opened into a `StoreError` of one line."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        raise StoreError(f"cannot open the store {shown(url)}: {_reason(url, error)}") from error


@contextmanager
def working(url: URL) -> Iterator[None]:
    """Turn the loss of an open database into `StoreUnavailable`; errors of our own pass."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise StoreUnavailable(f"the store {shown(url)} is away: {_reason(url, error)}") from error


def _reason(url: URL, error: DBAPIError | PoolTimeout) -> str:
    # SQLAlchemy's own text adds the statement with its parameters: many lines, and other people's data.
    origin = error.orig if isinstance(error, DBAPIError) else error
    text = " ".join(str(origin).split()) or type(origin).__name__
    return text.replace(str(url.password), "***") if url.password else text


def _masked(text: str) -> str:
    """Hide what may be a password in a text that is no URL."""
    return re.sub(r":.*@", ":***@", text.partition("?")[0], flags=re.DOTALL)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would open transactions by itself, late and only for some statements.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON").close()


def _leave_flushing(connection: Any, _record: object) -> None:
    [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
    if mode == "wal":  # without a write-ahead log a power cut could cost the file
        connection.execute("PRAGMA synchronous=NORMAL").close()


def _begin_sqlite(connection: Connection) -> None:
    if mode := connection.get_execution_options().get(_SQLITE_BEGIN, "DEFERRED"):
        connection.exec_driver_sql(f"BEGIN {mode}")
