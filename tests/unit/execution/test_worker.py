import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import victims
from victims import Victim

from autoq.core.errors import (
    InfrastructureError,
    SpecError,
    TrialCrashed,
    TrialError,
    TrialOutOfMemory,
    TrialTimeout,
    UserError,
)
from autoq.execution.worker import ChildError, ChildProcess


@pytest.fixture(scope="module")
def shared() -> Iterator[ChildProcess[Victim]]:
    """One child for all tests that leave it alive."""
    child = ChildProcess(Victim)
    yield child
    child.close()


@pytest.fixture
def child() -> Iterator[ChildProcess[Victim]]:
    """A child of its own."""
    child = ChildProcess(Victim)
    yield child
    child.close()


def is_running(pid: int) -> bool:
    try:
        # The first thread may be dead before the others: until they are, nobody can reap the process.
        is_zombie = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return not is_zombie or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def wait_until_written(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.read_text() == "built\n"


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def run_parent(function: str) -> subprocess.Popen[str]:
    """Run a function of the victims in an interpreter of its own, in a process group of its own."""
    code = f"import victims\nif __name__ == '__main__':\n    victims.{function}()"
    folder = Path(victims.__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_one_object_in_one_other_process_answers_all_calls(shared: ChildProcess[Victim]) -> None:
    first = shared.call("count")
    assert shared.call("count") == first + 1
    assert shared.call("pid") == shared.pid != os.getpid()


def test_arrays_cross_both_ways(shared: ChildProcess[Victim]) -> None:
    array = np.random.default_rng(0).normal(size=(300, 1000))
    assert np.array_equal(shared.call("echo", {"x": array})["x"], array)


@pytest.mark.parametrize("code", [0, 7])
def test_a_child_that_exits_is_a_crash_and_is_replaced(child: ChildProcess[Victim], code: int) -> None:
    with pytest.raises(TrialCrashed, match=f"exited with code {code}"):
        child.call("exit", code)
    assert child.call("count") == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_child_that_dies_by_a_signal_says_which(
    child: ChildProcess[Victim], number: signal.Signals
) -> None:
    with pytest.raises(TrialCrashed, match=f"ended by {number.name}") as caught:
        child.call("kill", int(number))
    assert ("out of memory" in caught.value.hint) == (number is signal.SIGKILL)


def test_a_child_that_died_between_two_calls_is_replaced(child: ChildProcess[Victim]) -> None:
    first = child.call("pid")
    os.kill(first, signal.SIGKILL)
    assert wait_until_gone(first)
    assert child.call("pid") != first


def test_an_answer_sent_before_dying_counts(child: ChildProcess[Victim]) -> None:
    assert child.call("answer_then_die") == "last words"
    assert child.pid is not None
    assert wait_until_gone(child.pid)
    assert child.call("count") == 1


def test_a_call_that_hangs_is_killed_at_its_time_limit(child: ChildProcess[Victim]) -> None:
    pid = child.call("pid")
    start = time.monotonic()
    with pytest.raises(TrialTimeout, match=r"limit of 0\.3 s"):
        child.call("sleep", 60, timeout_s=0.3)
    assert time.monotonic() - start < 30
    assert wait_until_gone(pid)
    assert child.call("count", timeout_s=30) == 1


def test_starting_a_child_does_not_count_as_the_calls_time() -> None:
    slow = ChildProcess(partial(victims.build_slowly, 1.0))
    assert slow.call("sleep", 0.0, timeout_s=0.9) == "awake"
    slow.close()


def test_a_call_that_takes_too_much_memory_is_killed(child: ChildProcess[Victim]) -> None:
    pid = child.call("pid")
    limit_mb = psutil.Process(pid).memory_info().rss / 2**20 + 150
    with pytest.raises(TrialOutOfMemory, match=r"memory reached \d+ MiB, its limit is"):
        child.call("hog", 300, 60, memory_mb=limit_mb)
    assert wait_until_gone(pid)
    assert child.call("hog", 10, 0.3, memory_mb=limit_mb) == 1


def test_memory_of_processes_that_the_child_started_counts_and_they_die_with_it(
    child: ChildProcess[Victim],
) -> None:
    pid = child.call("pid")
    limit_mb = psutil.Process(pid).memory_info().rss / 2**20 + 150
    sleeper = child.call("start_sleeper")
    with pytest.raises(TrialOutOfMemory):
        child.call("hog_in_a_child", 300, 60, memory_mb=limit_mb)
    assert wait_until_gone(sleeper)


def test_memory_that_numpy_cannot_get_is_out_of_memory_too(shared: ChildProcess[Victim]) -> None:
    pid = shared.call("pid")
    with pytest.raises(TrialOutOfMemory, match="ran out of memory"):
        shared.call("starve")
    assert shared.call("pid") == pid


def test_errors_keep_type_hint_and_context(shared: ChildProcess[Victim]) -> None:
    with pytest.raises(SpecError, match="no metric named 'top2'") as caught:
        shared.call("refuse")
    assert caught.value.hint == "known metrics: top1"
    assert caught.value.context == {"given": "top2"}
    with pytest.raises(TrialError, match="has NaN"):
        shared.call("fail")


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("stumble", "KeyError: 'missing'"),
        ("fail_unpicklably", "UserError: stuck"),
        ("return_lambda", "lambda"),
    ],
)
def test_a_bug_shows_the_childs_traceback_and_leaves_it_alive(
    shared: ChildProcess[Victim], method: str, shown: str
) -> None:
    pid = shared.call("pid")
    with pytest.raises(ChildError) as caught:
        shared.call(method)
    assert shown in str(caught.value)
    assert "Traceback" in str(caught.value)
    assert shared.call("pid") == pid


