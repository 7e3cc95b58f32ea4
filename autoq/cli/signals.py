"""Ctrl-C during a search: the first waits for the measurement in flight, the second does not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

STOPPING = "stopping after the measurement in flight; Ctrl-C again stops at once"


class Interrupts:
    """Takes Ctrl-C for the length of a block, in the main thread.

    Args:
        can_wait: Whether there is a measurement to wait for; if not, the first Ctrl-C stops at once.
        say: Tells the user what happens next.
    """

    def __init__(self, can_wait: Callable[[], bool], say: Callable[[str], None]) -> None:
        self._can_wait, self._say = can_wait, say
        self._asked = False
        self._before: Any = None

    def should_stop(self) -> bool:
        """Whether the search should end at the next chance."""
        return self._asked

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self._can_wait():
            raise KeyboardInterrupt
        self._asked = True
        # Not from here: the main thread may be in the midst of writing to the same stream.
        threading.Thread(target=self._say, args=(STOPPING,)).start()
