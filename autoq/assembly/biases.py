"""Add to the bias of a layer what rounding its weights takes from the mean of its outputs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.core.layers import GATES
from autoq.graph.blocks import bias_add
from autoq.graph.layers import bias_input, weight_input
from autoq.graph.values import add_initializer, constant, set_initializer

Float = npt.NDArray[np.float32]


def correct_bias(graph: ir.Graph, node: ir.Node, correction: Float) -> None:
    """Add a correction to a layer's float bias, which other readers of that bias do not see.

    A Conv, ConvTranspose, Gemm, LSTM or GRU without a bias gets one. A MatMul has none of its own: the
    Add right after it is corrected if there is one, else nothing happens; see `product_bias`.

    Args:
        graph: The graph the layer is in.
        node: The layer, its weights still float; a Gather has no bias to correct.
        correction: Shape (output channels,), in the order of the flat rows of all groups; empty or all
            zero changes nothing.
    """
    if not correction.any() or node.op_type == "Gather":
        return
    if node.op_type != "MatMul":
        _add_to_input(graph, node, bias_input(node), _of_gates(node, correction))
        return
    add = bias_add(node)
    if add is not None:
        _add_to_input(graph, add, 1 if add.inputs[0] is node.outputs[0] else 0, correction)


def product_bias(graph: ir.Graph, node: ir.Node, correction: Float) -> ir.Value | None:
    """Bias for a kernel that replaces a Gemm or MatMul, after `correct_bias`; None if there is none."""
    if node.op_type == "Gemm":
        return node.inputs[2] if len(node.inputs) > 2 else None
    add = bias_add(node)
    if add is not None:
        return add.inputs[1 if add.inputs[0] is node.outputs[0] else 0]
    return add_initializer(graph, _name_for_bias(node), correction) if correction.any() else None


def _add_to_input(graph: ir.Graph, node: ir.Node, index: int, correction: Float) -> None:
    old = node.inputs[index] if index < len(node.inputs) else None
    bias = constant(old)
    summed = correction if bias is None else bias.astype(np.float64) + correction
    name = str(old.name) if old is not None else _name_for_bias(node)
    set_initializer(graph, node, index, name, summed.astype(np.float32))


def _name_for_bias(node: ir.Node) -> str:
    weight = node.inputs[weight_input(node)]
    return f"{node.name if weight is None else weight.name}_bias"


def _of_gates(node: ir.Node, correction: Float) -> Float:
    """For an LSTM or GRU: (directions, 2 * gates * hidden), all of it in the half that goes with W."""
    if node.op_type not in GATES:
        return correction
    recurrence = constant(node.inputs[2])
    assert recurrence is not None
    rows = correction.reshape(len(recurrence), -1)
    return np.concatenate([rows, np.zeros_like(rows)], axis=1)