def test_a_factory_that_refuses_does_so_again_until_it_can() -> None:
    refused = ChildProcess(victims.build_refused)
    for _ in range(2):
        with pytest.raises(UserError, match="the model is gone"):
            refused.call("count")
    assert refused.pid is None


def test_after_a_failed_start_the_next_call_starts_anew(tmp_path: Path) -> None:
    child = ChildProcess(partial(victims.build_once, tmp_path / "marker"))
    with pytest.raises(UserError, match="not yet"):
        child.call("count")
    assert child.call("count") == 1
    child.close()


def test_a_child_that_dies_while_it_starts_is_no_candidates_fault() -> None:
    with pytest.raises(InfrastructureError, match=r"while it started, .* SIGSEGV"):
        ChildProcess(victims.build_dead).start()


def test_a_new_factory_is_for_the_next_child(child: ChildProcess[Victim]) -> None:
    pid = child.call("pid")
    child.replace_factory(partial(victims.build_slowly, 0.0))
    assert child.call("pid") == pid
    child.close()
    assert child.pid is None
    assert wait_until_gone(pid)
    assert child.call("count") == 1


def test_what_a_child_prints_goes_to_standard_error(
    child: ChildProcess[Victim], capfd: pytest.CaptureFixture[str]
) -> None:
    assert child.call("talk") == "said"
    printed = capfd.readouterr()
    assert printed.out == ""
    assert all(word in printed.err for word in ("printed", "written", "complained"))


def test_what_a_child_prints_goes_to_its_log_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "child.log"
    path.write_text("before\n")
    logged = ChildProcess(Victim, log_path=path)
    logged.call("talk")
    logged.close()
    assert path.read_text().split() == ["before", "printed", "written", "complained"]
    assert capfd.readouterr() == ("", "")


def test_what_a_child_logs_is_logged_by_the_parent(
    shared: ChildProcess[Victim], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        shared.call("log", "100 % of the statistics were reused")
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("autoq.calibration", "WARNING", "100 % of the statistics were reused")
    ]


def test_a_parent_that_is_killed_leaves_no_orphan() -> None:
    with run_parent("parent_with_child") as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        assert wait_until_gone(pid)


