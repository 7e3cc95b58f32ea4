"""Move a scale of each channel from one place of a graph to another, without changing what it computes.

A channel axis is counted from the right: 0 axes follow it in what Gemm and MatMul read and write, the
spatial ones in what convolutions do. So a vector of factors broadcasts against any of these values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.graph.layers import channel_axis, is_linear
from autoq.graph.values import change_constant, constant, only_consumer

Factors = npt.NDArray[np.float32]  # (channels,)
Figures = npt.NDArray[np.float64]

# f(s x, ...) = s f(x, ...) for every s > 0, where x is the first input.
_HOMOGENEOUS = {"Relu", "LeakyRelu", "PRelu", "Div"}
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
# Their inputs 1 and 2, the second where there is one, scale and shift the channels of output 0.
_ROW_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}
_MAP_NORMS = {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}

# A channel this far below the largest one carries nothing; its ratio to anything is noise.
_DEAD = 1e-6


@dataclass(frozen=True, slots=True)
class Vector:
    """A constant input that holds one number per channel, or one for all."""

    node: ir.Node
    index: int
    trailing: int  # axes that follow the channel axis when it broadcasts


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the channels of a value get their scale: `node`, and the constants added or multiplied on."""

    node: ir.Node
    vectors: tuple[Vector, ...]


def trailing_axes(layer: ir.Node) -> int:
    """Count the axes that follow the channel axis in what a layer reads and writes."""
    return _weight(layer).ndim - 2


def input_width(layer: ir.Node) -> int:
    """Count the input channels of a layer."""
    groups, _, per_group, _ = _group_view(layer).shape
    return int(groups * per_group)


def output_width(layer: ir.Node) -> int:
    """Count the output channels of a layer."""
    groups, per_group, _, _ = _group_view(layer).shape
    return int(groups * per_group)


def magnitudes(layer: ir.Node) -> Figures:
    """Return the largest absolute weight between channels: (groups, outputs, inputs) of a group each."""
    largest: Figures = np.abs(_group_view(layer)).max(axis=3).astype(np.float64)
    return largest


def input_maxima(largest: Figures) -> Figures:
    """Reduce `magnitudes` to one figure per input channel."""
    maxima: Figures = largest.max(axis=1).ravel()
    return maxima


def output_maxima(largest: Figures) -> Figures:
    """Reduce `magnitudes` to one figure per output channel."""
    maxima: Figures = largest.max(axis=2).ravel()
    return maxima


def live_channels(maxima: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell the channels that carry something from the dead ones."""
    live: npt.NDArray[np.bool_] = maxima > _DEAD * maxima.max(initial=0.0)
    return live


def find_origin(value: ir.Value, *, width: int, trailing: int) -> Origin | None:
    """Find what to scale so that a value of `width` channels is scaled, or None where nothing does exactly.

    Every value on the way has one reader and is no output. Who reads `value` itself is not looked at.
    """
    node = value.producer()
    if node is None or node.domain != "" or node.outputs[0] is not value:
        return None
    own = _own_vectors(node, width, trailing)
    if own is not None:
        return Origin(node, own)
    for passed, vectors in _passages(node, width, trailing):
        if only_consumer(passed) is None:
            continue
        origin = find_origin(passed, width=width, trailing=trailing)
        if origin is not None:
            return Origin(origin.node, (*vectors, *origin.vectors))
    return None


def scale_origin(graph: ir.Graph, origin: Origin, factors: Figures) -> None:
    """Multiply the channels of what an origin makes."""
    if is_linear(origin.node):
        _scale_weight(graph, origin.node, factors, axis=1)
    for vector in origin.vectors:
        old = _float_constant(vector.node.inputs[vector.index])
        assert old is not None
        shaped = factors.reshape(-1, *[1] * vector.trailing)
        _set_constant(graph, vector.node, vector.index, old * shaped)


def scale_inputs(graph: ir.Graph, layer: ir.Node, factors: Figures) -> None:
    """Multiply the weights of each input channel of a layer."""
    _scale_weight(graph, layer, factors, axis=2)


def check_factors(factors: Mapping[str, Factors], widths: Mapping[str, int]) -> None:
    """Check vectors that are to be applied.

    Raises:
        PreconditionError: One has no place in the model, another length than its place, or is not
            positive and finite throughout.
    """
    if missing := sorted(factors.keys() - widths.keys()):
        raise ir.passes.PreconditionError(f"nothing to scale exactly at: {missing}")
    for name, vector in factors.items():
        if vector.shape != (widths[name],):
            raise ir.passes.PreconditionError(f"{name!r} has {widths[name]} channels, not {vector.shape}")
        if not (np.isfinite(vector).all() and (vector > 0).all()):
            raise ir.passes.PreconditionError(f"the scales of {name!r} are not all positive and finite")


def _own_vectors(node: ir.Node, width: int, trailing: int) -> tuple[Vector, ...] | None:
    """The constants, beside a layer's weight, that scale a node's output; None where scaling is not exact."""
    if is_linear(node):
        fits = trailing_axes(node) == trailing and output_width(node) == width
        return _present(node, (2,)) if fits else None
    if node.op_type in (_MAP_NORMS if trailing else _ROW_NORMS):
        vectors = _present(node, (1, 2))
        arrays = [_float_constant(node.inputs[vector.index]) for vector in vectors]
        fits = all(array is not None and array.shape == (width,) for array in arrays)
        return vectors if vectors and fits else None
    # An unknown width could be 1, which the factors would widen before a later Add does.
    if node.op_type == "Mul" and _size(node.outputs[0], -1 - trailing) == width:
        factor = _operand(node, width, trailing)
        return None if factor is None else (factor,)
    return None


def _passages(node: ir.Node, width: int, trailing: int) -> list[tuple[ir.Value, tuple[Vector, ...]]]:
    """The inputs of which any one scales a node's output, each with the constants to be scaled along."""
    passed: list[ir.Value | None] = []
    vectors: tuple[Vector, ...] = ()
    if node.op_type in _HOMOGENEOUS or (trailing and node.op_type in _POOLS):
        passed = [node.inputs[0]]
    elif node.op_type == "Mul":
        passed = list(node.inputs)
    elif node.op_type == "Add" and (shift := _operand(node, width, trailing)) is not None:
        passed, vectors = [node.inputs[1 - shift.index]], (shift,)
    elif node.op_type == "Reshape" and trailing == 0:
        passed = [_values_of_attention(node, width)]
    return [(value, vectors) for value in passed if value is not None]


def _values_of_attention(join: ir.Node, width: int) -> ir.Value | None:
    """What the heads of an attention mix: weighted sums keep the scale of a channel.

    The pattern is split (Reshape), Transpose, MatMul from the left, Transpose, join (Reshape).
    """
    merged = join.inputs[0]
    mixed = _swapped_heads(merged)
    product = _made_by(mixed, "MatMul")
    heads = None if product is None else product.inputs[1]
    parted = _swapped_heads(heads)
    split = _made_by(parted, "Reshape")
    if split is None or any(
        value is None or only_consumer(value) is None for value in (merged, mixed, heads, parted)
    ):
        return None
    n_heads, head_size = _size(parted, -2), _size(parted, -1)
    if n_heads is None or head_size is None or n_heads * head_size != width:
        return None
    same_heads = (_size(merged, -2), _size(merged, -1)) == (n_heads, head_size)
    return split.inputs[0] if same_heads and _size(split.inputs[0], -1) == width else None


def _swapped_heads(value: ir.Value | None) -> ir.Value | None:
    """What a Transpose between (batch, positions, heads, size) and (batch, heads, positions, size) reads."""
    node = _made_by(value, "Transpose")
    if node is None or tuple(node.attributes.get_ints("perm", ())) != (0, 2, 1, 3):
        return None
    return node.inputs[0]


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, if it is of this type."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", op_type) else None


