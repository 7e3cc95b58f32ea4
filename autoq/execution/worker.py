"""An object that lives in a child process, where it may crash, hang and run out of memory."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from autoq.core.errors import AutoqError, InfrastructureError, TrialCrashed, TrialOutOfMemory, TrialTimeout
from autoq.execution.child import Answer, Failure, LogLine, serve
from autoq.execution.memory import MemoryWatch, kill_tree

T = TypeVar("T")

# Ten looks a second cost the machine well under a thousandth, so a clock in the child can run meanwhile.
POLL_S = 0.1
_GOODBYE_S = 2.0

_log = logging.getLogger(__name__)


class ChildError(RuntimeError):
    """A bug in the child: its traceback is the message."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may use; None is no limit."""

    timeout_s: float | None = None
    memory_mb: float | None = None  # resident, of the child with all processes it started


class ChildProcess(Generic[T]):
    """Runs one object in a child process and forwards calls to it.

    The child is started at the first call and used for all that follow; one that died or was killed is
    replaced at the next call, by calling the factory again. It ignores Ctrl-C, which is the parent's to
    decide about: a call in flight goes on when a signal handler only sets a flag, and a handler that
    raises ends the child. It dies with its parent, and with the thread that started it. What it prints
    goes to standard error, or to a log file; what it logs is logged in the parent.

    Starting has steps that need not be waited for: `launch` brings the process up and lets it import, before
    it is known what to build; `begin` lets it build the object; `start` waits until it is there.

    Not safe to use from several threads.
    """

    def __init__(
        self,
        factory: Callable[[], T] | None = None,
        *,
        preload: Sequence[str] = (),
        log_path: Path | None = None,
    ) -> None:
        """Remember how to build the object.

        Args:
            factory: Builds the object in the child; picklable. It may be given later, by `replace_factory`.
            preload: Modules that every child imports as soon as it is launched.
            log_path: File that the child's standard output and error are appended to.
        """
        self._factory = factory
        self._preload = tuple(preload)
        self._log_path = log_path
        self._process: SpawnProcess | None = None
        self._pipe: connection.Connection[Any, Any] | None = None
        self._is_begun = False  # the factory was sent
        self._is_built = False  # and has answered

    @property
    def pid(self) -> int | None:
        """Process id of the child, or None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def is_begun(self) -> bool:
        """Whether there is a child that holds the object, or is building it."""
        return self._is_begun

    def replace_factory(self, factory: Callable[[], T]) -> None:
        """Build the object differently from now on; one that is built already stays."""
        self._factory = factory

    def launch(self) -> None:
        """Start a child that imports and then waits, unless there is a living one; return at once."""
        if self._process is not None and self._process.is_alive():
            return
        self.close()
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        # The parent may begin to log later than this; what it does not want it drops itself.
        level = min(logging.getLogger("autoq").getEffectiveLevel(), logging.INFO)
        process = multiprocessing.get_context("spawn").Process(
            target=serve,
            args=(theirs, os.getpid(), self._log_path, level, self._preload),
            name="autoq-trials",
            daemon=True,
        )
        with _interrupts_held():
            process.start()
        theirs.close()
        self._process, self._pipe = process, ours

    def begin(self) -> None:
        """Let the child build its object, and wait only until it has taken what to build.

        What goes wrong is `start`'s to tell.
        """
        self.launch()
        if self._is_begun:
            return
        if self._factory is None:
            raise ValueError("no factory: a child without an object can only be launched")
        self._is_begun = True
        self._send(self._factory)

    def start(self) -> None:
        """Start the child and build its object, unless there is a living one.

        Building has no time limit: it is no part of any trial. Where it began earlier and has failed, it
        is tried again: what it lacked then may be there now.

        Raises:
            AutoqError: As raised by the factory.
            InfrastructureError: The child died while it built the object.
            ChildError: The factory raised anything else.
        """
        self.launch()
        if self._is_built:
            return
        if self._is_begun:
            try:
                self._finish_building()
            except (AutoqError, ChildError) as error:
                _log.info("what was built ahead failed, it is built again: %s", error)
            else:
                return
        self.begin()
        self._finish_building()

    def call(
        self, method: str, *args: Any, timeout_s: float | None = None, memory_mb: float | None = None
    ) -> Any:
        """Call a method of the object and return what it returns.

        Args:
            method: Its name.
            args: Picklable arguments.
            timeout_s: Seconds after which the child is killed; starting one does not count.
            memory_mb: Resident memory in MiB above which the child is killed.

        Raises:
            AutoqError: As raised by the method, of the same type.
            TrialTimeout: It took too long.
            TrialOutOfMemory: It took too much memory.
            TrialCrashed: The child died.
            InfrastructureError: A child died while it was being started.
            ChildError: The method raised anything else.
        """
        self.start()
        return self._exchange((method, args), Limits(timeout_s, memory_mb))

    def _finish_building(self) -> None:
        try:
            self._received(Limits())
            self._is_built = True
        except TrialCrashed as error:
            raise InfrastructureError(f"while it started, {error.args[0]}", hint=error.hint) from None
        finally:
            if not self._is_built:
                self._kill()

    def close(self) -> None:
        """End the child, gently if it is idle; one that has built nothing has nothing to finish."""
        if not self._is_built:
            self._kill()
            return
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        self._is_begun = self._is_built = False
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.join(_GOODBYE_S)
            self._end(process)

    def _kill(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        self._is_begun = self._is_built = False
        if process is not None:
            self._end(process)
        if pipe is not None:
            pipe.close()

    @staticmethod
    def _end(process: SpawnProcess) -> None:
        if process.is_alive() and process.pid is not None:
            kill_tree(process.pid)
        process.join()
        process.close()

    def _exchange(self, request: Any, limits: Limits) -> Any:
        """Send a request and wait for its answer; a child that gave none is not used again."""
        self._send(request)
        return self._received(limits)

    def _send(self, request: Any) -> None:
        """Send a request; a child that got half of it is not used again."""
        assert self._pipe is not None
        try:
            with suppress(ConnectionError):  # it has died: waiting for its answer tells how
                self._pipe.send(request)
        except BaseException:  # raised again: an interrupt too may have come halfway
            self._kill()
            raise

    def _received(self, limits: Limits) -> Any:
        answer: Answer | Failure | None = None
        try:
            answer = self._answer(limits)
        finally:
            if answer is None:
                self._kill()
        if isinstance(answer, Answer):
            return answer.value
        if answer.error is not None:
            raise answer.error
        raise ChildError(answer.text)

    def _answer(self, limits: Limits) -> Answer | Failure:
        process, pipe = self._process, self._pipe
        assert process is not None
        assert process.pid is not None
        assert pipe is not None
        start = time.monotonic()
        memory = MemoryWatch(process.pid)
        try:
            while True:
                ready = connection.wait([pipe, process.sentinel], _wait_s(start, limits))
                if pipe in ready:  # what was sent before dying is read first
                    message = pipe.recv()
                    if not isinstance(message, LogLine):
                        assert isinstance(message, Answer | Failure)
                        return message
                    logging.getLogger(message.logger).log(message.level, "%s", message.text)
                elif ready:
                    raise EOFError
                _check_limits(start, memory, limits)
        except (EOFError, ConnectionError):
            process.join()
            raise _crash(process.exitcode) from None


def _wait_s(start: float, limits: Limits) -> float:
    if limits.timeout_s is None:
        return POLL_S
    return max(0.0, min(POLL_S, start + limits.timeout_s - time.monotonic()))


def _check_limits(start: float, memory: MemoryWatch, limits: Limits) -> None:
    if limits.timeout_s is not None and time.monotonic() - start >= limits.timeout_s:
        raise TrialTimeout(f"the trial ran past its limit of {limits.timeout_s:g} s")
    if limits.memory_mb is not None and (used_mb := memory.resident_mb()) > limits.memory_mb:
        raise TrialOutOfMemory(
            f"the trial's memory reached {used_mb:.0f} MiB, its limit is {limits.memory_mb:g} MiB"
        )


def _crash(exit_code: int | None) -> TrialCrashed:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "the system may have run out of memory" if -exit_code == signal.SIGKILL else ""
        return TrialCrashed(f"the trial's process was ended by {name}", hint=hint)
    return TrialCrashed(f"the trial's process exited with code {exit_code}")


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back: a child inherits that, and ignores interrupts before it lets them in again."""
    resource_tracker.ensure_running()  # its own start would let them in too early
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
