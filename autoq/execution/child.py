"""The child's side: build an object, answer calls, die with the parent."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from autoq.core.errors import DISK_ERRORS, AutoqError, InfrastructureError, TrialOutOfMemory
from autoq.execution.memory import give_back_memory, keep_freed_memory, uncollected

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """What a call raised: an error to raise again, or the traceback of a bug."""

    error: AutoqError | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """Something the child logged."""

    logger: str
    level: int
    text: str


class _Pipe:
    """The child's end; log lines come from any thread."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> Any:
        return self._connection.recv()

    def send(self, message: Answer | Failure | LogLine) -> None:
        # Pickled first: what cannot be pickled must not leave half a message in the pipe.
        data = pickle.dumps(message)
        with self._lock:
            self._connection.send_bytes(data)


class _LogForwarder(logging.Handler):
    """Hands log records to the parent, whose log file and view they belong to."""

    def __init__(self, pipe: _Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pipe.send(LogLine(record.name, record.levelno, self.format(record)))
        except OSError:
            self.handleError(record)


def serve(
    connection: Connection[Any, Any],
    parent_pid: int,
    log_path: Path | None,
    log_level: int,
    preload: Sequence[str] = (),
) -> None:
    """Run the child: the first request is the factory, every other a method with its arguments.

    The modules in `preload` are imported before the first request is waited for.
    """
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with(parent_pid)
    _redirect_output(log_path)
    pipe = _Pipe(connection)
    logger = logging.getLogger("autoq")
    logger.addHandler(_LogForwarder(pipe))
    logger.setLevel(log_level)
    logger.propagate = False
    with uncollected():
        for module in preload:
            importlib.import_module(module)
    built: Any = None
    while True:
        try:
            request = pipe.receive()
        except (EOFError, ConnectionError):  # the parent is gone, or has closed
            return
        except Exception:  # unpickling a request imports the caller's modules, which may raise anything
            pipe.send(Failure(None, traceback.format_exc()))
            continue
        try:
            if built is None:
                built, value = request(), None
                # It lives as long as the process: no trial has to look through it for garbage.
                gc.collect()
                gc.freeze()
            else:
                method, arguments = request
                value = getattr(built, method)(*arguments)
            give_back_memory()
            pipe.send(Answer(value))
        except Exception as error:  # whatever it is, the parent is told and decides
            pipe.send(_failure(error))


def _failure(error: Exception) -> Failure:
    if isinstance(error, MemoryError):
        return Failure(TrialOutOfMemory(f"the trial ran out of memory: {error}"))
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return Failure(InfrastructureError(f"cannot write: {error.strerror}: {error.filename}"))
    text = f"in the child process:\n{traceback.format_exc()}"
    if isinstance(error, AutoqError) and _survives_pickle(error):
        return Failure(error)
    return Failure(None, text)


def _survives_pickle(error: AutoqError) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling runs code of whatever the error carries, which may raise anything
        return False
    return True


def _die_with(parent_pid: int) -> None:
    """End this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the kernel was asked
        os._exit(1)


def _redirect_output(log_path: Path | None) -> None:
    """Keep the parent's standard output clean of everything, native libraries included."""
    sys.stdout.flush()
    if log_path is None:
        os.dup2(2, 1)
        return
    file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
