"""Who follows a search besides the view: the log, and the command itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autoq.cli.wording import figures, parts

if TYPE_CHECKING:
    from autoq.search.ports import Progress, SearchListener
    from autoq.search.records import TrialRecord

_log = logging.getLogger("autoq")

_MEASURING = ("trials", "final round")
_STORED = ("guide", *_MEASURING)


class Relay:
    """Tells several listeners, in their order."""

    def __init__(self, *listeners: SearchListener) -> None:
        self._listeners = listeners

    def on_phase(self, name: str, detail: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.on_phase(name, detail)

    def on_note(self, text: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.on_note(text)

    def on_trial_start(self, number: int, origin: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.on_trial_start(number, origin)

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.on_trial_end(trial, progress)


class Stage:
    """How far a search has come, for deciding what an interruption or a lost server means."""

    def __init__(self) -> None:
        self.phase = ""

    @property
    def is_stored(self) -> bool:
        """Whether the search can be resumed: it is stored once its baseline is measured."""
        return self.phase in _STORED

    @property
    def is_measuring(self) -> bool:
        """Whether measurements are under way that are worth waiting for."""
        return self.phase in _MEASURING

    def on_phase(self, name: str, detail: str) -> None:
        """Remember the phase."""
        self.phase = name

    def on_note(self, text: str) -> None:
        """Ignore it."""

    def on_trial_start(self, number: int, origin: str) -> None:
        """Ignore it."""

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        """Ignore it."""


class LogListener:
    """Writes what happens to the log, each trial with the parts of its time."""

    def on_phase(self, name: str, detail: str) -> None:
        """Log that a phase begins."""
        _log.info("%s: %s", name, detail)

    def on_note(self, text: str) -> None:
        """Log a note."""
        _log.info("%s", text)

    def on_trial_start(self, number: int, origin: str) -> None:
        """Log that a trial begins: the last line of a search that was killed."""
        _log.info("trial %d begins (%s)", number, origin)

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        """Log how a trial ended and where its time went."""
        if trial.measurement is None:
            _log.info("trial %d failed: %s; %s", trial.number, trial.reason, parts(trial.seconds))
        else:
            _log.info("trial %d: %s; %s", trial.number, figures(trial.measurement), parts(trial.seconds))


@contextmanager
def warnings_told(say: Callable[[str], None]) -> Iterator[None]:
    """Tell the user of the block what is logged as a warning, such as waiting for the machine."""
    handler = _Teller(say)
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)


class _Teller(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
