"""Memory of a process: what it and those it started use, and what it keeps."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_LOOK_FOR_CHILDREN_S = 1.0  # it reads all of the process table


# Mallopt parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage in the block, and never look at what it has made again: for imports alone.

    What modules are made of lives as long as the process, and looking at it over and over takes a fifth of
    the time that importing takes. Garbage that the block makes is kept for good.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def garbage_frozen() -> Iterator[None]:
    """Look through nothing that is there now for garbage: what a search has prepared lives as long as it.

    Looking through it takes long, and comes in the middle of a trial. It concerns all of the process:
    afterwards everything is looked at again, modules too.
    """
    gc.collect()  # garbage would be kept as well
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def keep_freed_memory(limit_mb: int = 512) -> None:
    """Let this process reuse large freed blocks, instead of giving them back and faulting them in anew.

    Every trial writes a model and loads it: hundreds of megabytes of fresh pages, which on a virtual
    machine cost more than all that is done with them. Does
    nothing where the C library is not glibc. What lies free below a living block is kept whatever its
    size: `give_back_memory` lets go of that.

    Args:
        limit_mb: MiB of free memory that are kept at the end of the heap.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, limit_mb << 20)


def give_back_memory(above_mb: int = 2048) -> None:
    """Return free memory to the system, unless the process is small enough to keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None and psutil.Process().memory_info().rss > above_mb << 20:
        trim(0)


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
