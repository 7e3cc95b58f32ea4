"""Who may write where: results go to stdout, alone; everything else goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 180  # characters a line where no terminal sets a limit
# Tables on a narrower terminal are not cut: their lines run on.
_LEAST_WIDTH = 96

STDOUT, STDERR = 1, 2


def results_console(as_json: bool) -> Console:
    """Console for what a command found; with `--json` stdout is the JSON object's."""
    return _console(stderr=as_json)


def progress_console() -> Console:
    """Console for everything that is not a result."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    # No markup, emoji or highlighting: names are the user's and are shown as they are.
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def print_table(console: Console, table: Table) -> None:
    """Print a table and an empty line; its text is wrapped where the terminal is narrow, never cut."""
    if console.width < _LEAST_WIDTH:
        table.width = _LEAST_WIDTH
    console.print(table, crop=False)
    console.print()


def print_json(content: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout."""
    print(json.dumps(content, indent=2, allow_nan=False), flush=True)


@contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Send to stderr whatever the block writes to stdout, in child processes too.

    Data factories, metrics and libraries print what they like, and a reader of `--json` must not
    find it in front of the object.
    """
    sys.stdout.flush()
    saved = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, STDOUT)
        os.close(saved)
