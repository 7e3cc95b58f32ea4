"""Load the data of a spec as splits that fit the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from autoq.core.data import Affine, Batch, Split
from autoq.core.errors import DataError
from autoq.core.layers import TensorSpec
from autoq.spec.ahead import Ahead
from autoq.spec.fitting import fit_batch, model_dtype
from autoq.spec.schema import DataSpec, NpzSource, PythonSource, SearchSpec, SplitSpec
from autoq.spec.sources import RawBatch, read_source

_CLASSIFICATION = ("top1", "top5")


@dataclass(frozen=True, eq=False)
class DataSplits:
    """Everything a search reads, disjoint but for what `warnings` say."""

    calibration: Split
    search: Split
    test: Split | None
    warnings: tuple[str, ...] = ()


Read = Callable[[NpzSource | PythonSource, str], Sequence[RawBatch]]


def read_ahead(data: DataSpec) -> Read:
    """Start reading the files of a spec, beside whatever comes next; return what waits for each.

    What else a source may be is read when it is asked for: the user's code runs where it is expected to.
    """
    sources = {
        "data.calibration": data.calibration,
        "data.search": data.search,
        "data.test": data.test,
        "data.labelled": data.labelled,
    }
    started = {
        where: Ahead(partial(read_source, source, where))
        for where, source in sources.items()
        if isinstance(source, NpzSource)
    }

    def read(source: NpzSource | PythonSource, where: str) -> Sequence[RawBatch]:
        return started.pop(where).result() if where in started else read_source(source, where)

    return read


def load_data(spec: SearchSpec, inputs: Sequence[TensorSpec], read: Read = read_source) -> DataSplits:
    """Read every split once and check it against the model's inputs.

    Args:
        spec: Names the data.
        inputs: Of the model.
        read: Reads a source, given the path of its key.

    Raises:
        DataError: Data cannot be read, do not fit the model, hold NaN or Inf, lack labels that the
            metric needs, or two splits are the same examples.
        SpecError: A factory of the user's cannot be imported.
    """
    splits = _read_splits(spec.data, inputs, read)
    if spec.metric in _CLASSIFICATION:
        for name in ("search", "test"):
            _check_classes(splits.get(name), name, str(spec.metric))
    warnings = _check_disjoint(splits)
    return DataSplits(splits["calibration"], splits["search"], splits.get("test"), tuple(warnings))


def _read_splits(data: DataSpec, inputs: Sequence[TensorSpec], read: Read) -> dict[str, Split]:
    transforms = _transforms(data, inputs)

    def split_of(source: NpzSource | PythonSource, name: str) -> Split:
        raw_batches = read(source, f"data.{name}")
        batches = tuple(fit_batch(raw, inputs, transforms) for raw in raw_batches)
        _check_labels(batches, f"data.{name}")
        return Split(batches, _lazy(transforms, inputs))

    named = {"calibration": data.calibration, "search": data.search, "test": data.test}
    splits = {name: split_of(source, name) for name, source in named.items() if source is not None}
    if data.labelled is not None and data.split is not None:
        splits |= _divide(split_of(data.labelled, "labelled"), data.split)
    return splits


def _transforms(data: DataSpec, inputs: Sequence[TensorSpec]) -> dict[str, Affine]:
    by_name = {spec.name: spec for spec in inputs}
    for name in data.transform:
        if name not in by_name:
            raise DataError(f"data.transform: the model has no input {name!r}, only {', '.join(by_name)}")
        if model_dtype(by_name[name]).kind != "f":
            dtype = by_name[name].dtype
            raise DataError(f"data.transform.{name}: gives float32, but the model's input takes {dtype}")
    return {name: Affine(affine.scale, affine.offset) for name, affine in data.transform.items()}


def _lazy(transforms: Mapping[str, Affine], inputs: Sequence[TensorSpec]) -> dict[str, Affine]:
    """Return the transforms that `fit_batch` leaves to be applied as feeds are taken."""
    dtypes = {spec.name: model_dtype(spec) for spec in inputs}
    return {name: affine for name, affine in transforms.items() if dtypes[name] == np.float32}


def _check_labels(batches: Sequence[Batch], where: str) -> None:
    if not batches:
        raise DataError(f"{where}: the factory gave no batches, expected at least one")
    given = [_labels_text(batch) for batch in batches]
    for number, text in enumerate(given):
        if text != given[0]:
            raise DataError(f"{where}: batch {number} has {text}, expected {given[0]} as batch 0 has")


def _labels_text(batch: Batch) -> str:
    if batch.labels is None:
        return "no labels"
    return f"labels of shape ({', '.join(['n', *map(str, batch.labels.shape[1:])])})"


def _check_classes(split: Split | None, name: str, metric: str) -> None:
    if split is None:
        return
    labels = split.labels
    if labels is None:
        raise DataError(f"data.{name}: no labels, but metric {metric} needs them (fidelity needs none)")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"data.{name}: labels are {labels.dtype} of shape {labels.shape}, "
            f"expected one whole class number an example for metric {metric}"
        )


def _divide(labelled: Split, fractions: SplitSpec) -> dict[str, Split]:
    """Deal the examples out at random; both splits keep the order of the set."""
    n_examples = labelled.n_examples
    order = np.random.default_rng(fractions.seed).permutation(n_examples)
    splits, start = {}, 0
    for name, fraction in (("search", fractions.search), ("test", fractions.test)):
        if fraction is None:
            continue
        n_taken = int(n_examples * fraction + 1e-9)  # 0.29 * 100 is 28.999999999999996
        if n_taken == 0:
            raise DataError(f"data.split.{name}: {fraction:g} of {n_examples} examples is none")
        splits[name] = labelled.rows(np.sort(order[start : start + n_taken]))
        start += n_taken
    return splits


def _check_disjoint(splits: Mapping[str, Split]) -> list[str]:
    """Refuse splits that are the same examples; return a warning for each pair that shares some."""
    rows = {name: _row_digests(split) for name, split in splits.items()}
    warnings = []
    for first, second in combinations(rows, 2):
        known = set(rows[first])
        if known == set(rows[second]):
            raise DataError(f"data.{second}: the same examples as data.{first}, expected other data")
        if shared := sum(row in known for row in rows[second]):
            warnings.append(
                f"data.{second}: {shared} of {len(rows[second])} examples are also in data.{first}; "
                "figures on it look better than they are"
            )
    return warnings


def _row_digests(split: Split) -> list[bytes]:
    return [digest for batch in split.batches for digest in _batch_row_digests(batch)]


def _batch_row_digests(batch: Batch) -> list[bytes]:
    arrays = [np.ascontiguousarray(batch.inputs[name]) for name in sorted(batch.inputs)]
    digests = []
    for row in range(batch.n_examples):
        state = hashlib.blake2b(digest_size=16)
        for array in arrays:
            state.update(f"{array.dtype.str}{array.shape[1:]}".encode())
            state.update(array[row].tobytes())
        digests.append(state.digest())
    return digests
