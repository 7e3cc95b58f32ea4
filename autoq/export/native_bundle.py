"""autoq's own bundle: one file, the smallest of the formats, read piece by piece.

    header    magic, version, length of the file, stored and full length of the index, its SHA-256
    records   those of the skeleton (the ONNX file without its weights), then tensor by tensor
    index     JSON under zstd: the layout, and for skeleton and tensors the lengths of their records
              and a digest of those

Nothing is believed before it is checked: lengths against the file's, the index against its digest,
records against theirs, and the restored file against the SHA-256 of the one that was packed. A reader
holds the index and one record at a time.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import zstandard

from autoq.core.coders import Bytes, DamagedStream
from autoq.core.errors import ModelError
from autoq.core.packing import CHUNK_BYTES, chunks, n_chunks, pack, unpack
from autoq.core.transforms import Transform
from autoq.export.bundle_content import DamagedBundle, Layout, restore
from autoq.graph.onnx_spans import skeleton_of

MAGIC = b"\x93AUTOQ\r\n"  # a text mode anywhere on the way would change it
VERSION = 1
_HEADER = struct.Struct("<8sIQQQ32s")
_MOST_INDEX_BYTES = 1 << 23
_MOST_INDEX_RATIO = 200
_DIGEST_BYTES = 16  # 128 bits, as everywhere in autoq


class Header(NamedTuple):
    """The first bytes of a bundle, field by field."""

    magic: bytes
    version: int
    file_size: int
    index_stored: int
    index_size: int
    index_sha256: bytes


@dataclass(frozen=True)
class Stored:
    """The records of one tensor or of the skeleton: how long each is, and a digest of all."""

    lengths: tuple[int, ...]
    digest: str

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(self.lengths)


def write_native(content: memoryview, path: Path) -> None:
    """Pack an ONNX file.

    Raises:
        ModelError: It is none, or one that keeps weights in other files.
        OSError: The file cannot be written.
    """
    layout = Layout.of(content)
    with path.open("wb") as file:
        file.write(bytes(_HEADER.size))
        skeleton = _write_records(file, skeleton_of(content, layout.spans), (Transform.PLAIN,))
        tensors = [_write_records(file, span.of(content), span.transforms) for span in layout.spans]
        index = {"skeleton": vars(skeleton), "tensors": [vars(one) for one in tensors]} | layout.to_json()
        plain = json.dumps(index, separators=(",", ":")).encode()
        if len(plain) > _MOST_INDEX_BYTES:
            raise ModelError(f"the model has {len(tensors):,} tensors, too many for a bundle's index")
        stored = zstandard.ZstdCompressor(level=19).compress(plain)
        file.write(stored)
        size = file.tell()
        file.seek(0)
        digest = hashlib.sha256(stored).digest()
        file.write(_HEADER.pack(*Header(MAGIC, VERSION, size, len(stored), len(plain), digest)))


def restore_native(path: Path, out: BinaryIO) -> None:
    """Write the ONNX file that a bundle was made from.

    Raises:
        DamagedBundle: It is not what autoq wrote.
        OSError: A file cannot be read or written.
    """
    with path.open("rb") as file, path.open("rb") as skeleton_file:
        header = _read_header(file, path.stat().st_size)
        layout, skeleton, tensors = _read_index(file, header)
        skeleton_file.seek(_HEADER.size)
        pieces = _Pieces(_records(skeleton_file, skeleton, layout.skeleton_size, "the skeleton"))
        file.seek(_HEADER.size + skeleton.size)

        def read_tensor(number: int) -> Iterator[Bytes]:
            span = layout.spans[number]
            return _records(file, tensors[number], span.size, f"tensor {span.name!r}")

        restore(layout, pieces.read, read_tensor, out)
        pieces.finish()


def _write_records(file: BinaryIO, content: Bytes, transforms: tuple[Transform, ...]) -> Stored:
    state, lengths = hashlib.sha256(), []
    for chunk in chunks(content):
        record = pack(chunk, transforms)
        state.update(record)
        file.write(record)
        lengths.append(len(record))
    return Stored(tuple(lengths), state.digest()[:_DIGEST_BYTES].hex())


def _read_header(file: BinaryIO, size: int) -> Header:
    content = file.read(_HEADER.size)
    if len(content) < _HEADER.size:
        raise DamagedBundle(f"{size} bytes are too few")
    header = Header(*_HEADER.unpack(content))
    if header.magic != MAGIC:
        raise DamagedBundle("it does not begin as one")
    if header.version != VERSION:
        raise DamagedBundle(f"it is of version {header.version}, expected {VERSION}")
    if header.file_size != size:
        raise DamagedBundle(f"it has {size:,} bytes, expected {header.file_size:,}")
    if header.index_stored > size - _HEADER.size:
        raise DamagedBundle(f"its index of {header.index_stored:,} bytes does not fit into it")
    if header.index_size > min(_MOST_INDEX_BYTES, _MOST_INDEX_RATIO * header.index_stored):
        raise DamagedBundle(f"its index declares {header.index_size:,} bytes, which is too many")
    return header


def _read_index(file: BinaryIO, header: Header) -> tuple[Layout, Stored, list[Stored]]:
    file.seek(header.file_size - header.index_stored)
    stored = file.read(header.index_stored)
    if hashlib.sha256(stored).digest() != header.index_sha256:
        raise DamagedBundle("its index does not match its digest")
    try:
        if zstandard.frame_content_size(stored) != header.index_size:
            raise DamagedBundle("its index is not as long as declared")
        index = json.loads(zstandard.ZstdDecompressor().decompress(stored))
        layout = Layout.from_json(index, bundle_size=header.file_size)
        skeleton = _stored(index["skeleton"], layout.skeleton_size)
        sizes = [span.size for span in layout.spans]
        tensors = [_stored(one, size) for one, size in zip(index["tensors"], sizes, strict=True)]
    except (zstandard.ZstdError, RecursionError, KeyError, TypeError) as error:
        raise DamagedBundle(f"its index cannot be read: {type(error).__name__}") from error
    except ValueError as error:
        raise DamagedBundle(str(error)) from error
    held = skeleton.size + sum(one.size for one in tensors)
    if held != header.file_size - header.index_stored - _HEADER.size:
        raise DamagedBundle("its records do not fill it")
    return layout, skeleton, tensors


def _stored(content: Mapping[str, Any], size: int) -> Stored:
    lengths = tuple(content["lengths"])
    if len(lengths) != n_chunks(size) or not all(type(one) is int and one > 0 for one in lengths):
        raise DamagedBundle(f"its index holds {len(lengths)} records for {size:,} bytes")
    return Stored(lengths, str(content["digest"]))


def _records(file: BinaryIO, stored: Stored, size: int, name: str) -> Iterator[Bytes]:
    """Yield the restored bytes record by record, and check the digest at the end."""
    state = hashlib.sha256()
    for number, length in enumerate(stored.lengths):
        record = file.read(length)
        state.update(record)
        try:
            yield unpack(record, min(CHUNK_BYTES, size - number * CHUNK_BYTES))
        except DamagedStream as error:
            raise DamagedBundle(f"{name} is damaged: {error}") from error
    if state.digest()[:_DIGEST_BYTES].hex() != stored.digest:
        raise DamagedBundle(f"{name} does not match its digest")


class _Pieces:
    """Reads any number of bytes at a time from pieces of any length."""

    def __init__(self, pieces: Iterator[Bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, size: int) -> bytes:
        found = []
        while size:
            if not self._left:
                self._left = next(self._pieces, np.zeros(0, np.uint8)).tobytes()
                if not self._left:
                    raise DamagedBundle("the skeleton is too short")
            found.append(self._left[:size])
            self._left = self._left[size:]
            size -= len(found[-1])
        return b"".join(found)

    def finish(self) -> None:
        """Go to the end, where the digest is checked."""
        if self._left or next(self._pieces, None) is not None:
            raise DamagedBundle("the skeleton is too long")