def _size(value: ir.Value | None, axis: int) -> int | None:
    """Size of an axis, counted from the right as -1, -2, ..., or None when it is unknown."""
    if value is None or value.shape is None or len(value.shape) < -axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _present(node: ir.Node, indices: tuple[int, ...]) -> tuple[Vector, ...]:
    return tuple(
        Vector(node, index, trailing=0)
        for index in indices
        if index < len(node.inputs) and node.inputs[index] is not None
    )


def _operand(node: ir.Node, width: int, trailing: int) -> Vector | None:
    """The constant operand of an Add or Mul, if it is the same wherever the channel is."""
    for index, value in enumerate(node.inputs):
        array = _float_constant(value)
        if array is None:
            continue
        try:
            shape = np.broadcast_shapes(array.shape, (width, *[1] * trailing))
        except ValueError:
            return None
        return Vector(node, index, trailing) if int(np.prod(shape)) == width else None
    return None


def _weight(layer: ir.Node) -> npt.NDArray[Any]:
    weight = _float_constant(layer.inputs[1])
    assert weight is not None
    return weight


def _group_view(layer: ir.Node) -> npt.NDArray[Any]:
    return _by_group(layer, _weight(layer))


def _by_group(layer: ir.Node, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View a weight as (groups, outputs of a group, inputs of a group, positions)."""
    if layer.op_type in ("Gemm", "MatMul"):
        rows = weight if channel_axis(layer) == 0 else weight.T
        return rows[np.newaxis, :, :, np.newaxis]
    groups = layer.attributes.get_int("group", 1)
    first, second, *kernel = weight.shape
    positions = int(np.prod(kernel))
    grouped = weight.reshape(groups, first // groups, second, positions)
    return grouped if layer.op_type == "Conv" else grouped.swapaxes(1, 2)


def _scale_weight(graph: ir.Graph, layer: ir.Node, factors: Figures, *, axis: int) -> None:
    """Multiply along outputs (axis 1 of the view by groups) or inputs (axis 2)."""
    scaled = np.array(_weight(layer), np.float64, order="C")
    groups = _by_group(layer, scaled)
    shape = [len(groups), 1, 1, 1]
    shape[axis] = -1
    groups *= factors.reshape(shape)
    _set_constant(graph, layer, 1, scaled)


def _set_constant(graph: ir.Graph, node: ir.Node, index: int, array: npt.NDArray[Any]) -> None:
    change_constant(graph, node, index, np.asarray(array, np.float32), "scaled")


def _float_constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    array = constant(value)
    return array if array is not None and array.dtype == np.float32 else None
