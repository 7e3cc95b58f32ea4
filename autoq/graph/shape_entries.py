"""Entries of the shapes that Reshape, Expand and Resize are given: constants, or joined from parts."""

from __future__ import annotations

import onnx_ir as ir

from autoq.graph.values import add_initializer, constant

# Which input of a node is the shape that it is to produce.
SHAPE_INPUT = {"Reshape": 1, "Expand": 1, "Resize": 3}


def given_shape(node: ir.Node) -> ir.Value | None:
    """Return the input that holds the shape a node is to produce, if it has one."""
    index = SHAPE_INPUT.get(node.op_type)
    return None if index is None or index >= len(node.inputs) else node.inputs[index]


def entry(shape: ir.Value, axis: int) -> int | None:
    """Return one entry of a shape, or None where it is computed or not known."""
    found = _locate(shape, axis)
    if found is None:
        return None
    holder, position = found
    array = constant(holder)
    return None if array is None else int(array.reshape(-1)[position])


def set_entry(graph: ir.Graph, node: ir.Node, axis: int, size: int) -> None:
    """Change one constant entry of the shape that a node is given, for this node only."""
    index = SHAPE_INPUT[node.op_type]
    shape = node.inputs[index]
    assert shape is not None
    found = _locate(shape, axis)
    assert found is not None
    holder, position = found
    array = constant(holder)
    assert array is not None
    changed = array.reshape(-1).copy()
    changed[position] = size
    value = add_initializer(graph, f"{holder.name}_narrow", changed)
    if holder is not shape:
        value = _copied_concat(graph, node, shape, holder, value)
    node.replace_input_with(index, value)


def _locate(shape: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
    """Find the constant that holds an entry, and where in it."""
    array = constant(shape)
    if array is not None:
        return (shape, axis) if axis < array.size else None
    concat = shape.producer()
    if concat is None or (concat.domain, concat.op_type) != ("", "Concat"):
        return None
    for part in concat.inputs:
        length = None if part is None or part.shape is None else part.shape[0]
        if part is None or not isinstance(length, int):
            return None
        if axis < length:
            return (part, axis) if constant(part) is not None else None
        axis -= length
    return None


def _copied_concat(graph: ir.Graph, node: ir.Node, shape: ir.Value, old: ir.Value, new: ir.Value) -> ir.Value:
    """Join a shape anew with another part: other nodes may read the old one."""
    concat = shape.producer()
    assert concat is not None
    parts = [new if part is old else part for part in concat.inputs]
    copy = ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 0)], num_outputs=1)
    copy.name = f"{node.name}_shape"
    result = copy.outputs[0]
    result.name, result.shape, result.type = f"{new.name}_shape", shape.shape, shape.type
    graph.insert_before(node, copy)
    return result
