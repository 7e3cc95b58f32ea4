"""Tensors of an ONNX file as arrays that other tools understand, and back to the very bytes.

Integers of 4 and 2 bits become int8 or uint8, one value each; types that NumPy lacks stay bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from autoq.core.coders import Bytes
from autoq.core.packing import as_bytes
from autoq.core.transforms import Transform, join, split
from autoq.export.bundle_content import DamagedBundle, Layout
from autoq.graph.onnx_spans import Span

SKELETON = "autoq_skeleton"  # what an ONNX file has around its weights, under zstd

Array = npt.NDArray[Any]

_DTYPES = {
    1: "<f4", 3: "|i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8", 12: "<u4", 13: "<u8",
}  # fmt: skip
# Data type: how it is packed, values a byte, bits, NumPy's type for one value.
_NARROW = {
    21: (Transform.NIBBLES, 2, 4, "|u1"),
    22: (Transform.NIBBLES, 2, 4, "|i1"),
    25: (Transform.CRUMBS, 4, 2, "|u1"),
    26: (Transform.CRUMBS, 4, 2, "|i1"),
}
_PIECE_BYTES = 1 << 19
_MOST_WINDOW = 1 << 27  # what zstd's decoder may take memory for


def array_type(span: Span) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return type and shape of a tensor's array: its own shape where its values fill its bytes."""
    per_byte = 1
    dtype = np.dtype(_DTYPES.get(span.data_type, "|u1"))
    if span.data_type in _NARROW:
        _, per_byte, _, name = _NARROW[span.data_type]
        dtype = np.dtype(name)
    if span.size % dtype.itemsize:
        dtype = np.dtype(np.uint8)
    count = span.size * per_byte // dtype.itemsize
    return dtype, span.shape if math.prod(span.shape) == count else (count,)


def to_array(span: Span, content: Bytes) -> Array:
    """Return a tensor's bytes as its array."""
    dtype, shape = array_type(span)
    if span.data_type in _NARROW:
        transform, _, bits, _ = _NARROW[span.data_type]
        content = split(transform, content)[0]
        if dtype == np.int8:  # two's complement in the low bits: bring its sign to the top
            content = ((content << (8 - bits)).view(np.int8) >> (8 - bits)).view(np.uint8)
    return content.view(dtype).reshape(shape)


def to_content(span: Span, array: Array) -> Iterator[Bytes]:
    """Yield the bytes of an array of `array_type`, piece by piece: the inverse of `to_array`."""
    values = as_bytes(array)
    if span.data_type not in _NARROW:
        yield values
        return
    transform, per_byte, bits, _ = _NARROW[span.data_type]
    for start in range(0, values.size, _PIECE_BYTES):
        piece = values[start : start + _PIECE_BYTES] & np.uint8(2**bits - 1)
        yield join(transform, [piece], piece.size // per_byte)


def tensor_names(layout: Layout) -> list[str]:
    """Name each tensor in its file: as in the model, where no separator or double forbids it."""
    names: list[str] = []
    taken = {SKELETON, "autoq_bundle", "", "."}
    for number, span in enumerate(layout.spans):
        name = span.name.replace("/", ".").replace("\0", "")
        names.append(f"{name}#{number}" if name in taken else name)
        taken.add(names[-1])
    return names


def pack_skeleton(skeleton: Bytes) -> bytes:
    """Compress what is around the weights; `SkeletonReader` is the inverse."""
    return zstandard.ZstdCompressor(level=19).compress(skeleton.tobytes())


class SkeletonReader:
    """Gives back what `pack_skeleton` compressed, as many bytes at a time as are asked for."""

    def __init__(self, stored: bytes) -> None:
        limit = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW)
        self._stream = limit.stream_reader(stored)

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes.

        Raises:
            DamagedBundle: There are not so many.
        """
        try:
            content = self._stream.read(size)
        except zstandard.ZstdError as error:
            raise DamagedBundle(f"what is around the weights cannot be read: {error}") from error
        if len(content) != size:
            raise DamagedBundle("what is around the weights is cut short")
        return content
