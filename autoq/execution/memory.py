"""Resident memory of a process and of those it started."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

_LOOK_FOR_CHILDREN_S = 1.0  # it reads all of the process table


class MemoryWatch:
    """Adds up resident memory, cheaply enough to be asked ten times a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._processes: list[psutil.Process] = []
        self._looked_at = float("-inf")

    def resident_mb(self) -> float:
        """Return MiB; shared pages count for every process that maps them. Zero if it is gone."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_FOR_CHILDREN_S:
            self._processes, self._looked_at = _tree(self._pid), now
        total = 0
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
