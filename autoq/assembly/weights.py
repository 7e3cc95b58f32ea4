"""Put compressed weights into a graph in the form the runtime wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.graph.values import add_initializer, fresh_name

INT2_OPSET = 25
_INT2_IR_VERSION = 13
# Half of int32: the products are added to the bias in the same accumulator.
_BIAS_LIMIT = 2**30


def pack_nibbles(integers: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack two 4-bit integers a byte, the first in the low half, as ONNX stores INT4."""
    flat = _padded(integers, 2)
    return ((flat[0::2] & 0xF) | ((flat[1::2] & 0xF) << 4)).astype(np.uint8)


def pack_crumbs(integers: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack four 2-bit integers a byte, the first in the lowest bits, as ONNX stores INT2."""
    flat = _padded(integers, 4) & 0x3
    return (flat[0::4] | (flat[1::4] << 2) | (flat[2::4] << 4) | (flat[3::4] << 6)).astype(np.uint8)


def pack_unsigned(integers: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.uint8]:
    """Shift a grid of 4 or 8 bits to start at zero and pack it: kernels take the middle for zero.

    Returns:
        Bytes in one dimension, two of 4 bits in each.
    """
    shifted = (integers.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return pack_nibbles(shifted.view(np.int8)) if bits == 4 else shifted.reshape(-1)


def _padded(integers: npt.NDArray[np.int8], multiple: int) -> npt.NDArray[np.uint8]:
    flat = np.ascontiguousarray(integers).reshape(-1).view(np.uint8)
    return np.pad(flat, (0, -flat.size % multiple))


def add_grid(
    model: ir.Model, before: ir.Node, name: str, integers: npt.NDArray[np.int8], bits: int
) -> ir.Value:
    """Add an int8 grid as an initializer of the narrowest type that holds it.

    Grids of up to 4 bits are stored as INT4 (2 bits: INT2) behind a Cast to int8, which the runtime
    folds at load: half or a quarter of the file at int8's speed. Opsets that lack the type store int8.
    """
    graph = model.graph
    opset = model.opset_imports.get("", 0)
    if bits > 4 or opset < 21:
        return add_initializer(graph, name, integers)
    narrow = bits <= 2
    dtype, packed = (
        (ir.DataType.INT2, pack_crumbs(integers)) if narrow else (ir.DataType.INT4, pack_nibbles(integers))
    )
    if narrow:
        model.opset_imports[""] = max(opset, INT2_OPSET)
        model.ir_version = max(model.ir_version, _INT2_IR_VERSION)
    tensor = ir.PackedTensor(packed, dtype, shape=ir.Shape(integers.shape), name=name)
    stored = add_initializer(graph, name, tensor)
    to_int8 = [ir.AttrInt64("to", int(ir.DataType.INT8))]
    # Named after the initializer, whose name is unique even where layers share a weight.
    cast = ir.Node("", "Cast", [stored], to_int8, name=f"{stored.name}_unpack")
    result = cast.outputs[0]
    result.name = fresh_name(graph, f"{stored.name}_unpacked")
    result.shape = ir.Shape(integers.shape)
    result.type = ir.TensorType(ir.DataType.INT8)
    graph.insert_before(before, cast)
    return result


def add_half(graph: ir.Graph, before: ir.Node, name: str, values: npt.NDArray[Any]) -> ir.Value:
    """Add floats as a float16 initializer behind a Cast to float32, which the runtime folds at load.

    Values below float16's smallest become zero.

    Raises:
        ValueError: A value is beyond float16's range. To clip it would change what the layer computes
            by more than rounding, unasked.
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        largest = float(np.abs(values).max())
        raise ValueError(f"a weight of magnitude {largest:g} is beyond float16's 65504")
    stored = add_initializer(graph, name, halves)
    to_float = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
    cast = ir.Node("", "Cast", [stored], to_float, name=f"{stored.name}_widen")
    result = cast.outputs[0]
    result.name, result.shape = fresh_name(graph, f"{stored.name}_widened"), stored.shape
    result.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, cast)
    return result


def make_room_for_bias(
    integers: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    bias: npt.NDArray[Any],
    *,
    input_scale: float,
    axis: int,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Raise the scales under which a bias would not fit int32, and round the weights again.

    A bias has the scale of its channel's sums. Batch norms leave channels behind whose weights are
    almost zero and whose bias is not: there it overflows, and a float bias is no way out, as the
    runtime rounds it to int32 itself and lets it overflow. A channel of zeros has no scale of its own;
    it gets the one that holds its bias best.

    Args:
        integers: Weight grid in the layer's shape.
        scales: Shape () per tensor, (channels,) per channel.
        bias: Float bias, shape (channels,).
        input_scale: Of the layer's input.
        axis: Of the weight, over output channels.
    """
    # A subnormal scale of the sums would divide the bias to infinity.
    smallest = 2.0 * float(np.finfo(np.float32).tiny)
    needed = np.maximum(np.abs(bias.astype(np.float64)) / _BIAS_LIMIT, smallest) / input_scale
    shape = [1] * integers.ndim
    if scales.ndim:
        shape[axis] = -1
        others = tuple(other for other in range(integers.ndim) if other != axis)
        is_empty = (bias != 0) & ~integers.any(axis=others)
    else:
        needed, is_empty = needed.max(), np.any(bias != 0) and not integers.any()
    fitted = np.where(is_empty, needed, np.maximum(scales, needed)).astype(np.float32)
    if np.array_equal(fitted, scales):
        return integers, scales
    factor = (scales.astype(np.float64) / fitted).reshape(shape)
    return np.rint(integers * factor).astype(np.int8), fitted


def add_dequantized(
    graph: ir.Graph,
    before: ir.Node,
    integers: ir.Value,
    scales: npt.NDArray[Any],
    *,
    zero_dtype: type[np.int8] | type[np.int32],
    axis: int,
) -> ir.Value:
    """Add a DequantizeLinear on an initializer, with the explicit zero point that fusion asks for."""
    name = integers.name
    scale = add_initializer(graph, f"{name}_scale", scales.astype(np.float32))
    zero = add_initializer(graph, f"{name}_zero_point", np.zeros(scales.shape, zero_dtype))
    attributes = [ir.AttrInt64("axis", axis)] if scales.ndim else []
    node = ir.Node("", "DequantizeLinear", [integers, scale, zero], attributes, name=f"{name}_dequantize")
    result = node.outputs[0]
    result.name, result.shape = fresh_name(graph, f"{name}_dequantized"), integers.shape
    result.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return result
