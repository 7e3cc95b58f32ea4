"""Content hashes: the identity of models, data, candidates and everything cached."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

DIGEST_LENGTH = 32  # hex characters: 128 bits


def digest_bytes(*parts: bytes | memoryview) -> str:
    """Hash byte strings, each preceded by its length so that no two splits collide."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()[:DIGEST_LENGTH]


def digest_file(path: Path) -> str:
    """Hash a file's content in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def canonical_json(value: object) -> str:
    """Write JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_json(value: object) -> str:
    """Hash a JSON-able value."""
    return digest_bytes(canonical_json(value).encode())


def digest_arrays(arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Hash named arrays by name, dtype, shape and content, in any order of the mapping."""
    parts: list[bytes | memoryview] = []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        parts.append(f"{name}:{array.dtype.str}:{array.shape}".encode())
        parts.append(array.reshape(-1).view(np.uint8).data)
    return digest_bytes(*parts)


def digest_all(digests: Iterable[str]) -> str:
    """Hash a sequence of digests; order matters."""
    return digest_json(list(digests))


def checksum(arrays: Mapping[str, npt.NDArray[np.generic]]) -> int:
    """CRC of named arrays, for files whose format does not notice a changed byte."""
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data, found)
    return found
