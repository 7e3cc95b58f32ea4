"""Exit codes, and the one table from families of errors to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum

import typer

from autoq.core.errors import DISK_ERRORS, AutoqError, InfrastructureError, TrialError, UserError


class ExitCode(IntEnum):
    """What a command tells the shell."""

    OK = 0  # for a search: some point is feasible
    OURS = 1  # a bug, or every trial failed
    USER = 2  # the user's error, or a store that cannot be reached at the start
    INFEASIBLE = 3  # finished, and nothing is feasible
    LOST = 4  # infrastructure lost in mid-search; it can be resumed
    INTERRUPTED = 130  # Ctrl-C; a search can be resumed


# A search that is under way turns an InfrastructureError into LOST by itself.
_CODES: Mapping[type[AutoqError], ExitCode] = {
    UserError: ExitCode.USER,
    InfrastructureError: ExitCode.USER,
    TrialError: ExitCode.OURS,
}


def exit_code_of(error: AutoqError) -> ExitCode:
    """Return the exit code of an error's family."""
    return next((code for family, code in _CODES.items() if isinstance(error, family)), ExitCode.OURS)


def complain(error: AutoqError) -> None:
    """Write an error with its hint to stderr."""
    say(f"error: {error}")


def say(text: str) -> None:
    """Write a line to stderr, under the program's name."""
    print(f"autoq: {text}", file=sys.stderr, flush=True)


@contextmanager
def report_errors() -> Iterator[None]:
    """End the command with one line and an exit code for every error raised on purpose.

    Anything else is a bug: it propagates with its traceback, and Python exits with 1.
    """
    try:
        yield
    except AutoqError as error:
        complain(error)
        raise typer.Exit(exit_code_of(error)) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        say(f"error: cannot write: {error.strerror}: {error.filename}")
        raise typer.Exit(ExitCode.LOST) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
