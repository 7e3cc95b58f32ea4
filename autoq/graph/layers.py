"""Find what can be compressed: layers with a weight, and weightless ops that can run in int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from autoq.core.errors import ModelError
from autoq.core.layers import Layer, OpFamily, TensorSpec, WeightlessOp
from autoq.graph.values import constant

_FAMILIES = {
    "Add": OpFamily.ADD,
    "Mul": OpFamily.MUL,
    "Concat": OpFamily.CONCAT,
    "AveragePool": OpFamily.POOL,
    "GlobalAveragePool": OpFamily.POOL,
    "MaxPool": OpFamily.POOL,
    "Sigmoid": OpFamily.ACTIVATION,
    "LeakyRelu": OpFamily.ACTIVATION,
    "Softmax": OpFamily.SOFTMAX,
    "MatMul": OpFamily.MATMUL,
}


def find_layers(model: ir.Model) -> list[Layer]:
    """Return the compressible layers in graph order.

    Raises:
        ModelError: A weight is NaN or infinite.
    """
    layers = [_layer(node) for node in model.graph if is_layer(node)]
    for layer, node in zip(layers, (n for n in model.graph if is_layer(n)), strict=True):
        weight = constant(node.inputs[1])
        assert weight is not None
        if not np.isfinite(weight).all():
            raise ModelError(f"layer {layer.name!r} has NaN or infinite weights")
    return layers


def is_layer(node: ir.Node) -> bool:
    """Whether a node has a float weight of its own that autoq can compress."""
    if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.dtype != np.float32 or node.inputs[0] is None:
        return False
    if constant(node.inputs[0]) is not None:
        return False
    if node.op_type in ("Conv", "ConvTranspose"):
        return weight.ndim >= 3 and _bias_is_constant(node)
    if node.op_type == "MatMul":
        return weight.ndim == 2
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return plain and node.attributes.get_int("transA", 0) == 0 and _bias_is_constant(node)


def _bias_is_constant(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias, weight = constant(node.inputs[2]), constant(node.inputs[1])
    if bias is None or weight is None or bias.ndim != 1:
        return False
    # Gemm alone broadcasts its bias; the kernels that replace it do not.
    return node.op_type != "Gemm" or bias.size == weight.shape[channel_axis(node)]


def channel_axis(node: ir.Node) -> int:
    """Axis of the weight that runs over output channels."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _layer(node: ir.Node) -> Layer:
    weight = constant(node.inputs[1])
    assert weight is not None
    assert node.name is not None
    return Layer(
        name=node.name,
        op=node.op_type,
        weight_shape=tuple(weight.shape),
        channel_axis=channel_axis(node),
        group=node.attributes.get_int("group", 1),
        has_bias=len(node.inputs) > 2 and node.inputs[2] is not None,
    )


def find_ops(model: ir.Model) -> list[WeightlessOp]:
    """Return the float ops without a weight that have an int8 kernel somewhere, in graph order."""
    found = []
    for node in model.graph:
        family = _FAMILIES.get(node.op_type) if node.domain == "" else None
        if family is None or is_layer(node) or not _is_float(node):
            continue
        if node.op_type == "AveragePool" and node.attributes.get_int("ceil_mode", 0) != 0:
            continue  # ONNX Runtime's integer kernel averages the last, partial window differently
        if any(constant(value) is not None for value in node.inputs if value is not None):
            continue  # arithmetic with a constant stays float: biases, masks and scales are cheap
        assert node.name is not None
        found.append(WeightlessOp(node.name, node.op_type, family))
    return found


def _is_float(node: ir.Node) -> bool:
    values = [value for value in (*node.inputs, *node.outputs[:1]) if value is not None]
    return all(value.dtype is ir.DataType.FLOAT for value in values)


def tensor_spec(value: ir.Value) -> TensorSpec:
    """Describe a graph input or output.

    Raises:
        ModelError: Its type is not that of a tensor.
    """
    if value.dtype is None:
        raise ModelError(f"{value.name!r} is not a tensor; autoq takes models of tensors only")
    axes: list[int | str | None] = []
    for axis in value.shape or ():
        axes.append(axis if isinstance(axis, int) else axis.value)
    return TensorSpec(str(value.name), value.dtype.numpy().name, tuple(axes))
