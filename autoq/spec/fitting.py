"""Fit arrays to the inputs of a model: names, shapes, dtypes, and one length for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoq.core.data import Affine, Array, Batch
from autoq.core.errors import DataError
from autoq.core.layers import TensorSpec
from autoq.spec.problems import did_you_mean
from autoq.spec.sources import RawArray, RawBatch


def fit_batch(raw: RawBatch, inputs: Sequence[TensorSpec], transforms: Mapping[str, Affine]) -> Batch:
    """Check one batch against the model's inputs and give its arrays the dtypes they are fed with.

    Inputs with a transform stay as they are, to be transformed as they are fed, unless the model
    takes another float type than the float32 a transform gives.

    Raises:
        DataError: Inputs are missing, unknown, of another shape or dtype, or differ in length.
    """
    _check_names(raw, inputs)
    lengths: dict[str, tuple[int, RawArray]] = {}  # of the first axis, and of axes that have a name
    for spec in inputs:
        _check_shape(raw.inputs[spec.name], spec, lengths)
    if raw.labels is not None:
        _check_length(raw.labels, "", "examples", 0, lengths)
    arrays = {spec.name: _typed(raw.inputs[spec.name], spec, transforms.get(spec.name)) for spec in inputs}
    return Batch(arrays, None if raw.labels is None else raw.labels.values)


def model_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Return the numpy dtype of an input.

    Raises:
        DataError: It is not an input of numbers.
    """
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError as error:
        raise DataError(f"model input {spec.name!r} takes {spec.dtype}, which cannot be fed") from error
    if dtype.kind not in "biuf":
        raise DataError(f"model input {spec.name!r} takes {spec.dtype}, expected numbers")
    return dtype


def _check_names(raw: RawBatch, inputs: Sequence[TensorSpec]) -> None:
    names = [spec.name for spec in inputs]
    for unknown in sorted(raw.inputs.keys() - set(names)):
        raise DataError(f"{raw.place}: the model has no input {unknown!r}, {did_you_mean(unknown, names)}")
    if missing := [name for name in names if name not in raw.inputs]:
        raise DataError(f"{raw.place}: no array for model input {missing[0]!r}")


def _check_shape(array: RawArray, spec: TensorSpec, lengths: dict[str, tuple[int, RawArray]]) -> None:
    shape = array.values.shape
    if not spec.shape:
        raise DataError(f"model input {spec.name!r} is a scalar, expected a first axis of examples")
    static = list(zip(shape, spec.shape, strict=False))[
        1:
    ]  # a static batch axis takes any number of examples
    fits = all(size == expected for size, expected in static if isinstance(expected, int))
    if len(shape) != len(spec.shape) or not fits:
        raise DataError(f"{array.place} has shape {shape}, expected {_shown(spec)} for input {spec.name!r}")
    _check_length(array, "", "examples", 0, lengths)
    for axis, name in enumerate(spec.shape[1:], start=1):
        if isinstance(name, str):
            _check_length(array, name, f"along axis {name!r}", axis, lengths)


def _check_length(
    array: RawArray, key: str, what: str, axis: int, lengths: dict[str, tuple[int, RawArray]]
) -> None:
    size = array.values.shape[axis]
    expected, other = lengths.setdefault(key, (size, array))
    if size != expected:
        raise DataError(f"{array.place} has {size} {what}, expected {expected} as {_short(other)} has")


def _typed(array: RawArray, spec: TensorSpec, transform: Affine | None) -> Array:
    dtype, values = model_dtype(spec), array.values
    if transform is not None:
        if dtype == np.float32:
            return values
        values = transform(values)
    if values.dtype == dtype:
        return values
    if not _casts(values.dtype.kind, dtype.kind):
        raise DataError(f"{array.place} holds {values.dtype}, expected {dtype} for input {spec.name!r}")
    return _cast(array, values, dtype, spec)


def _casts(given: str, wanted: str) -> bool:
    """Say whether numbers of one kind can be taken for another without losing what they mean."""
    return wanted in {"b": "biuf", "i": "iuf", "u": "iuf", "f": "f"}[given]


def _cast(array: RawArray, values: Array, dtype: np.dtype[Any], spec: TensorSpec) -> Array:
    lowest, highest = _limits(dtype)
    low, high = values.min().item(), values.max().item()
    if low < lowest or high > highest:
        raise DataError(
            f"{array.place} holds values from {low} to {high}, "
            f"which do not fit {dtype} of input {spec.name!r}"
        )
    cast: Array = values.astype(dtype)
    return cast


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind in "iu":
        integers = np.iinfo(dtype)
        return int(integers.min), int(integers.max)
    floats = np.finfo(dtype)
    return float(floats.min), float(floats.max)


def _shown(spec: TensorSpec) -> str:
    axes = [str(axis) if axis is not None else "?" for axis in spec.shape]
    return f"({', '.join(['n', *axes[1:]])}{',' if len(axes) == 1 else ''})"


def _short(array: RawArray) -> str:
    return array.place.rpartition(": ")[2]
