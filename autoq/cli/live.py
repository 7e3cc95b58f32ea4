"""What one sees of a search while it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoq.cli.wording import duration, figures

if TYPE_CHECKING:
    from autoq.search.ports import Progress, SearchListener
    from autoq.search.records import TrialRecord


@contextmanager
def open_view(console: Console) -> Iterator[SearchListener]:
    """Show a search on stderr for the length of the block."""
    if sys.stderr.isatty() and console.is_interactive:
        with LiveListener(console) as view:
            yield view
    else:
        yield PlainListener(console)


class PlainListener:
    """Writes a line for everything that ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_phase(self, name: str, detail: str) -> None:
        """Write that a phase begins."""
        self._line(f"{name}: {detail}")

    def on_note(self, text: str) -> None:
        """Write a note."""
        self._line(text)

    def on_trial_start(self, number: int, origin: str) -> None:
        """Write nothing: the line comes with the trial's figures."""

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        """Write how a trial ended, the best so far and the time left."""
        parts = (
            f"{progress.n_done} of {progress.n_total}: {trial_line(trial)}",
            best_line(progress),
            clock_line(progress),
        )
        self._line(" | ".join(parts))

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


class LiveListener:
    """Keeps a few lines at the bottom of a terminal up to date.

    It draws when it is told something and never by itself: a thread that redraws would run beside
    the measurements.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._now = ""
        self._progress: Progress | None = None

    def __enter__(self) -> LiveListener:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def on_phase(self, name: str, detail: str) -> None:
        """Show the phase; the final round, which tells each of its steps, only for the moment."""
        if name == "final round":
            self._now = f"{name}: {detail}"
        else:
            self._now = ""
            self._above(f"{name}: {detail}")
        self._draw()

    def on_note(self, text: str) -> None:
        """Write a note above the live lines, where it stays."""
        self._above(text)

    def on_trial_start(self, number: int, origin: str) -> None:
        """Show which trial runs."""
        self._now = f"trial {number} ({origin}) is running"
        self._draw()

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        """Show how far the search is; a failed trial also gets a line that stays."""
        self._now, self._progress = trial_line(trial), progress
        if trial.measurement is None:
            self._above(trial_line(trial))
        self._draw()

    def _above(self, text: str) -> None:
        self._live.console.print(text, soft_wrap=True)

    def _draw(self) -> None:
        self._live.update(self._view(), refresh=True)

    def _view(self) -> Group:
        progress = self._progress
        if progress is None:
            return Group(Text(self._now))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"{progress.n_done} of {progress.n_total} trials",
            ProgressBar(total=progress.n_total, completed=progress.n_done, width=30),
            clock_line(progress),
        )
        return Group(bar, Text(self._now), Text(best_line(progress)))


def trial_line(trial: TrialRecord) -> str:
    """Say in one line how a trial ended."""
    ending = trial.reason if trial.measurement is None else figures(trial.measurement)
    failed = "failed, " if trial.measurement is None else ""
    return f"trial {trial.number} ({trial.origin}): {failed}{ending}"


def best_line(progress: Progress) -> str:
    """Say what the best point so far is."""
    if progress.best is None:
        return "nothing feasible yet"
    best = progress.best
    return f"best: trial {best.trial.number}, {figures(best.measurement)}"


def clock_line(progress: Progress) -> str:
    """Say how long it took, how long it will take, and how many trials failed."""
    left = "" if progress.left_s is None else f", about {duration(progress.left_s)} left"
    failed = f", {progress.n_failed} failed" if progress.n_failed else ""
    return f"{duration(progress.elapsed_s)} elapsed{left}{failed}"
