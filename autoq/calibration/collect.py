"""The one pass over calibration data that collects every statistic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from autoq.calibration.geometry import (
    Floats,
    LayerInput,
    LookupInput,
    LstmInput,
    WindowGeometry,
    find_layer_inputs,
    find_lookups,
    find_lstm_inputs,
    states_name,
)
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.moments import LookupCounter, MomentCollector
from autoq.calibration.statistics import Statistics
from autoq.calibration.summaries import TensorSummary, summarize
from autoq.core.data import Array, Feed, Split
from autoq.core.digests import digest_json
from autoq.core.errors import DataError, ModelError
from autoq.graph.float_model import FloatModel, serialize
from autoq.graph.values import constant

# Bytes of activations alive at once: what the batch size of the pass is chosen by.
_ACTIVATION_BUDGET = 256 * 2**20
_MAX_BATCH = 32
# Bytes of all sums alive at once: beyond it the data are gone through again, for the layers left.
_ACCUMULATOR_BUDGET = 2**30
_Input = LayerInput | LstmInput | LookupInput
_REFUSALS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


def collect_statistics(
    model: FloatModel,
    values: Sequence[str],
    calibration: Split,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    moments: MomentStore | None = None,
) -> Statistics:
    """Run the calibration data through the float model and summarise the named tensors.

    Per-channel maxima are collected of what layers of products read. The second moments of what these
    and LSTMs read, and how often embeddings are looked up, are written to `moments`, if given. Memory
    does not grow with the number of batches; the data are gone through once, and again where the sums
    of all layers together would not fit 1 GiB.

    Raises:
        DataError: The runtime refuses a batch, or there is none.
        ModelError: The runtime refuses the model, or an activation is NaN or infinite.
        OSError: The moments cannot be written.
    """
    started = time.perf_counter()
    inputs = find_layer_inputs(model)
    keyed: dict[str, _Input] = {}
    if moments is not None:
        keyed = {**inputs, **find_lstm_inputs(model), **find_lookups(model)}
    readers = _readers(keyed.values(), calibration.n_examples)
    passes = _passes(readers)
    shown = [*values, *(one.source for one in inputs.values())]
    run = TensorRun(model, [*shown, *(name for one in readers for name in one.sources)], calibration)
    summary = _Summary(values, _channel_axes(inputs))
    written: set[str] = set()
    for index, chosen in enumerate(passes):
        for seen in run.batches():
            if index == 0:
                summary.add(seen)
            for reader in chosen:
                reader.add(seen)
            done = index * calibration.n_examples + seen.first + seen.n_real
            on_progress(done, len(passes) * calibration.n_examples)
        written.update(_write(chosen, moments))
    if moments is not None:
        keys = {name: moment_key(one) for name, one in keyed.items()}
        moments.save_index({name: key for name, key in keys.items() if key in written})
    if values and not summary.tensors:
        raise DataError("the calibration split is empty")
    return Statistics(
        summary.tensors, calibration.n_examples, time.perf_counter() - started, summary.channel_maxima
    )


def moment_key(layer_input: _Input) -> str:
    """Name what the moments depend on, within one model: the tensors, and how they are read."""
    if isinstance(layer_input, LayerInput):
        return digest_json([layer_input.source, repr(layer_input.geometry)])
    return digest_json([repr(layer_input)])


def pad_batch(feed: Feed, size: int) -> Feed:
    """Repeat the last row until the batch has `size` rows, for models with a static batch axis."""
    return {name: _padded(array, size) for name, array in feed.items()}


def _padded(array: Array, size: int) -> Array:
    missing = size - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


@dataclass(frozen=True, eq=False)
class SeenBatch:
    """The tensors of one batch; the rows from `n_real` on are padding."""

    arrays: Mapping[str, Array]
    example_axes: Mapping[str, int]  # of each tensor that has one
    first: int  # position of the first example in the split
    n_examples: int  # with padding
    n_real: int

    def real(self, name: str) -> Array:
        """The tensor without padding, which repeats real rows, where its first axis allows to cut it."""
        array = self.arrays[name]
        is_padded = self.n_real < self.n_examples and array.ndim > 0 and len(array) == self.n_examples
        return array[: self.n_real] if is_padded else array

    def by_example(self, name: str) -> Array | None:
        """The tensor with examples first, padding included; None if it is not made of whole examples."""
        array, axis = self.arrays[name], self.example_axes.get(name)
        if axis is None or array.shape[axis] % self.n_examples:
            return None
        return np.ascontiguousarray(np.moveaxis(array, axis, 0))


class TensorRun:
    """The float model with the wanted tensors as outputs, and the data it runs on."""

    def __init__(self, model: FloatModel, wanted: Sequence[str], calibration: Split) -> None:
        found = {name: constant(model.graph.graph.initializers.get(name)) for name in wanted}
        self._constants = {name: array for name, array in found.items() if array is not None}
        self._session, self._shown = _open(model, [name for name in wanted if found[name] is None])
        self._calibration = calibration
        axis = model.summary.inputs[0].shape[0] if model.summary.inputs[0].shape else None
        self._fixed = axis if isinstance(axis, int) else None
        if calibration.n_examples == 0:
            raise DataError("the calibration split is empty")
        first = pad_batch(next(calibration.feeds(1)), self._fixed or 1)
        arrays = self._arrays(first)
        if self._fixed is not None:
            self._size = self._fixed
        else:
            per_example = sum(arrays[name].nbytes for name in self._shown)
            self._size = int(np.clip(_ACTIVATION_BUDGET // max(per_example, 1), 1, _MAX_BATCH))
        self._example_axes = self._find_example_axes(first, arrays)

    def batches(self) -> Iterator[SeenBatch]:
        """Run all data once."""
        done = 0
        for feed in self._calibration.feeds(self._size):
            n_real = len(next(iter(feed.values())))
            full = feed if self._fixed is None else pad_batch(feed, self._fixed)
            n_examples = len(next(iter(full.values())))
            yield SeenBatch(self._arrays(full), self._example_axes, done, n_examples, n_real)
            done += n_real

    def _arrays(self, feed: Feed) -> dict[str, Array]:
        try:
            # Asked for nothing, the runtime returns everything.
            outputs = self._session.run(self._shown, feed) if self._shown else []
        except _REFUSALS as error:
            raise DataError(f"the model refuses the calibration data: {_one_line(error)}") from error
        return {**self._constants, **feed, **dict(zip(self._shown, outputs, strict=True))}

    def _find_example_axes(self, feed: Feed, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Find the axis of each tensor that runs over examples, alone or before what was merged into it."""
        n_largest = min(self._size, max(batch.n_examples for batch in self._calibration.batches))
        if self._fixed is not None:
            found = {name: _fixed_axis(array.shape, self._fixed) for name, array in arrays.items()}
        elif n_largest == 1:
            found = {name: 0 for name, array in arrays.items() if array.ndim > 0}
        else:
            twice = self._arrays(pad_batch(feed, 2))
            found = {name: _doubled_axis(arrays[name].shape, twice[name].shape) for name in arrays}
        return {name: axis for name, axis in found.items() if axis is not None}


