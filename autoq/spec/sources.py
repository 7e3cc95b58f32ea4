"""Read the arrays a spec names, as they are: from npz files and from factories of batches."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from autoq.core.data import Array
from autoq.core.errors import DataError
from autoq.spec.python_objects import load_function, running_user_code
from autoq.spec.schema import NpzSource, PythonSource

_END = object()
_NUMBERS = "biuf"  # numpy's kinds: bool, signed, unsigned, float


@dataclass(frozen=True, eq=False)
class RawArray:
    """An array and what to call it in an error."""

    values: Array
    place: str


@dataclass(frozen=True, eq=False)
class RawBatch:
    """A batch as the source gave it; nothing is checked against the model yet."""

    inputs: Mapping[str, RawArray]
    labels: RawArray | None
    place: str


def read_source(source: NpzSource | PythonSource, where: str) -> list[RawBatch]:
    """Read a source once. An npz file is one batch.

    Args:
        source: What to read.
        where: Path of the key, such as `data.search`.

    Raises:
        DataError: Something cannot be read, is no array of numbers, or the user's code raised.
        SpecError: The user's factory cannot be imported.
    """
    if isinstance(source, NpzSource):
        return [_read_npz(source, where)]
    return list(_read_factory(source.python, where))


def _read_npz(source: NpzSource, where: str) -> RawBatch:
    with _open_npz(source.npz, where) as archive:
        inputs = {
            name: _read_member(archive, array, source.npz, f"{where}.inputs.{name}")
            for name, array in source.inputs.items()
        }
        labels = source.labels and _read_member(archive, source.labels, source.npz, f"{where}.labels")
    return RawBatch(inputs, labels or None, f"{where}: {source.npz}")


@contextmanager
def _open_npz(path: Path, where: str) -> Iterator[Mapping[str, Any]]:
    # Opened here, because np.load leaves a file open that turns out to be broken.
    with _open_file(path, where) as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{where}.npz: {path}: not an npz file, or a broken one") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{where}.npz: {path}: expected an npz file, got a single array")
        yield archive


def _open_file(path: Path, where: str) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{where}.npz: {path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{where}.npz: {path}: is a folder, expected an npz file") from error
    except OSError as error:
        raise DataError(f"{where}.npz: {path}: cannot be read: {error.strerror}") from error


def _read_member(archive: Mapping[str, Any], array: str, path: Path, where: str) -> RawArray:
    place = f"{where}: array {array!r} of {path.name}"
    if array not in archive:
        there = ", ".join(archive) or "none"
        raise DataError(f"{where}: {path.name} has no array {array!r}, only {there}")
    try:
        values = archive[array]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        # numpy has no type of its own for this.
        pickled = "Object arrays" in str(error)
        reason = "holds Python objects, expected numbers" if pickled else "cannot be read, the file is broken"
        raise DataError(f"{place} {reason}") from error
    return _numbers(values, place)


def _read_factory(reference: str, where: str) -> Iterator[RawBatch]:
    factory = load_function(reference, where=f"{where}.python")
    with running_user_code(reference, where=where, error_type=DataError):
        batches = factory()
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Mapping):
        raise DataError(
            f"{where}: {reference} returned {_kind(batches)}, expected an iterable of (inputs, labels)"
        )
    with running_user_code(reference, where=where, error_type=DataError):
        iterator = iter(batches)
    for number in itertools.count():
        with running_user_code(reference, where=where, error_type=DataError):
            item = next(iterator, _END)
        if item is _END:
            return
        yield _raw_batch(item, f"{where}: batch {number} of {reference}")


def _raw_batch(item: object, place: str) -> RawBatch:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"{place}: expected a pair (inputs, labels), got {_kind(item)}")
    inputs, labels = item
    if not isinstance(inputs, Mapping):
        raise DataError(f"{place}: expected inputs as a mapping of name to array, got {_kind(inputs)}")
    return RawBatch(
        {str(name): _copied(array, f"{place}: input {str(name)!r}") for name, array in inputs.items()},
        None if labels is None else _copied(labels, f"{place}: labels"),
        place,
    )


def _copied(value: Any, place: str) -> RawArray:
    """Take a copy: a factory may fill one buffer again and again."""
    try:
        values = np.array(np.asarray(value))
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors that need gradients
        raise DataError(f"{place}: expected an array, got {_kind(value)}") from error
    return _numbers(values, place)


def _numbers(values: Any, place: str) -> RawArray:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in _NUMBERS:
        kind = values.dtype if isinstance(values, np.ndarray) else "bytes"
        raise DataError(f"{place} holds {kind}, expected numbers")
    if values.ndim == 0:
        raise DataError(f"{place} is a single number, expected an array with a first axis of examples")
    if values.size == 0:
        raise DataError(f"{place} is empty, its shape is {values.shape}")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        first = np.unravel_index(int(np.argmin(finite)), values.shape)
        what = "NaN" if np.isnan(values[first]) else "Inf"
        raise DataError(f"{place} has {what}, first at index {tuple(int(i) for i in first)}")
    return RawArray(values, place)


def _kind(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{size}"
