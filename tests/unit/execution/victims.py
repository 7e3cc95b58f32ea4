"""What lives, and dies, in the child processes of the tests."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.errors import SpecError, TrialError, UserError


class Victim:
    """Does as it is told."""

    def __init__(self) -> None:
        self.n_calls = 0

    def count(self) -> int:
        """Show whether this is the object of the last call."""
        self.n_calls += 1
        return self.n_calls

    def echo(self, value: Any) -> Any:
        """Return what it is given."""
        return value

    def pid(self) -> int:
        """Say which process it lives in."""
        return os.getpid()

    def has_imported(self, module: str) -> bool:
        """Say whether a module is in memory."""
        return module in sys.modules

    def exit(self, code: int) -> None:
        """Leave without a word."""
        os._exit(code)

    def kill(self, number: int) -> None:
        """Die by a signal, as native code does."""
        os.kill(os.getpid(), number)

    def sleep(self, seconds: float) -> str:
        """Take its time."""
        time.sleep(seconds)
        return "awake"

    def hog(self, megabytes: int, seconds: float) -> int:
        """Hold memory that is really used."""
        block = np.ones(megabytes * 2**20, np.uint8)
        time.sleep(seconds)
        return int(block[-1])

    def hog_in_a_child(self, megabytes: int, seconds: float) -> None:
        """Have another process hold the memory."""
        code = f"b = b'1' * ({megabytes} << 20)\nimport time\ntime.sleep({seconds})"
        subprocess.run([sys.executable, "-c", code], check=False)

    def start_sleeper(self) -> int:
        """Start a process that outlives the call."""
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid

    def refuse(self) -> None:
        """Raise what the caller can fix."""
        raise SpecError("no metric named 'top2'", hint="known metrics: top1", given="top2")

    def fail(self) -> None:
        """Raise what ends one trial."""
        raise TrialError("output 'y' has NaN")

    def fail_unpicklably(self) -> None:
        """Raise an error that carries something which stays in its process."""
        raise UserError("stuck", socket=lambda: None)

    def stumble(self) -> None:
        """Have a bug."""
        {}["missing"]

    def starve(self) -> None:
        """Be refused memory by numpy."""
        np.ones(2**50, np.uint8)

    def return_lambda(self) -> Any:
        """Return what cannot be pickled."""
        return lambda: None

    def talk(self) -> str:
        """Write to every kind of standard output."""
        print("printed", flush=True)
        os.write(1, b"written\n")
        print("complained", file=sys.stderr, flush=True)
        return "said"

    def log(self, text: str) -> None:
        """Log to the product's logger."""
        logging.getLogger("autoq.calibration").warning("%s", text)

    def answer_then_die(self) -> str:
        """Die just after the answer has left."""
        import threading

        threading.Timer(0.05, os._exit, args=(9,)).start()
        return "last words"


def build_slowly(seconds: float) -> Victim:
    """Take longer to build than a call may take."""
    time.sleep(seconds)
    return Victim()


def build_refused() -> Victim:
    """Raise what the caller can fix."""
    raise UserError("the model is gone")


def build_dead() -> Victim:
    """Die before there is an object."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return Victim()


def build_once(marker: Path) -> Victim:
    """Be refused the first time only."""
    if not marker.exists():
        marker.touch()
        raise UserError("not yet")
    return Victim()


def parent_with_child() -> None:
    """Be a parent that starts a child, says both pids, and waits to be killed."""
    from autoq.execution.worker import ChildProcess

    child = ChildProcess(Victim)
    print(child.call("pid"), flush=True)
    child.call("sleep", 60)


def parent_that_is_interrupted() -> None:
    """Be a parent that only notes Ctrl-C, and let a call in flight finish."""
    from autoq.execution.worker import ChildProcess

    stops: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stops.append(number))
    child = ChildProcess(Victim)
    child.start()
    print("ready", flush=True)
    print(child.call("sleep", 1.0), len(stops), child.call("count"), flush=True)
    child.close()


def parent_that_is_interrupted_early() -> None:
    """Be a parent that only notes Ctrl-C, which comes while the child starts."""
    from autoq.execution.worker import ChildProcess

    stops: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stops.append(number))
    print("ready", flush=True)
    child = ChildProcess(Victim)
    answer = child.call("count")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child.close()
    print(answer, len(stops) > 3, flush=True)


def touch_and_build(attempts: Path) -> Victim:
    """Leave a line for every time that something is built."""
    with attempts.open("a") as file:
        file.write("built\n")
    return Victim()


def fail_until_exists(needed: Path) -> Victim:
    """Build nothing for as long as a file is missing."""
    touch_and_build(needed.with_suffix(".attempts"))
    if not needed.exists():
        raise SpecError("not there yet")
    return Victim()


def exit_until_exists(needed: Path) -> Victim:
    """Take the process down for as long as a file is missing."""
    touch_and_build(needed.with_suffix(".attempts"))
    if not needed.exists():
        os._exit(3)
    return Victim()
