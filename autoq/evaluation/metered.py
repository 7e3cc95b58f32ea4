"""A session that counts the time spent inside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from autoq.core.data import Array, Feed
from autoq.evaluation.ports import Session


class MeteredSession:
    """Passes everything on to a session. Of runs side by side only the wall time counts."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._n_inside = 0
        self._since = 0.0
        self.seconds = 0.0

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch."""
        self._enter()
        try:
            return self._session.run(feed)
        finally:
            self._leave()

    def time_block(self, n_runs: int, feeds: Sequence[Feed]) -> float:
        """Run a block and return its seconds."""
        self._enter()
        try:
            return self._session.time_block(n_runs, feeds)
        finally:
            self._leave()

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _enter(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._since = time.perf_counter()
            self._n_inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self.seconds += time.perf_counter() - self._since
