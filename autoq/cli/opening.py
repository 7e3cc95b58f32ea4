"""Open the app over a home, with its log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from autoq.core.errors import AutoqError, StoreError

if TYPE_CHECKING:
    from autoq.app import App

_log = logging.getLogger("autoq")

_LOG_BYTES = 5_000_000  # of one file
_LOG_FILES = 3  # kept besides the current one


@contextmanager
def open_app(home: Path) -> Iterator[App]:
    """Open the home and log to it for the length of the block.

    Raises:
        StoreError: The home or its log cannot be written, or the database cannot be reached.
    """
    from autoq.app import App

    with closing(App(home)) as app, log_to(app.home.log_file):
        yield app


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Log to a file for the length of the block; an error that ends it is logged with its traceback.

    Raises:
        StoreError: The file cannot be written.
    """
    try:
        handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path}: cannot write the log: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    try:
        yield
    except AutoqError as error:
        _log.error("ended by %s: %s", type(error).__name__, error)  # causes may carry passwords
        raise
    except BaseException as error:
        _log.error("ended by %s", type(error).__name__, exc_info=True)
        raise
    finally:
        _log.setLevel(level)
        _log.removeHandler(handler)
        handler.close()
