"""How a layer reads its input: the vectors x that the rows of its weight are multiplied with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autoq.core.data import Array
from autoq.core.layers import Layer
from autoq.graph.float_model import FloatModel

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]
_ROW_OPS = ("Gemm", "MatMul")


class Geometry(Protocol):
    """Which vectors a layer takes out of its input. Positions count the vectors of one array, in C order."""

    @property
    def groups(self) -> int:
        """Blocks of the weight that read inputs of their own."""
        ...

    @property
    def columns(self) -> int:
        """Length of a vector."""
        ...

    def n_positions(self, shape: tuple[int, ...]) -> int:
        """Count the vectors in an array of this shape; they are in order of its first axis."""
        ...

    def vectors(self, array: Floats, positions: Positions) -> Floats:
        """Return the vectors at some positions, shape (groups, len(positions), columns)."""
        ...


@dataclass(frozen=True, slots=True)
class RowGeometry:
    """A matrix product: the vectors are the rows along the last axis."""

    columns: int

    @property
    def groups(self) -> int:
        """One: every row of the weight reads the whole vector."""
        return 1

    def n_positions(self, shape: tuple[int, ...]) -> int:
        """Count the rows."""
        return math.prod(shape[:-1])

    def vectors(self, array: Floats, positions: Positions) -> Floats:
        """Return the chosen rows, shape (1, len(positions), columns)."""
        return array.reshape(-1, self.columns)[positions][None]


@dataclass(frozen=True, slots=True)
class WindowGeometry:
    """A convolution over (n, channels, spatial...): one vector an output position.

    The columns of a vector run over (channel of the group, taps...) in C order, as those of the weight
    do. Padding gives zeros, and so do the holes that the stride of a transposed convolution leaves.
    """

    groups: int
    channels: int  # of one group
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]  # (begin, end) of each spatial axis
    auto_pad: str = "NOTSET"
    is_transposed: bool = False
    output_padding: tuple[int, ...] = ()  # of a transposed convolution

    @property
    def columns(self) -> int:
        """Length of a vector: channels of a group times taps."""
        return self.channels * math.prod(self.kernel)

    def n_positions(self, shape: tuple[int, ...]) -> int:
        """Count the output positions of all examples."""
        sizes = (self._output_size(axis, size) for axis, size in enumerate(shape[2:]))
        return shape[0] * math.prod(sizes)

    def vectors(self, array: Floats, positions: Positions) -> Floats:
        """Return the windows at some output positions, shape (groups, len(positions), columns)."""
        taps = [self._taps(axis, size) for axis, size in enumerate(array.shape[2:])]
        example, *where = np.unravel_index(positions, (len(array), *(len(one) for one in taps)))
        pixels = np.zeros(len(positions), np.int64)
        inside = np.ones(len(positions), np.bool_)
        for axis, (one, output) in enumerate(zip(taps, where, strict=True)):
            sources = one[output].reshape(len(positions), *[1] * axis, -1)
            inside = inside[..., None] & (sources >= 0)
            pixels = pixels[..., None] * array.shape[axis + 2] + np.maximum(sources, 0)
        maps = array.reshape(*array.shape[:2], -1)
        each = pixels.reshape(len(positions), math.prod(self.kernel))
        found = maps[example[:, None], :, each]  # (positions, taps, channels)
        found[~inside.reshape(found.shape[:2])] = 0.0
        split = found.reshape(*found.shape[:2], self.groups, self.channels)
        return split.transpose(2, 0, 3, 1).reshape(self.groups, len(positions), self.columns)

    def _taps(self, axis: int, size: int) -> Positions:
        """Input coordinate behind each tap of each output coordinate, -1 for a zero; shape (outputs, k)."""
        stride = self.strides[axis]
        outputs = np.arange(self._output_size(axis, size), dtype=np.int64)[:, None]
        offsets = np.arange(self.kernel[axis], dtype=np.int64) * self.dilations[axis]
        begin, _ = self._padding(axis, size)
        if self.is_transposed:
            spread = outputs + begin - offsets
            source, is_hole = spread // stride, spread % stride != 0
        else:
            source = outputs * stride + offsets - begin
            is_hole = np.zeros_like(source, np.bool_)
        return np.where(is_hole | (source < 0) | (source >= size), -1, source)

    def _output_size(self, axis: int, size: int) -> int:
        padding = sum(self._padding(axis, size))
        if self.is_transposed:
            return self.strides[axis] * (size - 1) + self.output_padding[axis] + self._span(axis) - padding
        return max((size + padding - self._span(axis)) // self.strides[axis] + 1, 0)

    def _padding(self, axis: int, size: int) -> tuple[int, int]:
        """Zeros before and after one axis; SAME makes ceil(size / stride) outputs."""
        if self.auto_pad == "VALID":
            return 0, 0
        if self.auto_pad == "NOTSET":
            return self.pads[axis]
        stride = self.strides[axis]
        total = max((-(-size // stride) - 1) * stride + self._span(axis) - size, 0)
        less, more = total // 2, total - total // 2
        return (less, more) if self.auto_pad == "SAME_UPPER" else (more, less)

    def _span(self, axis: int) -> int:
        """Pixels from the first tap to the last."""
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1


@dataclass(frozen=True, slots=True)
class StepGeometry:
    """A recurrence, whose vectors are laid out before: shape (groups, positions, columns)."""

    groups: int
    columns: int

    def n_positions(self, shape: tuple[int, ...]) -> int:
        """Count the vectors of a group."""
        return shape[1]

    def vectors(self, array: Floats, positions: Positions) -> Floats:
        """Return the chosen ones, shape (groups, len(positions), columns)."""
        return array[:, positions]


@dataclass(frozen=True, slots=True)
class LayerInput:
    """Which tensor a layer reads, and how; no geometry where its attributes are not understood."""

    source: str
    channel_axis: int  # of the tensor
    geometry: Geometry | None


@dataclass(frozen=True, slots=True)
class LstmInput:
    """Which tensors make the vectors [x_t, h_(t-1)] of an LSTM; None for those it does not have."""

    x: str
    y: str  # hidden states
    lengths: str | None
    initial_h: str | None
    direction: str
    geometry: StepGeometry

    @property
    def sources(self) -> tuple[str, ...]:
        """All tensors that it reads."""
        return tuple(name for name in (self.x, self.y, self.lengths, self.initial_h) if name is not None)

    def vectors(self, arrays: Mapping[str, Array], sequence: int) -> Floats:
        """Return the vectors of one sequence of a batch, those of its padding left out.

        Args:
            arrays: The tensors of the batch, by name.
            sequence: Position in the batch.

        Returns:
            Shape (directions, steps, input + hidden), in order of time.
        """
        x, y = arrays[self.x], arrays[self.y]
        n_steps = len(x) if self.lengths is None else int(arrays[self.lengths][sequence])
        one = slice(sequence, sequence + 1)
        initial_h = None if self.initial_h is None else arrays[self.initial_h][:, one]
        return lstm_vectors(x[:n_steps, one], y[:n_steps, :, one], self.direction, initial_h)


@dataclass(frozen=True, slots=True)
class LookupInput:
    """Which tensor of indices a Gather reads, and how many rows its table has."""

    source: str
    n_rows: int


def find_layer_inputs(model: FloatModel) -> dict[str, LayerInput]:
    """Return what each Conv, ConvTranspose, Gemm and MatMul layer reads, by name, in graph order."""
    nodes = {node.name: node for node in model.graph.graph}
    found = {}
    for layer in model.summary.layers:
        node = nodes[layer.name]
        source = node.inputs[0]
        if source is None or source.name is None:
            continue
        if layer.op in _ROW_OPS:
            columns = layer.weight_shape[1 - layer.channel_axis]
            found[layer.name] = LayerInput(source.name, -1, RowGeometry(columns))
        elif layer.op in ("Conv", "ConvTranspose"):
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            found[layer.name] = LayerInput(source.name, 1, window_geometry(layer, attributes))
    return found


def find_lstm_inputs(model: FloatModel) -> dict[str, LstmInput]:
    """Return what each LSTM layer reads, by name, in graph order."""
    nodes = {node.name: node for node in model.graph.graph}
    found = {}
    for layer in model.summary.layers:
        if layer.op == "LSTM":
            node = nodes[layer.name]
            names = [None if value is None else value.name or None for value in node.inputs] + [None] * 6
            found[layer.name] = LstmInput(
                x=str(names[0]),
                y=states_name(layer.name, node.outputs[0].name),
                lengths=names[4],
                initial_h=names[5],
                direction=str(node.attributes.get_string("direction", "forward")),
                geometry=StepGeometry(layer.weight_shape[0], layer.weight_shape[2]),
            )
    return found


def find_lookups(model: FloatModel) -> dict[str, LookupInput]:
    """Return what each Gather layer reads, by name, in graph order."""
    nodes = {node.name: node for node in model.graph.graph}
    found = {}
    for layer in model.summary.layers:
        source = nodes[layer.name].inputs[1] if layer.op == "Gather" else None
        if source is not None and source.name is not None:
            found[layer.name] = LookupInput(source.name, layer.weight_shape[0])
    return found


def states_name(layer_name: str, output_name: str | None) -> str:
    """Return the name of an LSTM's hidden states; one of our own where the model leaves them out."""
    return output_name or f"autoq:{layer_name}.states"


