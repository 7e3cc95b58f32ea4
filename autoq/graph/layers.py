"""Find what can be compressed: layers with a weight, and weightless ops that can run in int8."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.core.errors import ModelError
from autoq.core.layers import GATES, Layer, OpFamily, TensorSpec, WeightlessOp
from autoq.graph.values import constant

Float = npt.NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)

_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *GATES)
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
_FAMILIES = {
    "Add": OpFamily.ADD,
    "Sum": OpFamily.ADD,  # of two: assembly writes it as an Add
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
        ModelError: A weight or a bias is NaN or infinite.
    """
    layers = []
    for node in model.graph:
        if is_layer(node):
            weight = layer_weight(node)
            layers.append(_layer(node, weight))
            if not _is_finite(node):
                raise ModelError(f"layer {layers[-1].name!r} has NaN or infinite weights or biases")
    return layers


def _is_finite(node: ir.Node) -> bool:
    stored = [constant(value) for value in node.inputs if value is not None]
    return all(np.isfinite(one).all() for one in stored if one is not None and one.dtype.kind == "f")


def is_layer(node: ir.Node) -> bool:
    """Whether a node has a float weight of its own that autoq can compress."""
    if node.domain != "" or node.op_type not in _OPS or len(node.inputs) < 2:
        return False
    index = weight_input(node)
    weight, source = constant(node.inputs[index]), node.inputs[1 - index]
    if weight is None or weight.dtype != np.float32 or source is None or constant(source) is not None:
        return False
    if node.op_type == "Gather":
        return weight.ndim == 2 and node.attributes.get_int("axis", 0) in (0, -2)
    if node.op_type in GATES:
        return weight.ndim == 3 and _is_plain_recurrence(node) and _bias_is_constant(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        return weight.ndim >= 3 and _bias_is_constant(node)
    if node.op_type == "MatMul":
        return weight.ndim == 2
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return plain and node.attributes.get_int("transA", 0) == 0 and _bias_is_constant(node)


def _is_plain_recurrence(node: ir.Node) -> bool:
    """Whether an LSTM or GRU is what integer kernels compute: default activations, nothing clipped."""
    recurrence = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if recurrence is None or recurrence.dtype != np.float32 or recurrence.ndim != 3:
        return False
    n_directions = len(recurrence)
    activations = _ACTIVATIONS[node.op_type] * n_directions
    plain = (
        node.attributes.get_int("layout", 0) == 0
        and node.attributes.get_int("input_forget", 0) == 0
        and list(node.attributes.get_strings("activations", activations)) == activations
    )
    return plain and not set(node.attributes) & {"clip", "activation_alpha", "activation_beta"}


def is_linear(node: ir.Node) -> bool:
    """Whether a layer multiplies channels of its one float input: no embedding, no recurrence."""
    return is_layer(node) and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _bias_is_constant(node: ir.Node) -> bool:
    index = bias_input(node)
    if len(node.inputs) <= index or node.inputs[index] is None:
        return True
    bias, weight = constant(node.inputs[index]), constant(node.inputs[1])
    if bias is None or weight is None:
        return False
    if node.op_type in GATES:
        return bias.dtype == np.float32
    # Gemm alone broadcasts its bias; the kernels that replace it do not.
    fits = node.op_type != "Gemm" or bias.size == weight.shape[channel_axis(node)]
    return bias.ndim == 1 and fits


def channel_axis(node: ir.Node) -> int:
    """Axis of the weight that runs over output channels."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if node.op_type in ("Conv", "Gather") else 1


def weight_input(node: ir.Node) -> int:
    """Which input of a layer is its weight; of an LSTM or GRU the first of the two."""
    return 0 if node.op_type == "Gather" else 1


def bias_input(node: ir.Node) -> int:
    """Which input of a Conv, ConvTranspose, Gemm, LSTM or GRU is its bias, whether it has one or not."""
    return 3 if node.op_type in GATES else 2


def layer_weight(node: ir.Node) -> Float:
    """Return the weight of a layer in the shape that `Layer.weight_shape` gives."""
    if node.op_type in GATES:
        return lstm_weight(node)
    weight = constant(node.inputs[weight_input(node)])
    assert weight is not None
    return weight


def lstm_weight(node: ir.Node) -> Float:
    """Return W and R of an LSTM or GRU side by side: (directions, gates * hidden, input + hidden)."""
    parts = [constant(value) for value in node.inputs[1:3]]
    return np.concatenate([part for part in parts if part is not None], axis=2)


def weight_parts(node: ir.Node, weight: npt.NDArray[Scalar]) -> list[tuple[int, npt.NDArray[Scalar]]]:
    """Split an array in the shape of a layer's weight over the inputs that hold it.

    Returns:
        (index of the input, what it holds) one after the other: two for an LSTM or GRU, else one.
    """
    if node.op_type not in GATES:
        return [(weight_input(node), weight)]
    hidden = weight.shape[1] // GATES[node.op_type]
    split = weight.shape[2] - hidden
    return [(1, weight[:, :, :split]), (2, weight[:, :, split:])]


def _layer(node: ir.Node, weight: Float) -> Layer:
    assert node.name is not None
    bias = bias_input(node)
    return Layer(
        name=node.name,
        op=node.op_type,
        weight_shape=tuple(weight.shape),
        channel_axis=channel_axis(node),
        group=len(weight) if node.op_type in GATES else node.attributes.get_int("group", 1),
        has_bias=len(node.inputs) > bias and node.inputs[bias] is not None,
    )


def find_ops(model: ir.Model) -> list[WeightlessOp]:
    """Return the float ops without a weight that have an int8 kernel somewhere, in graph order."""
    found = []
    for node in model.graph:
        family = _FAMILIES.get(node.op_type) if node.domain == "" else None
        if family is None or is_layer(node) or not _is_float(node):
            continue
        if node.op_type == "AveragePool" and not _is_plain_pool(node):
            continue
        if node.op_type == "Sum" and len(node.inputs) != 2:
            continue
        if any(constant(value) is not None for value in node.inputs if value is not None):
            continue  # arithmetic with a constant stays float: biases, masks and scales are cheap
        assert node.name is not None
        found.append(WeightlessOp(node.name, node.op_type, family))
    return found


def _is_plain_pool(node: ir.Node) -> bool:
    """ONNX Runtime's integer kernel averages a last, partial window differently, and knows no dilations."""
    is_dilated = any(dilation != 1 for dilation in node.attributes.get_ints("dilations", ()))
    return node.attributes.get_int("ceil_mode", 0) == 0 and not is_dilated


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
