"""A bundle as HDF5: every tensor as a dataset that its readers understand, in compressed chunks.

HDF5 reads nothing here before a digest in front of it (in a user block, which readers step over) has
said that the file is as it was written: its library was not made for files that are not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from autoq.core.coders import Bytes
from autoq.core.errors import UserError
from autoq.export.bundle_content import DamagedBundle, Layout, restore
from autoq.export.plain_tensors import (
    SKELETON,
    Array,
    SkeletonReader,
    array_type,
    pack_skeleton,
    tensor_names,
    to_array,
    to_content,
)
from autoq.graph.onnx_spans import Span, skeleton_of

MAGIC = b"AUTOQH5\n"
_USER_BLOCK = 512  # the smallest that HDF5 allows; holds the magic and the SHA-256 of what follows it
_LAYOUT = "autoq_bundle"
_CHUNK_BYTES = 1 << 19
_SMALL_BYTES = 1 << 14


def write_hdf5(content: memoryview, path: Path) -> None:
    """Write an ONNX file's tensors and what is around them.

    Raises:
        UserError: h5py is not installed.
        ModelError: It is not an ONNX file, or one that keeps weights in other files.
        OSError: The file cannot be written.
    """
    h5py = _h5py()
    layout = Layout.of(content)
    with h5py.File(path, "w", userblock_size=_USER_BLOCK) as file:
        for name, span in zip(tensor_names(layout), layout.spans, strict=True):
            array = to_array(span, span.of(content))
            chunks = _chunks(array.dtype, array.shape)
            packing = {} if chunks is None else {"compression": "gzip", "shuffle": True}
            file.create_dataset(name, data=array, chunks=chunks, **packing)
        skeleton = np.frombuffer(pack_skeleton(skeleton_of(content, layout.spans)), np.uint8)
        file.create_dataset(SKELETON, data=skeleton)
        layout_text = json.dumps(layout.to_json()).encode()
        file.create_dataset(_LAYOUT, data=np.frombuffer(layout_text, np.uint8))
    with path.open("r+b") as raw:
        raw.write(MAGIC + _digest(path))


def restore_hdf5(path: Path, out: BinaryIO) -> None:
    """Write the ONNX file that a bundle was made from.

    Raises:
        UserError: h5py is not installed.
        DamagedBundle: It is not what autoq wrote.
        OSError: A file cannot be read or written.
    """
    h5py = _h5py()
    with path.open("rb") as raw:
        if raw.read(len(MAGIC) + 32) != MAGIC + _digest(path):
            raise DamagedBundle("it does not match its digest")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DamagedBundle(str(error)) from error
    with file:
        size = path.stat().st_size
        try:
            layout = Layout.from_json(json.loads(_bytes_of(file, _LAYOUT, size)), bundle_size=size)
        except (ValueError, RecursionError) as error:
            raise DamagedBundle("it has no layout that autoq wrote") from error
        names = tensor_names(layout)

        def read(number: int) -> Iterator[Bytes]:
            return _read_tensor(file, names[number], layout.spans[number])

        skeleton = SkeletonReader(_bytes_of(file, SKELETON, size))
        restore(layout, skeleton.read, read, out)


def _bytes_of(file: Any, name: str, most: int) -> bytes:
    dataset = _dataset(file, name)
    if dataset.dtype != np.uint8 or dataset.ndim != 1 or dataset.size > most or dataset.chunks is not None:
        raise DamagedBundle(f"{name} is not what autoq wrote")
    return _read(dataset, 0, dataset.size).tobytes()


def _read_tensor(file: Any, name: str, span: Span) -> Iterator[Bytes]:
    dataset = _dataset(file, name)
    dtype, shape = array_type(span)
    if not shape:
        raise DamagedBundle(f"tensor {span.name!r} has no axes")
    chunks = _chunks(dtype, shape)
    if (dataset.dtype, dataset.shape, dataset.chunks) != (dtype, shape, chunks):
        raise DamagedBundle(f"tensor {span.name!r} is {dataset.dtype} of shape {dataset.shape}")
    rows = _rows(dtype, shape)
    for start in range(0, shape[0], rows):
        yield from to_content(span, _read(dataset, start, start + rows))


def _dataset(file: Any, name: str) -> Any:
    dataset = file.get(name)
    if not isinstance(dataset, _h5py().Dataset):
        raise DamagedBundle(f"it lacks {name}")
    return dataset


def _read(dataset: Any, start: int, stop: int) -> Array:
    try:
        return np.asarray(dataset[start:stop])
    except (OSError, ValueError, RuntimeError, TypeError) as error:  # all that h5py makes of HDF5's errors
        raise DamagedBundle(f"{dataset.name} cannot be read: {error}") from error


def _chunks(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of a dataset's chunks; None for a small one, which an index of chunks would make larger."""
    if dtype.itemsize * math.prod(shape) < _SMALL_BYTES:
        return None
    return min(_rows(dtype, shape), shape[0]), *shape[1:]


def _rows(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Rows of a chunk; a multiple of 4, so that chunks of unpacked values end with whole bytes."""
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    return max(4, _CHUNK_BYTES // max(row_bytes, 1) // 4 * 4)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(_USER_BLOCK)
        return hashlib.file_digest(file, "sha256").digest()


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError("bundles as HDF5 need h5py", hint='pip install "autoq[hdf5]"') from error
    return h5py
