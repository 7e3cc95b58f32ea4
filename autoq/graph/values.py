"""Small questions about the values of a graph, asked by every rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.core.names import unique_name


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the array of an initializer, or None for anything computed or fed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value, or None if several do, none does, or it is an output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """Add an initializer under `name`, or a free variation of it."""
    name = unique_name(name, graph.initializers)
    tensor = ir.Tensor(np.asarray(array, order="C"), name=name) if isinstance(array, np.ndarray) else array
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def set_initializer(graph: ir.Graph, node: ir.Node, index: int, name: str, array: npt.NDArray[Any]) -> None:
    """Make input `index` of a node an initializer of this content.

    The old initializer goes if nothing else reads it, and its name is used again.
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, None)
    drop_unused(graph, old)
    node.replace_input_with(index, add_initializer(graph, name, array))


def drop_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove an initializer that nothing reads any more."""
    if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(str(value.name), None)


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of axes, or None when it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)
