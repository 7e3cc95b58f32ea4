"""Pack a tensor's bytes chunk by chunk: the one encoder of the storage bundle and of its estimate.

A record is `transform, number of streams`, for each stream `coder, length, stored length`, and then
what is stored. Records say how they are read, so a file needs to keep no more than their lengths.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from autoq.core.coders import SMALL_BYTES, Bytes, DamagedStream, decode, encode, estimate, sample
from autoq.core.transforms import Transform, join, split, stream_sizes

# Restored bytes in a record: what reading a bundle takes memory for, some twenty times.
CHUNK_BYTES = 1 << 18
# A tensor is told by a sample of each MiB, one of more than four MiB by one of each quarter.
_SAMPLED_BYTES, _MOST_SAMPLES = 1 << 20, 4
_HEAD = struct.Struct("<BB")
_STREAM = struct.Struct("<BII")
_SPARSE = frozenset({Transform.SPARSE, Transform.SPARSE_NIBBLES})
_PLANES = frozenset({Transform.PLANES_2, Transform.PLANES_4, Transform.PLANES_8})
_MANY_ZEROS = 0.3  # of a grid: below this share a bitmap costs more than it saves


def chunks(content: Bytes) -> Iterator[Bytes]:
    """Cut bytes into what is packed at once."""
    for start in range(0, content.size, CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]


def n_chunks(size: int) -> int:
    """Return how many records `size` bytes take."""
    return -(-size // CHUNK_BYTES)


def pack(chunk: Bytes, transforms: Sequence[Transform]) -> bytes:
    """Pack a chunk by the transform that promises the least, each stream by its smallest coder.

    Args:
        chunk: At most `CHUNK_BYTES`.
        transforms: Those that make sense for what the bytes are.
    """
    transform, streams = min(_tried(chunk, transforms), key=lambda one: _estimated(one[1]))
    stored = [encode(stream) for stream in streams]
    heads = [_STREAM.pack(coder, s.size, len(b)) for s, (coder, b) in zip(streams, stored, strict=True)]
    return b"".join([_HEAD.pack(transform, len(streams)), *heads, *(content for _, content in stored)])


def packed_bytes(content: Bytes, transforms: Sequence[Transform]) -> int:
    """Estimate what `pack` makes of all chunks together, from samples and without the slow coders.

    Stretches of a long tensor are looked at, each as if all its chunks were alike; where they are not,
    the estimate is too high.
    """
    total = 0.0
    for stretch in _stretches(content):
        size = min(stretch.size, CHUNK_BYTES)
        total += stretch.size / size * _packed_chunk_bytes(sample(stretch), size, transforms)
    return round(total)


def fingerprint(content: Bytes) -> int:
    """Checksum of all that `packed_bytes` looks at."""
    found = content.size
    for stretch in _stretches(content):
        found = zlib.crc32(sample(stretch).data, found)
    return found


def _stretches(content: Bytes) -> Iterator[Bytes]:
    length = max(_SAMPLED_BYTES, -(-n_chunks(content.size) // _MOST_SAMPLES) * CHUNK_BYTES)
    for start in range(0, content.size, length):
        yield content[start : start + length]


def _packed_chunk_bytes(looked_at: Bytes, size: int, transforms: Sequence[Transform]) -> int:
    # Scales and biases are hundreds of short planes that make up a hundredth of a bundle: a guess will do.
    earnest_bytes = 0 if _PLANES.intersection(transforms) else SMALL_BYTES
    scale = size / looked_at.size
    return min(_estimated(streams, scale, earnest_bytes) for _, streams in _tried(looked_at, transforms))


def unpack(record: bytes, size: int) -> Bytes:
    """Restore a chunk of `size` bytes; never allocates for more than `CHUNK_BYTES` of it.

    Raises:
        DamagedStream: The record is not what `pack` wrote for so many bytes.
    """
    try:
        number, count = _HEAD.unpack_from(record)
        transform = Transform(number)
        heads = [_STREAM.unpack_from(record, _HEAD.size + i * _STREAM.size) for i in range(count)]
    except (struct.error, ValueError) as error:
        raise DamagedStream(f"a record of {len(record)} bytes has no head: {error}") from error
    start = _HEAD.size + count * _STREAM.size
    _check_sizes(transform, [length for _, length, _ in heads], size)
    if start + sum(stored for _, _, stored in heads) != len(record):
        raise DamagedStream("a record is not as long as its streams")
    streams = []
    for coder, length, stored in heads:
        streams.append(decode(coder, record[start : start + stored], length))
        start += stored
    restored = join(transform, streams, size)
    if restored.size != size:
        raise DamagedStream(f"a record of {restored.size} bytes, expected {size}")
    return restored


def _check_sizes(transform: Transform, declared: list[int], size: int) -> None:
    expected = stream_sizes(transform, size)
    most = 8 * (expected[0] or 0)  # values in a sparse grid: one bit each
    fits = size <= CHUNK_BYTES and len(declared) == len(expected)
    if not fits or any(
        length > most if right is None else length != right
        for length, right in zip(declared, expected, strict=True)
    ):
        raise DamagedStream(f"streams of {declared} bytes cannot make {size}")


def _tried(chunk: Bytes, transforms: Sequence[Transform]) -> list[tuple[Transform, list[Bytes]]]:
    """Every transform that may pay, with its streams; the first always."""
    return [
        (transform, split(transform, chunk))
        for position, transform in enumerate(transforms)
        if position == 0 or transform not in _SPARSE or _zero_share(chunk, transform) >= _MANY_ZEROS
    ]


def _zero_share(chunk: Bytes, sparse: Transform) -> float:
    [values] = split(Transform.NIBBLES if sparse is Transform.SPARSE_NIBBLES else Transform.PLAIN, chunk)
    return 1.0 - np.count_nonzero(values) / max(values.size, 1)


def _estimated(streams: list[Bytes], scale: float = 1.0, earnest_bytes: int = SMALL_BYTES) -> int:
    return _HEAD.size + sum(_STREAM.size + estimate(stream, scale, earnest_bytes) for stream in streams)


def as_bytes(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Bytes:
    """View an array's content, in C order, as bytes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