def _open(model: FloatModel, values: Sequence[str]) -> tuple[ort.InferenceSession, list[str]]:
    """Open the float model with the wanted tensors as extra outputs."""
    graph = model.clone()
    for node in graph.graph:
        if node.op_type == "LSTM" and not node.outputs[0].name and node.inputs[0] is not None:
            # The model may want the last state only; moments need all of them.
            node.outputs[0].name = states_name(str(node.name), None)
            node.outputs[0].type = node.inputs[0].type
    inputs = {value.name for value in graph.graph.inputs}
    present = {value.name for value in graph.graph.outputs}
    produced = {output.name: output for node in graph.graph for output in node.outputs}
    wanted = [name for name in dict.fromkeys(values) if name not in inputs]
    graph.graph.outputs.extend(produced[name] for name in wanted if name not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    artifact = serialize(graph)  # held until the session is open: a big one lies in files of its own
    try:
        session = ort.InferenceSession(artifact.source, options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        raise ModelError(f"ONNX Runtime refuses the float model: {_one_line(error)}") from error
    return session, wanted


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _doubled_axis(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    """The only axis that is twice as long for two examples as for one."""
    axes = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    is_clear = len(one) == len(two) and len(axes) == 1 and two[axes[0]] == 2 * one[axes[0]]
    return axes[0] if is_clear else None


def _fixed_axis(shape: tuple[int, ...], batch: int) -> int | None:
    """The first axis if it is as long as the batch, else the only one that can hold the examples.

    That is the first, if it is a multiple of the batch, or another as long as it; the last is never one.
    """
    if batch == 1 or shape[:1] == (batch,):
        return 0 if shape else None
    axes = [
        axis for axis, size in enumerate(shape[:-1]) if size == batch or (axis == 0 and size % batch == 0)
    ]
    return axes[0] if len(axes) == 1 else None


class _Summary:
    """What is collected tensor by tensor: histograms and per-channel maxima."""

    def __init__(self, values: Sequence[str], channel_axes: Mapping[str, int]) -> None:
        self.tensors: dict[str, TensorSummary] = {}
        self.channel_maxima: dict[str, Floats] = {}
        self._values = values
        self._channel_axes = channel_axes

    def add(self, seen: SeenBatch) -> None:
        for name in self._values:
            self._add_histogram(name, seen.real(name))
        for name, axis in self._channel_axes.items():
            array = seen.real(name)
            if array.size:
                largest = _largest(name, array, axis)
                known = self.channel_maxima.get(name)
                self.channel_maxima[name] = largest if known is None else np.maximum(known, largest)

    def _add_histogram(self, name: str, array: Array) -> None:
        if array.size == 0:
            return
        try:
            fresh = summarize(array)
        except ValueError as error:
            raise _not_finite(name) from error
        self.tensors[name] = self.tensors[name].merge(fresh) if name in self.tensors else fresh


def _largest(name: str, array: Array, channel_axis: int) -> Floats:
    """Largest magnitude of each channel; without a copy of the array."""
    others = tuple(axis for axis in range(array.ndim) if axis != channel_axis % array.ndim)
    largest: Floats = np.maximum(array.max(axis=others), -array.min(axis=others)).astype(np.float32)
    if not np.isfinite(largest).all():
        raise _not_finite(name)
    return largest


def _not_finite(name: str) -> ModelError:
    return ModelError(f"tensor {name!r} has NaN or infinite activations on the calibration data")


def _channel_axes(inputs: Mapping[str, LayerInput]) -> dict[str, int]:
    """The channel axis of each tensor that layers read; none where they disagree."""
    axes: dict[str, set[int]] = {}
    for one in inputs.values():
        axes.setdefault(one.source, set()).add(one.channel_axis)
    return {source: next(iter(found)) for source, found in axes.items() if len(found) == 1}


@dataclass(frozen=True, eq=False)
class _Reader:
    """Takes out of every batch what the moments of some layers need."""

    sources: tuple[str, ...]  # tensors that it reads
    collector: MomentCollector | LookupCounter
    add: Callable[[SeenBatch], None]


def _readers(inputs: Iterable[_Input], n_examples: int) -> list[_Reader]:
    """One reader for all layers that read the same tensors in the same way."""
    distinct = {moment_key(one): one for one in inputs}
    made = (_reader(key, one, n_examples) for key, one in distinct.items())
    return [reader for reader in made if reader is not None]


def _reader(key: str, one: _Input, n_examples: int) -> _Reader | None:
    if isinstance(one, LookupInput):
        counter = LookupCounter(key, one.n_rows)
        return _Reader((one.source,), counter, partial(_add_lookups, counter, one.source))
    if one.geometry is None:
        return None
    collector = MomentCollector(key, one.geometry, n_examples)
    if isinstance(one, LstmInput):
        return _Reader(one.sources, collector, partial(_add_steps, collector, one))
    return _Reader((one.source,), collector, partial(_add_tensor, collector, one.source))


def _add_tensor(collector: MomentCollector, source: str, seen: SeenBatch) -> None:
    # Windows are cut out of (examples, channels, ...): with examples elsewhere, nothing is known.
    by_rows = not isinstance(collector.geometry, WindowGeometry)
    array = seen.by_example(source) if by_rows or seen.example_axes.get(source) == 0 else None
    collector.add(array, first=seen.first, n_examples=seen.n_examples, n_real=seen.n_real)


def _add_steps(collector: MomentCollector, source: LstmInput, seen: SeenBatch) -> None:
    """Add the steps of an LSTM example by example, as its sequences may differ in length."""
    n_sequences = seen.arrays[source.x].shape[1]
    if n_sequences % seen.n_examples:
        collector.add(None, first=seen.first, n_examples=seen.n_examples, n_real=seen.n_real)
        return
    n_each = n_sequences // seen.n_examples
    for index in range(seen.n_real if n_each else 0):
        sequences = range(index * n_each, (index + 1) * n_each)
        vectors = np.concatenate([source.vectors(seen.arrays, one) for one in sequences], axis=1)
        collector.add(vectors, first=seen.first + index, n_examples=1, n_real=1)


def _add_lookups(counter: LookupCounter, source: str, seen: SeenBatch) -> None:
    indices = seen.by_example(source)
    if indices is None:
        counter.add_shared(seen.arrays[source], first=seen.first, n_real=seen.n_real)
    else:
        counter.add(indices, first=seen.first, n_examples=seen.n_examples, n_real=seen.n_real)


def _passes(readers: Iterable[_Reader]) -> list[list[_Reader]]:
    """Share readers out so that the sums of a pass fit the budget; those of one alone may exceed it."""
    passes: list[list[_Reader]] = [[]]
    held = 0
    for reader in readers:
        if passes[-1] and held + reader.collector.nbytes > _ACCUMULATOR_BUDGET:
            passes.append([])
            held = 0
        passes[-1].append(reader)
        held += reader.collector.nbytes
    return passes


def _write(readers: Iterable[_Reader], store: MomentStore | None) -> Iterator[str]:
    """Write the moments one by one, as each frees its sums; yield their keys."""
    for reader in readers:
        moments = reader.collector.finish()
        if store is not None and moments is not None:
            store.save(reader.collector.key, moments)
            yield reader.collector.key
