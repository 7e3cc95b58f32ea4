"""Who may use this machine while something is timed."""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from autoq.core.errors import InfrastructureError

CLOCK_PATH = Path(tempfile.gettempdir()) / "autoq-clock.lock"
_SAYS_SO_AFTER_S = 0.5  # a wait that nobody would notice is not worth a line

_log = logging.getLogger(__name__)


@contextmanager
def machine_clock(path: Path = CLOCK_PATH) -> Iterator[float]:
    """Own the machine's clock: of all autoq processes here, one measures at a time.

    Waits without limit for whoever holds it and yields the seconds waited. It is a lock of the
    operating system on an open file: it goes with the process that holds it, however that dies, so a
    file left behind is never stale. All users of the machine share it.

    Do not nest it, and take it in the process that owns the trial's time limit: waiting is no part of
    a trial.

    Raises:
        InfrastructureError: The file cannot be opened.
    """
    lock = filelock.FileLock(path, mode=0o666)
    start = time.perf_counter()
    try:
        try:
            lock.acquire(timeout=_SAYS_SO_AFTER_S)
        except filelock.Timeout:
            _log.warning("another autoq process is measuring on this machine: waiting for it")
            lock.acquire()
            _log.info("waited %.1f s for the machine", time.perf_counter() - start)
    except OSError as error:
        raise InfrastructureError(
            f"cannot lock {path}, expected a file all users may write: {error}"
        ) from error
    try:
        yield time.perf_counter() - start
    finally:
        lock.release()


def is_clock_free(path: Path = CLOCK_PATH) -> bool:
    """Say whether nobody measures on this machine just now."""
    try:
        with filelock.FileLock(path, mode=0o666, timeout=0):
            return True
    except (filelock.Timeout, OSError):
        return False


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from running while a clock does."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
