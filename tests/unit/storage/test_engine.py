from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from autoq.core.errors import StoreError
from autoq.storage.engine import connect_arguments, create_engine, parse_url, shown
from autoq.storage.ledger import SqlLedger


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_means_psycopg_3(scheme: str) -> None:
    assert parse_url(f"{scheme}://u:p@host/db").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:s3cret@host:1/db",
        "postgresql://me@host:1/db?password=s3cret",
        "postgresql://me:s3cret@host:port/db",
        "mysql://me:s3cret@host/db",
        "postgresql:me:s3cret@host/db",
    ],
)
def test_a_password_is_never_in_a_message(text: str) -> None:
    try:
        message = shown(parse_url(text))
    except StoreError as error:
        message = str(error)
    assert "s3cret" not in message
    assert "host" in message


@pytest.mark.parametrize("text", ["", "autoq.db", "mysql://host/db", "sqlite://", "sqlite:///:memory:"])
def test_what_is_no_sqlite_file_or_postgresql_database_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match=r"expected sqlite:///FILE or postgresql://") as caught:
        SqlLedger(text)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"folder {tmp_path}/none does not exist"):
        SqlLedger(f"sqlite:///{tmp_path}/none/autoq.db")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello " * 1000)
    with pytest.raises(StoreError, match=r"cannot open the store .*notes\.txt: file is not a database"):
        SqlLedger(f"sqlite:///{path}")
    assert path.read_text() == "hello " * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open database file"):
        SqlLedger(f"sqlite:///{tmp_path}")


def test_a_server_that_is_not_there_is_one_line_without_the_password() -> None:
    with pytest.raises(StoreError, match="cannot open the store postgresql") as caught:
        SqlLedger("postgresql://me:s3cret@127.0.0.1:1/db")
    message = str(pickle.loads(pickle.dumps(caught.value)))
    assert "s3cret" not in message
    assert "127.0.0.1" in message
    assert "\n" not in message


def test_a_missing_postgresql_database_is_named(postgres_url: str) -> None:
    with pytest.raises(StoreError, match='database "nobody" does not exist'):
        SqlLedger(parse_url(postgres_url).set(database="nobody").render_as_string())


def test_the_url_decides_how_long_to_wait() -> None:
    assert connect_arguments(parse_url("sqlite:///autoq.db?timeout=1")) == {}
    assert connect_arguments(parse_url("postgresql://host/db?connect_timeout=1")) == {}
    assert connect_arguments(parse_url("postgresql://host/db"))["connect_timeout"] == 10


def test_foreign_keys_are_enforced(tmp_path: Path) -> None:
    engine = create_engine(parse_url(f"sqlite:///{tmp_path}/autoq.db"))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()
