from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from autoq.cli.errors import report_errors
from autoq.core.errors import (
    DataError,
    SpecError,
    StoreError,
    StoreUnavailable,
    TargetUnavailable,
    TrialTimeout,
    UnfaithfulModel,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("x"), 2),
        (DataError("x"), 2),
        (StoreError("x"), 2),
        (TargetUnavailable("x"), 2),
        (StoreUnavailable("x"), 2),
        (TrialTimeout("x"), 1),
        (UnfaithfulModel("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_family_of_errors_has_its_exit_code(error: BaseException, code: int) -> None:
    with pytest.raises(typer.Exit) as ending, report_errors():
        raise error
    assert ending.value.exit_code == code


def test_an_error_is_one_line_on_stderr_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), report_errors():
        raise DataError("d.npz: no array 'a'", hint="it holds b, c")
    captured = capsys.readouterr()
    assert captured.err == "autoq: error: d.npz: no array 'a' (it holds b, c)\n"
    assert captured.out == ""


def test_a_bug_keeps_its_type_and_is_not_reported_as_an_error_of_the_user() -> None:
    with pytest.raises(ZeroDivisionError), report_errors():
        raise ZeroDivisionError


def test_a_bug_in_a_command_shows_its_traceback_and_exits_with_1() -> None:
    code = (
        "import autoq.cli.looking as looking\n"
        "looking.show_searches = lambda *a, **k: 1 / 0\n"
        "import sys; sys.argv = ['autoq', 'list']\n"
        "from autoq.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr
