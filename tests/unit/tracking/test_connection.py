from __future__ import annotations

import contextlib
import logging
import os
import sqlite3

import pytest

from autoq.core.errors import InfrastructureError
from autoq.tracking.connection import talking_to, without_credentials

SERVER = "http://ada:secret@tracking.example:5000"


def test_mlflow_is_told_to_give_up_soon_and_the_environment_is_restored() -> None:
    with talking_to(SERVER):
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

        assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == (0, 3)
    assert not [name for name in os.environ if name.startswith("MLFLOW_HTTP")]


def test_a_server_that_passes_files_on_gets_the_time_for_it() -> None:
    with talking_to(SERVER, uploading=True):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "120"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert not [name for name in os.environ if name.startswith("MLFLOW_HTTP")]


def test_a_time_out_that_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "40")
    with talking_to(SERVER):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "40"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "40"


def test_the_log_level_is_restored_also_after_an_error() -> None:
    with talking_to(SERVER):
        pass
    before = logging.getLogger("mlflow").level
    heard = []
    with contextlib.suppress(InfrastructureError), talking_to(SERVER):
        heard.append(logging.getLogger("mlflow.store").isEnabledFor(logging.ERROR))
        raise sqlite3.OperationalError("disk I/O error")
    assert heard == [False]
    assert logging.getLogger("mlflow").level == before


def test_what_fails_becomes_one_line_that_names_the_server_and_no_password() -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(InfrastructureError) as caught, talking_to(SERVER):
        raise MlflowException(f"API request to {SERVER}/api failed\nwith a\nlong story")
    assert str(caught.value) == (
        "tracking server http://tracking.example:5000 failed: "
        "API request to http://tracking.example:5000/api failed with a long story"
    )


def test_a_bug_keeps_its_own_error() -> None:
    with pytest.raises(KeyError), talking_to(SERVER):
        raise KeyError("ours")


def test_a_uri_without_credentials_stays_as_it_is() -> None:
    assert without_credentials("sqlite:////home/ada@work/mlflow.db") == "sqlite:////home/ada@work/mlflow.db"
    assert without_credentials("postgresql://ada:p@ss@db/mlflow") == "postgresql://db/mlflow"
