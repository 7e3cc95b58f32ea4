"""Rearrange a tensor's bytes so that an entropy coder sees what they have in common.

Values narrower than a byte are unpacked to a byte each: packed, they hide their redundancy (a 5-bit
grid takes 4.54 bits a weight unpacked, 4.90 packed). Wide numbers are split into planes of bytes of
equal significance. Grids with many zeros may become a bitmap and what is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from autoq.core.coders import Bytes, DamagedStream


class Transform(IntEnum):
    """A way to turn bytes into streams; the values are written into files."""

    PLAIN = 0
    PLANES_2 = 2  # of 16-bit numbers
    PLANES_4 = 4
    PLANES_8 = 8
    NIBBLES = 16  # two values a byte, the first in the low half
    CRUMBS = 17  # four values a byte, the first in the lowest bits
    SPARSE = 32  # which bytes are not zero, one bit each; then those
    SPARSE_NIBBLES = 33


_PLANES = {Transform.PLANES_2: 2, Transform.PLANES_4: 4, Transform.PLANES_8: 8}


def split(transform: Transform, content: Bytes) -> list[Bytes]:
    """Turn bytes into streams. Planes need a whole number of numbers."""
    if transform in _PLANES:
        return list(np.ascontiguousarray(content.reshape(-1, _PLANES[transform]).T))
    if transform is Transform.NIBBLES:
        return [_unpack_nibbles(content)]
    if transform is Transform.CRUMBS:
        return [np.stack([(content >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(-1)]
    if transform is Transform.SPARSE:
        return [np.packbits(content != 0), content[content != 0]]
    if transform is Transform.SPARSE_NIBBLES:
        return split(Transform.SPARSE, _unpack_nibbles(content))
    return [content]


def stream_sizes(transform: Transform, size: int) -> list[int | None]:
    """Return how long the streams of `size` bytes are; None: no longer than the values are many."""
    if transform in _PLANES:
        return [size // _PLANES[transform]] * _PLANES[transform]
    if transform is Transform.SPARSE:
        return [-(-size // 8), None]
    if transform is Transform.SPARSE_NIBBLES:
        return stream_sizes(Transform.SPARSE, 2 * size)
    return [{Transform.NIBBLES: 2, Transform.CRUMBS: 4}.get(transform, 1) * size]


def join(transform: Transform, streams: Sequence[Bytes], size: int) -> Bytes:
    """Inverse of `split`.

    Raises:
        DamagedStream: The streams do not belong together.
    """
    if transform in _PLANES:
        return np.ascontiguousarray(np.stack(streams, axis=1)).reshape(-1)
    if transform is Transform.NIBBLES:
        return _pack_nibbles(streams[0])
    if transform is Transform.CRUMBS:
        low, second, third, high = streams[0].reshape(-1, 4).T
        return np.asarray(low | (second << 2) | (third << 4) | (high << 6))
    if transform is Transform.SPARSE:
        return _fill(streams[0], streams[1], size)
    if transform is Transform.SPARSE_NIBBLES:
        return _pack_nibbles(_fill(streams[0], streams[1], 2 * size))
    return streams[0]


def _unpack_nibbles(content: Bytes) -> Bytes:
    values = np.empty(2 * content.size, np.uint8)
    np.bitwise_and(content, 0xF, out=values[0::2])
    np.right_shift(content, 4, out=values[1::2])
    return values


def _pack_nibbles(values: Bytes) -> Bytes:
    """Two values a byte, by one multiplication of 16-bit words: strided reads are several times slower."""
    words = values.view("<u2")
    return np.asarray(words | (words >> 4), np.uint16).astype(np.uint8)


def _fill(bitmap: Bytes, nonzeros: Bytes, size: int) -> Bytes:
    mask = np.unpackbits(bitmap, count=size).view(np.bool_)
    if np.count_nonzero(mask) != nonzeros.size:
        raise DamagedStream("a bitmap does not fit its values")
    values = np.zeros(size, np.uint8)
    values[mask] = nonzeros
    return values
