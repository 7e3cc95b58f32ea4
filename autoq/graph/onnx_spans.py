"""Find where an ONNX file holds the bytes of its initializers, without reading it as a model.

A bundle has to give back the very same bytes, and no library promises to write a message again as it
was read. So the file is not read as a message: its wire format (protobuf.dev/programming-guides/encoding)
is followed just far enough to find the `raw_data` of each initializer, and all else is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.coders import Bytes
from autoq.core.errors import ModelError
from autoq.core.transforms import Transform

# Fields of ModelProto, GraphProto and TensorProto, from onnx.proto.
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA = 1, 2, 8, 9, 13
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
# Smaller ones stay where they are: an entry in an index costs more than packing them alone gains.
SMALL_BYTES = 512

_PLAIN = (Transform.PLAIN, Transform.SPARSE)
_BY_TYPE = {
    1: (Transform.PLANES_4, Transform.PLAIN),  # float
    # Kernels for blocks take two values of 4 bits in a uint8.
    2: (Transform.PLAIN, Transform.NIBBLES, Transform.SPARSE),
    5: (Transform.PLANES_2, Transform.PLAIN),  # int16
    6: (Transform.PLANES_4, Transform.PLAIN),  # int32
    7: (Transform.PLANES_8, Transform.PLAIN),  # int64
    10: (Transform.PLANES_2, Transform.PLAIN),  # float16
    11: (Transform.PLANES_8, Transform.PLAIN),  # double
    16: (Transform.PLANES_2, Transform.PLAIN),  # bfloat16
    21: (Transform.NIBBLES, Transform.SPARSE_NIBBLES, Transform.PLAIN),  # uint4
    22: (Transform.NIBBLES, Transform.SPARSE_NIBBLES, Transform.PLAIN),  # int4
    25: (Transform.CRUMBS, Transform.PLAIN),  # uint2
    26: (Transform.CRUMBS, Transform.PLAIN),  # int2
}
_WIDTHS = {Transform.PLANES_2: 2, Transform.PLANES_4: 4, Transform.PLANES_8: 8}


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of one initializer within a file."""

    name: str
    data_type: int  # of TensorProto
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """What is worth trying on the bytes, the likeliest first."""
        found = _BY_TYPE.get(self.data_type, _PLAIN)
        return tuple(one for one in found if self.size % _WIDTHS.get(one, 1) == 0)

    def of(self, content: memoryview) -> Bytes:
        """View the span's bytes in its file."""
        return np.frombuffer(content[self.offset : self.offset + self.size], np.uint8)


def find_spans(content: memoryview) -> list[Span]:
    """Return the initializers of the main graph that are worth packing by themselves, in file order.

    Raises:
        ModelError: It is not an ONNX file, or one that keeps weights in other files.
    """
    try:
        return [
            span
            for graph in _messages(content, 0, len(content), _GRAPH)
            for tensor in _messages(content, *graph, _INITIALIZER)
            if (span := _read_tensor(content, *tensor)) is not None
        ]
    except (ValueError, IndexError) as error:
        raise ModelError(f"not an ONNX model: {error}") from error


def skeleton_of(content: memoryview, spans: Sequence[Span]) -> Bytes:
    """Return everything that is no span's, in one piece."""
    pieces, start = [], 0
    for span in spans:
        pieces.append(content[start : span.offset])
        start = span.offset + span.size
    pieces.append(content[start:])
    return np.frombuffer(b"".join(pieces), np.uint8)


def _read_tensor(content: memoryview, start: int, stop: int) -> Span | None:
    name, data_type, shape, raw = "", 0, list[int](), None
    for field, wire, begin, end in _fields(content, start, stop):
        if field == _DIMS:
            shape += _varints(content, begin, end)
        elif field == _DATA_TYPE and wire == _VARINT:
            data_type = _varint(content, begin)[0]
        elif field == _NAME:
            name = bytes(content[begin:end]).decode()
        elif field == _RAW_DATA:
            raw = (begin, end)
        elif field == _EXTERNAL_DATA:
            raise ModelError(
                "the model keeps weights in a file of their own, which a bundle does not hold",
                hint="models of 2 GB and more travel as their files",
            )
    if raw is None or raw[1] - raw[0] < SMALL_BYTES:
        return None
    return Span(name, data_type, tuple(shape), raw[0], raw[1] - raw[0])


def _messages(content: memoryview, start: int, stop: int, wanted: int) -> Iterator[tuple[int, int]]:
    for field, wire, begin, end in _fields(content, start, stop):
        if field == wanted and wire == _DELIMITED:
            yield begin, end


def _fields(content: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield field number, wire type, and where the value begins and ends."""
    at = start
    while at < stop:
        tag, at = _varint(content, at)
        field, wire = tag >> 3, tag & 7
        if wire == _DELIMITED:
            length, begin = _varint(content, at)
            end = begin + length
        elif wire == _VARINT:
            begin, end = at, _varint(content, at)[1]
        elif wire in (_FIXED32, _FIXED64):
            begin, end = at, at + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if end > stop:
            raise ValueError(f"a field at byte {begin} is longer than its message")
        yield field, wire, begin, end
        at = end


def _varints(content: memoryview, begin: int, end: int) -> list[int]:
    """Read one number, or a packed list of them."""
    found = []
    while begin < end:
        value, begin = _varint(content, begin)
        found.append(value)
    return found


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """Return a base-128 number, and where the next thing begins."""
    value = shift = 0
    while shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number at byte {at} does not end")
