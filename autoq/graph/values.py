"""Small questions about the values of a graph, asked by every rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.core.names import unique_name

_NAMES = "autoq.names"


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the array of an initializer, or None for anything computed or fed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value, or None if several do, none does, or it is an output.

    A node in the body of a control-flow node does not count: nothing can be folded across that border.
    """
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, producer = next(iter(uses)).node, value.producer()
    return node if producer is None or node.graph is producer.graph else None


def claim_names(graph: ir.Graph) -> None:
    """Remember every name in a graph, so that new values get names of their own, and get them fast."""
    names = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        names.update(value.name for value in node.outputs)
        if node.graph is not None and node.graph is not graph and isinstance(node.graph, ir.Graph):
            names.update(node.graph.initializers)
    graph.meta[_NAMES] = names


def fresh_name(graph: ir.Graph, wanted: str) -> str:
    """Return `wanted`, or a free variation of it, and take it; see `claim_names`."""
    taken = graph.meta.get(_NAMES)
    if taken is None:
        return unique_name(wanted, graph.initializers)
    name = unique_name(wanted, taken)
    taken.add(name)
    return name


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """Add an initializer under `name`, or a free variation of it."""
    name = fresh_name(graph, name)
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


def change_constant(
    graph: ir.Graph, node: ir.Node, index: int, array: npt.NDArray[np.generic], why: str
) -> None:
    """Change a constant for one node only: under its old name, or as a copy where others read it too.

    `why` becomes part of the name of a copy.
    """
    old = node.inputs[index]
    assert old is not None
    if len(old.uses()) > 1 or old.is_graph_output():
        node.replace_input_with(index, add_initializer(graph, f"{old.name}_{why}", array))
        return
    # A new tensor, not a new content of the old one: clones of the model share that.
    old.const_value = ir.Tensor(np.ascontiguousarray(array), name=old.name)
    old.shape = ir.Shape(array.shape)


def drop_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove an initializer that nothing reads any more."""
    if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(str(value.name), None)


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of axes, or None when it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)
