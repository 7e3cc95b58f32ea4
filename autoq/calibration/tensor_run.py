"""Running the float model over data for the sake of the tensors inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from autoq.calibration.geometry import states_name
from autoq.calibration.masks import Flags, Mask, differing, most_padded, padding_of, possible_masks
from autoq.core.data import Array, Feed, Split
from autoq.core.errors import DataError, ModelError
from autoq.graph.float_model import FloatModel, serialize
from autoq.graph.values import constant

# Bytes of activations alive at once: what the batch size of the pass is chosen by.
_ACTIVATION_BUDGET = 256 * 2**20
_MAX_BATCH = 32
_N_PROBED = 32  # examples that an input is tried as a mask on
_FLOATS = ("float", "bfloat")
_REFUSALS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


def pad_batch(feed: Feed, size: int) -> Feed:
    """Repeat the last row until the batch has `size` rows, for models with a static batch axis."""
    return {name: _padded(array, size) for name, array in feed.items()}


def _padded(array: Array, size: int) -> Array:
    missing = size - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


@dataclass(frozen=True, eq=False)
class SeenBatch:
    """The tensors of one batch; the rows from `n_real` on are repeated examples."""

    arrays: Mapping[str, Array]
    example_axes: Mapping[str, int]  # of each tensor that has one
    first: int  # position of the first example in the split
    n_examples: int  # with those repeated
    n_real: int
    # By mask: padding of the inputs, (examples, positions), and the tensors with other contents there.
    refilled: tuple[tuple[Flags, Mapping[str, Array]], ...] = ()
    _known: dict[str, Flags | None] = field(default_factory=dict, init=False)

    def real(self, name: str) -> Array:
        """The tensor without repeated examples, where its first axis allows to cut them."""
        return self._cut(self.arrays[name])

    def unpadded(self, name: str) -> Array | None:
        """The values of `real` that are no padding, in one row; None if there is no padding."""
        padding = self._padding(name)
        return None if padding is None else self.real(name)[~self._cut(padding)]

    def without_padding(self, name: str) -> Array:
        """The tensor of `real` with zeros for padding."""
        padding = self._padding(name)
        return self.real(name) if padding is None else np.where(self._cut(padding), 0, self.real(name))

    def by_example(self, name: str) -> Array | None:
        """The tensor with examples first, repeated ones too; None if it is not made of whole examples."""
        return self._examples_first(name, self.arrays[name])

    def padding_by_example(self, name: str) -> Flags | None:
        """Which elements of `by_example` are padding; None if there is none."""
        padding = self._padding(name)
        return None if padding is None else self._examples_first(name, padding)

    def _padding(self, name: str) -> Flags | None:
        """Which elements of a tensor are padding of any mask; None if there is none."""
        if name not in self._known:
            found = [self._padding_by(mask, name, others[name]) for mask, others in self.refilled]
            # What depends on padding in another way than by its positions counts as a whole.
            marked = [flags for flags in found if flags is not None and flags.any()]
            is_padded = bool(marked) and all(flags is not None for flags in found)
            self._known[name] = np.logical_or.reduce(marked) if is_padded else None
        return self._known[name]

    def _padding_by(self, mask: Flags, name: str, other: Array) -> Flags | None:
        """What one mask marks in a tensor; None if the tensor depends on it in another way."""
        array, axis = self.arrays[name], self.example_axes.get(name)
        if array.shape != other.shape:
            return None
        changed = differing(array, other)
        if not changed.any():
            return changed
        return None if axis is None else padding_of(changed, axis, mask)

    def _cut(self, array: Array) -> Array:
        is_longer = self.n_real < self.n_examples and array.ndim > 0 and len(array) == self.n_examples
        return array[: self.n_real] if is_longer else array

    def _examples_first(self, name: str, array: Array) -> Array | None:
        axis = self.example_axes.get(name)
        if axis is None or array.shape[axis] % self.n_examples:
            return None
        return np.ascontiguousarray(np.moveaxis(array, axis, 0))


class TensorRun:
    """The float model with the wanted tensors as outputs, and the data it runs on.

    Args:
        model: Any float model.
        wanted: The tensors.
        split: The data.
        masks: Inputs that mark padding, as `find_masks` has found them.
        unread_by: Wanted tensors that do not depend on padding. A batch in which one does, or that the
            runtime refuses with other contents in it, counts as having none.

    Raises:
        DataError: There are no data, or the runtime refuses them.
        ModelError: The runtime refuses the model.
    """

    def __init__(
        self,
        model: FloatModel,
        wanted: Sequence[str],
        split: Split,
        masks: Sequence[Mask] = (),
        *,
        unread_by: Sequence[str] = (),
    ) -> None:
        found = {name: constant(model.graph.graph.initializers.get(name)) for name in wanted}
        self._constants = {name: array for name, array in found.items() if array is not None}
        self._session, self._shown = _open(model, [name for name in wanted if found[name] is None])
        self._split, self._masks = split, tuple(masks)
        self._unread_by = tuple(unread_by)
        axis = model.summary.inputs[0].shape[0] if model.summary.inputs[0].shape else None
        self._fixed = axis if isinstance(axis, int) else None
        if split.n_examples == 0:
            raise DataError("the calibration split is empty")
        first = pad_batch(next(split.feeds(1)), self._fixed or 1)
        arrays = self._arrays(first)
        if self._fixed is not None:
            self._size = self._fixed
        else:
            per_example = sum(arrays[name].nbytes for name in self._shown) * (1 + len(self._masks))
            self._size = int(np.clip(_ACTIVATION_BUDGET // max(per_example, 1), 1, _MAX_BATCH))
        self._example_axes = self._find_example_axes(first, arrays)

    def batches(self) -> Iterator[SeenBatch]:
        """Run all data once, and each batch again for every mask that marks padding in it."""
        done = 0
        for feed in self._split.feeds(self._size):
            n_real = len(next(iter(feed.values())))
            full = feed if self._fixed is None else pad_batch(feed, self._fixed)
            n_examples = len(next(iter(full.values())))
            arrays = self._arrays(full)
            found = [(mask, self._rerun(full, arrays, mask.refilled(full))) for mask in self._masks]
            refilled = tuple((mask.padding(full[mask.name]), others) for mask, others in found if others)
            yield SeenBatch(arrays, self._example_axes, done, n_examples, n_real, refilled)
            done += n_real

    def ignores(self, mask: Mask) -> bool:
        """Whether `unread_by` changes with other contents, but not with those of what may be padding."""
        ignored = is_read = False
        for feed in most_padded(self._split, mask, _N_PROBED).feeds(self._size):
            full = feed if self._fixed is None else pad_batch(feed, self._fixed)
            arrays = self._arrays(full)
            others = self._rerun(full, arrays, mask.refilled(full))
            if others is None:
                return False
            ignored |= bool(others)
            is_read = is_read or self._rerun(full, arrays, mask.refilled(full, elsewhere=True)) is None
        return ignored and is_read

    def _rerun(self, feed: Feed, arrays: Mapping[str, Array], refilled: Feed) -> dict[str, Array] | None:
        """Run a batch with other contents: {} if they are the same, None if `unread_by` changes."""
        if refilled is feed:
            return {}
        try:
            others = self._arrays(refilled)
        except DataError:  # what is no padding may be what no model takes
            return None
        return others if all(_is_equal(arrays[name], others[name]) for name in self._unread_by) else None

    def _arrays(self, feed: Feed) -> dict[str, Array]:
        try:
            # Asked for nothing, the runtime returns everything.
            outputs = self._session.run(self._shown, feed) if self._shown else []
        except _REFUSALS as error:
            raise DataError(f"the model refuses the calibration data: {_one_line(error)}") from error
        return {**self._constants, **feed, **dict(zip(self._shown, outputs, strict=True))}

    def _find_example_axes(self, feed: Feed, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Find the axis of each tensor that runs over examples, alone or before what was merged into it."""
        n_largest = min(self._size, max(batch.n_examples for batch in self._split.batches))
        if self._fixed is not None:
            found = {name: _fixed_axis(array.shape, self._fixed) for name, array in arrays.items()}
        elif n_largest == 1:
            found = {name: 0 for name, array in arrays.items() if array.ndim > 0}
        else:
            twice = self._arrays(pad_batch(feed, 2))
            found = {name: _doubled_axis(arrays[name].shape, twice[name].shape) for name in arrays}
        return {name: axis for name, axis in found.items() if axis is not None}


def find_masks(model: FloatModel, split: Split) -> tuple[Mask, ...]:
    """Find the inputs that mark padding: other contents change outputs, but not where it is.

    Models whose outputs are all integers are not asked: a label may stay what it is by chance.

    Raises:
        ModelError: The runtime refuses the model.
        DataError: It refuses the first example as it is.
    """
    possible = possible_masks(split)
    if not possible or not any(output.dtype.startswith(_FLOATS) for output in model.summary.outputs):
        return ()
    outputs = [output.name for output in model.summary.outputs]
    run = TensorRun(model, outputs, split, unread_by=outputs)
    found: dict[str, Mask] = {}
    for mask in possible:
        masked = tuple(one for one in mask.masked if run.ignores(replace(mask, masked=(one,))))
        if masked and (len(masked) == 1 or run.ignores(replace(mask, masked=masked))):
            found.setdefault(mask.name, replace(mask, masked=masked))
    return tuple(found.values())


def _is_equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and not differing(one, other).any()


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
