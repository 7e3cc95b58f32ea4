"""How autoq talks to MLflow: failing fast, quietly, and with one kind of error."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from autoq.core.errors import InfrastructureError

_TIMEOUT, _UPLOAD_S = "MLFLOW_HTTP_REQUEST_TIMEOUT", "120"
# MLflow's defaults are 7 retries of 120 s each: a dead server would hold up a search for minutes.
# What the user has set in the environment goes first.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    _TIMEOUT: "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is the caller's: `--json` prints there
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_CHATTY = ("mlflow", "alembic")
_MAX_MESSAGE_LENGTH = 240

# The environment and the log levels belong to the whole process: one call at a time changes them.
_LOCK = threading.RLock()


@contextmanager
def talking_to(tracking_uri: str, *, uploading: bool = False) -> Iterator[None]:
    """Run MLflow calls so that none waits long, prints, or raises anything but our own errors.

    MLflow raises MlflowException for everything that its client, its server or its database did. To
    a search all of it means the same: its view cannot be written now.

    Args:
        tracking_uri: The server or database.
        uploading: Whether files are sent, which a server may pass on to another before it answers.

    Raises:
        InfrastructureError: The tracking server or its database failed; trying again may help.
    """
    settings = {**_SETTINGS, _TIMEOUT: _UPLOAD_S} if uploading else _SETTINGS
    with _LOCK, environment(settings):
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with _quiet(_CHATTY):  # only now: importing MLflow sets its level
                yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            shown = without_credentials(tracking_uri)
            reason = " ".join(str(error).replace(tracking_uri, shown).split())[:_MAX_MESSAGE_LENGTH]
            raise InfrastructureError(f"tracking server {shown} failed: {reason}") from error


def without_credentials(uri: str) -> str:
    """Return a URI without the user and password it may carry."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that the user has not set, for the length of the block."""
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _quiet(names: tuple[str, ...]) -> Iterator[None]:
    """Silence loggers whose messages the raised error repeats."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