def test_ctrl_c_lets_the_call_in_flight_finish() -> None:
    with run_parent("parent_that_is_interrupted") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        time.sleep(0.2)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: parent and child both
        assert parent.stdout.read() == "awake 1 1\n"
        assert parent.wait(20) == 0


def test_ctrl_c_while_a_child_starts_does_not_stop_it() -> None:
    with run_parent("parent_that_is_interrupted_early") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        while parent.poll() is None:
            os.killpg(parent.pid, signal.SIGINT)
            time.sleep(0.005)
        assert parent.stdout.read() == "1 True\n"


def test_a_signal_handler_that_raises_ends_the_child_and_the_next_call_gets_its_own_answer(
    child: ChildProcess[Victim],
) -> None:
    def give_up(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    pid = child.call("pid")
    before = signal.signal(signal.SIGALRM, give_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            child.call("sleep", 60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert wait_until_gone(pid)
    assert child.call("echo", "mine") == "mine"


def test_closing_twice_or_before_the_start_does_nothing(child: ChildProcess[Victim]) -> None:
    child.close()
    child.call("count")
    child.close()
    child.close()
    assert child.pid is None


def test_a_launched_child_builds_nothing_until_it_is_started() -> None:
    child: ChildProcess[Victim] = ChildProcess(preload=["colorsys"])
    child.launch()
    pid = child.pid
    assert pid is not None
    assert not child.is_begun
    child.replace_factory(Victim)  # only now is it known what to build
    child.start()
    assert child.is_begun
    assert child.pid == child.call("pid") == pid
    child.close()
    assert child.pid is None
    assert not child.is_begun


def test_a_child_builds_while_nobody_waits(child: ChildProcess[Victim], tmp_path: Path) -> None:
    built = tmp_path / "built"
    child.replace_factory(partial(victims.touch_and_build, built))
    child.begin()
    child.begin()  # once is enough
    pid = child.pid
    wait_until_written(built)
    child.start()
    assert child.call("pid") == child.pid == pid
    assert built.read_text() == "built\n"


@pytest.mark.parametrize("failing", [victims.fail_until_exists, victims.exit_until_exists])
def test_what_failed_to_build_ahead_is_built_again_when_it_is_needed(
    failing: Callable[[Path], Victim], child: ChildProcess[Victim], tmp_path: Path
) -> None:
    needed = tmp_path / "needed"
    child.replace_factory(partial(failing, needed))
    child.begin()
    wait_until_written(tmp_path / "needed.attempts")
    needed.touch()
    assert child.call("echo", "there") == "there"


def test_what_fails_twice_is_told(child: ChildProcess[Victim], tmp_path: Path) -> None:
    child.replace_factory(partial(victims.fail_until_exists, tmp_path / "never"))
    child.begin()
    with pytest.raises(SpecError, match="not there yet"):
        child.start()
    assert child.pid is None


def test_a_launched_child_has_imported_what_it_will_need() -> None:
    child = ChildProcess(Victim, preload=["colorsys"])
    assert child.call("has_imported", "colorsys")
    assert not child.call("has_imported", "this")
    child.close()


def test_a_launched_child_is_closed_without_waiting_for_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    child: ChildProcess[Victim] = ChildProcess(preload=["slow_import"])
    child.launch()
    pid = child.pid
    assert pid is not None
    start = time.monotonic()
    child.close()
    assert time.monotonic() - start < 10.0  # the import takes a minute
    assert wait_until_gone(pid)


def test_a_child_that_cannot_import_is_no_candidates_fault() -> None:
    with pytest.raises(InfrastructureError, match="while it started, the trial's process exited"):
        ChildProcess(Victim, preload=["no_such_module"]).start()


def test_a_child_without_a_factory_cannot_be_started() -> None:
    child: ChildProcess[Victim] = ChildProcess()
    with pytest.raises(ValueError, match="no factory"):
        child.start()
    child.close()