def window_geometry(layer: Layer, attributes: Mapping[str, Any]) -> WindowGeometry | None:
    """Read the attributes of a Conv or ConvTranspose node; None where they are not understood.

    A transposed convolution that says its output's shape instead of its padding is not understood.
    """
    n_axes = len(layer.weight_shape) - 2
    is_transposed = layer.op == "ConvTranspose"
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if is_transposed and (auto_pad not in ("NOTSET", "VALID") or "output_shape" in attributes):
        return None
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return None
    pads = tuple(attributes.get("pads", (0,) * (2 * n_axes)))
    strides = tuple(attributes.get("strides", (1,) * n_axes))
    dilations = tuple(attributes.get("dilations", (1,) * n_axes))
    output_padding = tuple(attributes.get("output_padding", (0,) * n_axes))
    lengths = (len(pads) / 2, len(strides), len(dilations), len(output_padding))
    if set(lengths) != {n_axes} or min(pads, default=0) < 0:
        return None
    per_group = layer.weight_shape[0] // layer.group if is_transposed else layer.weight_shape[1]
    return WindowGeometry(
        groups=layer.group,
        channels=per_group,
        kernel=layer.weight_shape[2:],
        strides=strides,
        dilations=dilations,
        pads=tuple(zip(pads[:n_axes], pads[n_axes:], strict=True)),
        auto_pad=auto_pad,
        is_transposed=is_transposed,
        output_padding=output_padding if is_transposed else (),
    )


