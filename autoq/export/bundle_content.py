"""What every format of bundle holds: the weights of an ONNX file by name, and the file around them.

Restoring is putting one into the other again, so the bytes are the same whatever they mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from autoq.core.coders import Bytes
from autoq.graph.onnx_spans import Span, find_spans

# No model is smaller by more than this: a bundle that claims it wants to fill the disk.
_MOST_RATIO = 1000
_SMALL_MODEL = 1 << 20  # a model of up to this many bytes may be smaller by any factor
_MOST_TENSORS = 1 << 20


class DamagedBundle(ValueError):
    """A bundle is not what autoq wrote."""


@dataclass(frozen=True)
class Layout:
    """Where the weights go in the file that is restored, and what it must be in the end."""

    model_size: int
    model_sha256: str
    spans: tuple[Span, ...]

    @staticmethod
    def of(content: memoryview) -> Layout:
        """Describe an ONNX file.

        Raises:
            ModelError: It is none, or one that keeps weights in other files.
        """
        return Layout(len(content), hashlib.sha256(content).hexdigest(), tuple(find_spans(content)))

    @property
    def skeleton_size(self) -> int:
        """Bytes of the file that are no tensor's."""
        return self.model_size - sum(span.size for span in self.spans)

    def to_json(self) -> dict[str, Any]:
        """Return what is stored; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any], *, bundle_size: int) -> Layout:
        """Read and check a layout.

        Args:
            content: What `to_json` returned; from a file, so it may be anything.
            bundle_size: Bytes of the file it comes from, which bound what it may declare.

        Raises:
            DamagedBundle: It is none, contradicts itself, or declares more than its file can hold.
        """
        try:
            size, sha256 = _count(content["model_size"]), str(content["model_sha256"])
            spans = tuple(_span(one) for one in content["spans"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedBundle(f"its index is not one that autoq wrote: {error!r}") from error
        if size > max(_MOST_RATIO * bundle_size, _SMALL_MODEL):
            raise DamagedBundle(f"{bundle_size:,} bytes cannot be a model of {size:,}")
        end = 0
        for span in spans:
            if span.offset < end:
                raise DamagedBundle(f"tensor {span.name!r} overlaps another")
            end = span.offset + span.size
        if end > size or len(spans) > _MOST_TENSORS:
            raise DamagedBundle("its tensors do not fit its model")
        return Layout(size, sha256, spans)


def restore(
    layout: Layout,
    read_skeleton: Callable[[int], bytes],
    read_tensor: Callable[[int], Iterator[Bytes]],
    out: BinaryIO,
) -> None:
    """Write the model, piece by piece.

    Args:
        layout: What goes where.
        read_skeleton: Returns the next so many bytes of what is no tensor's.
        read_tensor: Yields the bytes of a tensor, by its number; they come in order.
        out: What to write to.

    Raises:
        DamagedBundle: What came out is not the model that was packed.
    """
    state, at = hashlib.sha256(), 0

    def write(piece: bytes | memoryview) -> None:
        state.update(piece)
        out.write(piece)

    for number, span in enumerate(layout.spans):
        write(read_skeleton(span.offset - at))
        n_bytes = 0
        for piece in read_tensor(number):
            n_bytes += piece.size
            if n_bytes > span.size:
                break
            write(piece.data)
        if n_bytes != span.size:
            raise DamagedBundle(f"tensor {span.name!r} is not of {span.size:,} bytes")
        at = span.offset + span.size
    write(read_skeleton(layout.model_size - at))
    if state.hexdigest() != layout.model_sha256:
        raise DamagedBundle("the restored model is not the one that was packed")


def _span(content: Mapping[str, Any]) -> Span:
    shape = tuple(_count(one) for one in content["shape"])
    numbers = (_count(content[key]) for key in ("data_type", "offset", "size"))
    data_type, offset, size = numbers
    return Span(str(content["name"]), data_type, shape, offset, size)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(f"{str(value)[:40]} is not a size")
    return value
