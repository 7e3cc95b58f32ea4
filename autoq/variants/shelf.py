"""A folder of content-addressed files that never grows far beyond a limit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autoq.core.files import is_abandoned, is_unfinished, written_whole

_KEEP = 0.9  # of the limit, once it has been passed
_LOOK_AGAIN = 0.1  # of the limit: written before the folder is looked at again, for what others wrote
_TOUCH_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True, order=True)
class _File:
    used: float  # modification time, which every use renews
    path: Path
    n_bytes: int


class Shelf:
    """Files by key; the least recently used make room for new ones.

    A file appears whole or not at all, so several processes may share the folder: each may lose a file
    to another at any moment, and then makes it again. Between them they pass the limit by at most a
    tenth each. Safe to use from several threads.
    """

    def __init__(self, folder: Path, suffix: str, *, limit_bytes: int) -> None:
        self._folder = folder
        self._suffix = suffix
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._room_bytes = 0  # that may be written before the folder is looked at
        self._touched: dict[str, float] = {}
        self._in_use: list[frozenset[Path]] = []

    def path(self, key: str) -> Path:
        """Return where the file of a key is, or would be."""
        return self._folder / key[:2] / f"{key}{self._suffix}"

    def has(self, key: str) -> bool:
        """Say whether a file is there, and count it as used."""
        self._touch(key)
        return self.path(key).exists()

    @contextmanager
    def using(self, keys: Iterable[str]) -> Iterator[None]:
        """Count files as used, and keep those of this process from making room until the block ends."""
        wanted = list(keys)
        paths = frozenset(self.path(key) for key in wanted)
        with self._lock:
            self._in_use.append(paths)
        try:
            for key in wanted:
                self._touch(key)
            yield
        finally:
            with self._lock:
                self._in_use.remove(paths)

    def save(self, key: str, write: Callable[[Path], object]) -> None:
        """Let `write` make the file of a key, then make room if the limit has been passed.

        Raises:
            OSError: The disk is full or refuses; nothing is left behind.
        """
        path = self.path(key)
        with written_whole(path) as temporary:
            write(temporary)
            n_bytes = temporary.stat().st_size
        self._make_room(path, n_bytes)

    def _touch(self, key: str) -> None:
        now = time.monotonic()
        if now - self._touched.get(key, float("-inf")) < _TOUCH_EVERY_S:
            return
        with suppress(OSError):  # not there, or not ours to touch: then it only looks older
            os.utime(self.path(key))
            self._touched[key] = now

    def _make_room(self, written: Path, n_bytes: int) -> None:
        with self._lock:
            self._room_bytes -= n_bytes
            if self._room_bytes >= 0:
                return
            kept = frozenset([written]).union(*self._in_use)
            total = self._evict(sorted(self._scan()), kept)
            pause = int(_LOOK_AGAIN * self._limit_bytes)
            # Over the limit still: everything is in use, and looking again at once would not help.
            left = self._limit_bytes - total
            self._room_bytes = min(left, pause) if left >= 0 else pause

    def _evict(self, files: list[_File], kept: frozenset[Path]) -> int:
        """Delete the oldest where there is too much; return the bytes that are left."""
        total = sum(file.n_bytes for file in files)
        if total <= self._limit_bytes:
            return total
        for file in files:
            if total <= _KEEP * self._limit_bytes:
                break
            if file.path not in kept:
                with suppress(OSError):
                    file.path.unlink(missing_ok=True)
                    total -= file.n_bytes
        return total

    def _scan(self) -> Iterator[_File]:
        """List the files, and delete what processes that died have left of theirs."""
        for path in self._folder.glob("??/*"):
            with suppress(OSError):  # another process may be making room as well
                stat = path.stat()
                if not is_unfinished(path):
                    yield _File(stat.st_mtime, path, stat.st_size)
                elif is_abandoned(stat):
                    path.unlink(missing_ok=True)