def lstm_vectors(x: Floats, y: Floats, direction: str, initial_h: Floats | None = None) -> Floats:
    """Return what the stacked weight [W, R] of an ONNX LSTM is multiplied with: [x_t, h_(t-1)].

    Args:
        x: Input, shape (seq, batch, input).
        y: Hidden states, shape (seq, dirs, batch, hidden), in order of time for either direction.
        direction: `forward`, `reverse` or `bidirectional`; the reverse direction comes from t + 1.
        initial_h: Shape (dirs, batch, hidden); zeros where it is missing.

    Returns:
        Shape (dirs, batch * seq, input + hidden), by example and then by time.

    Every step counts: sequences of other lengths (`sequence_lens`) are to be cut to theirs before.
    """
    first = np.zeros_like(y[:1]) if initial_h is None else initial_h[None]
    earlier = np.concatenate([first, y[:-1]])[: len(y)]
    later = np.concatenate([y[1:], first])[: len(y)]
    before = {"forward": earlier, "reverse": later}.get(direction)
    if before is None:
        before = np.concatenate([earlier[:, :1], later[:, 1:]], axis=1)
    seq, dirs, batch, _ = y.shape
    spread = np.broadcast_to(x[:, None], (seq, dirs, batch, x.shape[-1]))
    stacked: Floats = np.concatenate([spread, before], axis=-1).transpose(1, 2, 0, 3)
    return stacked.reshape(dirs, batch * seq, stacked.shape[-1])


def gather_counts(indices: npt.NDArray[np.integer[Any]], n_rows: int) -> npt.NDArray[np.int64]:
    """Count how often each row of a table is read, shape (n_rows,); negative indices count from its end.

    The second moments of a Gather are these counts on a diagonal: a row is read alone.
    """
    flat = indices.reshape(-1).astype(np.int64)
    return np.bincount(np.where(flat < 0, flat + n_rows, flat), minlength=n_rows)
