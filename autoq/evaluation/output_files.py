"""Outputs of float models in a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from autoq.core.data import Array
from autoq.core.digests import digest_arrays
from autoq.variants.shelf import Shelf

_log = logging.getLogger("autoq")

_DIGEST = "digest"  # entry of a file; those of outputs have a slash in their name
_DISK_BYTES = 4 << 30
_MAX_BYTES = 512 << 20


class OutputFiles:
    """An `OutputCache` in a folder: a file a split, least recently used first to go."""

    def __init__(self, folder: Path, *, max_bytes: int = _MAX_BYTES, limit_bytes: int = _DISK_BYTES) -> None:
        self._shelf = Shelf(folder, ".npz", limit_bytes=limit_bytes)
        self._max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """Size of outputs above which they are not kept."""
        return self._max_bytes

    def load(self, key: str) -> list[dict[str, Array]] | None:
        """Read outputs; a missing or broken file is a miss."""
        if not self._shelf.has(key):
            return None
        try:
            with self._shelf.path(key).open("rb") as file, np.load(file, allow_pickle=False) as entries:
                arrays = {name: entries[name] for name in entries.files}
            # A damaged index can lose entries without a word.
            if str(arrays.pop(_DIGEST)) != digest_arrays(arrays):
                raise ValueError("not what was written")
        except (OSError, EOFError, ValueError, KeyError, RuntimeError, BadZipFile, ZlibError) as error:
            _log.info("outputs kept under %s cannot be read, the float model is run again: %s", key, error)
            return None
        chunks: dict[str, dict[str, Array]] = {}
        for entry, array in arrays.items():
            index, _, name = entry.partition("/")
            chunks.setdefault(index, {})[name] = array
        return list(chunks.values())

    def save(self, key: str, outputs: Sequence[Mapping[str, Array]]) -> None:
        """Write outputs; what is no plain number is not kept, and a full disk is only logged."""
        arrays = {
            f"{index:06d}/{name}": array
            for index, chunk in enumerate(outputs)
            for name, array in chunk.items()
        }
        if not all(array.dtype.isbuiltin == 1 and array.dtype.kind in "biuf" for array in arrays.values()):
            return
        try:
            self._shelf.save(key, lambda path: _write_arrays(path, arrays))
        except OSError as error:
            _log.warning("outputs of the float model are not kept: %s", error)


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    entries: dict[str, Any] = {**arrays, _DIGEST: np.array(digest_arrays(arrays))}
    with path.open("wb") as file:
        np.savez(file, **entries)
