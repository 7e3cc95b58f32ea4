"""The one pass over calibration data that collects every statistic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from autoq.calibration.geometry import (
    Floats,
    LayerInput,
    LookupInput,
    LstmInput,
    WindowGeometry,
    find_layer_inputs,
    find_lookups,
    find_lstm_inputs,
)
from autoq.calibration.masks import padded_share
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.moments import LookupCounter, MomentCollector
from autoq.calibration.statistics import Extent, Statistics
from autoq.calibration.summaries import TensorSummary, summarize
from autoq.calibration.tensor_run import SeenBatch, TensorRun, find_masks
from autoq.core.data import Array, Split
from autoq.core.digests import digest_json
from autoq.core.errors import DataError, ModelError
from autoq.graph.float_model import FloatModel

# Bytes of all sums alive at once: beyond it the data are gone through again, for the layers left.
_ACCUMULATOR_BUDGET = 2**30
_Input = LayerInput | LstmInput | LookupInput


def collect_statistics(
    model: FloatModel,
    values: Sequence[str],
    calibration: Split,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    moments: MomentStore | None = None,
) -> Statistics:
    """Run the calibration data through the float model and summarise the named tensors.

    Padding is left out where an input marks it and no output depends on what it holds (`find_masks`),
    but for LSTMs, which are told the lengths of their sequences.
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
    shown += [name for one in readers for name in one.sources]
    masks = find_masks(model, calibration)
    outputs = [output.name for output in model.summary.outputs] if masks else []
    run = TensorRun(model, [*shown, *outputs], calibration, masks, unread_by=outputs)
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
    padded = summary.padded
    padding = {mask.name: padded_share(calibration, mask) for mask in masks if padded}
    seconds = time.perf_counter() - started
    return Statistics(
        summary.tensors, calibration.n_examples, seconds, summary.channel_maxima, padding, padded
    )


def moment_key(layer_input: _Input) -> str:
    """Name what the moments depend on, within one model: the tensors, and how they are read."""
    if isinstance(layer_input, LayerInput):
        return digest_json([layer_input.source, repr(layer_input.geometry)])
    return digest_json([repr(layer_input)])


class _Summary:
    """What is collected tensor by tensor: histograms and per-channel maxima."""

    def __init__(self, values: Sequence[str], channel_axes: Mapping[str, int]) -> None:
        self.channel_maxima: dict[str, Floats] = {}
        self._values = values
        self._channel_axes = channel_axes
        self._whole: dict[str, TensorSummary] = {}
        self._unpadded: dict[str, TensorSummary] = {}
        self._with_padding: dict[str, None] = {}

    @property
    def tensors(self) -> dict[str, TensorSummary]:
        """All tensors, without padding; with it, those that are nothing else."""
        return {**self._whole, **self._unpadded}

    @property
    def padded(self) -> dict[str, Extent]:
        """The extents of tensors of which padding was left out."""
        wholes = {name: self._whole[name] for name in self._with_padding}
        return {name: Extent(one.low, one.high, one.n_values) for name, one in wholes.items()}

    def add(self, seen: SeenBatch) -> None:
        for name in self._values:
            self._add_histogram(name, seen.real(name), seen.unpadded(name))
        for name, axis in self._channel_axes.items():
            array = seen.without_padding(name)
            if array.size:
                largest = _largest(name, array, axis)
                known = self.channel_maxima.get(name)
                self.channel_maxima[name] = largest if known is None else np.maximum(known, largest)

    def _add_histogram(self, name: str, array: Array, unpadded: Array | None) -> None:
        if array.size == 0:
            return
        try:
            whole = summarize(array)
            fresh = whole if unpadded is None else summarize(unpadded) if unpadded.size else None
        except ValueError as error:
            raise _not_finite(name) from error
        _merge(self._whole, name, whole)
        if fresh is not None:
            _merge(self._unpadded, name, fresh)
        if unpadded is not None:
            self._with_padding[name] = None


def _merge(summaries: dict[str, TensorSummary], name: str, fresh: TensorSummary) -> None:
    known = summaries.get(name)
    summaries[name] = fresh if known is None else known.merge(fresh)


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
    padding = seen.padding_by_example(source)
    collector.add(array, padding, first=seen.first, n_examples=seen.n_examples, n_real=seen.n_real)


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
        padding = seen.padding_by_example(source)
        counter.add(indices, padding, first=seen.first, n_examples=seen.n_examples, n_real=seen.n_real)


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
