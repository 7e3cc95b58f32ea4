import gc
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from autoq.core.errors import InfrastructureError
from autoq.evaluation.clock import collector_paused, machine_clock

HOLD = """
import pathlib, sys, time
from autoq.evaluation.clock import machine_clock
with machine_clock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the clock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_free_clock_is_had_at_once_again_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        with machine_clock(tmp_path / "clock.lock") as waited_s:
            assert waited_s < 0.5


def test_whoever_comes_second_says_that_it_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "clock.lock"

    class LetGo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert process.poll() is None, "it said so only after the other had gone"
            process.communicate("go\n", timeout=10)

    logger, handler = logging.getLogger("autoq.evaluation.clock"), LetGo(logging.WARNING)
    with holder(path) as process:
        logger.addHandler(handler)
        try:
            with caplog.at_level(logging.WARNING), machine_clock(path) as waited_s:
                assert waited_s > 0
        finally:
            logger.removeHandler(handler)
    assert "another autoq process is measuring on this machine" in caplog.text


def test_the_lock_of_a_killed_process_is_stale_at_once(tmp_path: Path) -> None:
    path = tmp_path / "clock.lock"
    with holder(path) as process:
        process.kill()
        process.wait()
        with machine_clock(path) as waited_s:
            assert waited_s < 0.5


def test_a_lock_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "clock.lock").mkdir()
    with (
        pytest.raises(InfrastructureError, match=r"cannot lock .*clock\.lock"),
        machine_clock(tmp_path / "clock.lock"),
    ):
        pass


def test_the_collector_is_left_as_it_was_found() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
