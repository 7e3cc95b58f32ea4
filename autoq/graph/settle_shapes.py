"""Rewrite: the shape that a Reshape is given becomes a constant where that says enough.

All entries but one have to be known, or be the lengths of the same axes of what is reshaped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from autoq.graph.values import add_initializer, constant

Entry = int | str | None  # a str names a dynamic axis, None is not known
_MAX_ENTRIES = 16


class SettleShapes(ir.passes.InPlacePass):
    """Exporters compute shapes from shapes even where axes are static."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Settle every Reshape; what computed its shape is left unused."""
        modified = False
        for node in model.graph:
            if (node.domain, node.op_type) == ("", "Reshape"):
                modified |= _settle(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _settle(graph: ir.Graph, node: ir.Node) -> bool:
    shape = node.inputs[1]
    entries = None if shape is None or constant(shape) is not None else _entries(shape)
    if entries is None or 0 in entries:  # 0 copies an axis, or is an empty one
        return False
    _note_shape(node.outputs[0], entries)
    target = reshape_target(entries, node.inputs[0])
    if target.count(-1) > 1:
        return False
    settled = add_initializer(graph, f"{node.name}_shape", np.array(target, np.int64))
    node.replace_input_with(1, settled)
    node.attributes.pop("allowzero", None)
    return True


def reshape_target(entries: Sequence[Entry], source: ir.Value | None) -> list[int]:
    """Write a shape with 0 for what is as long as the same axis of the source, -1 for all else unknown."""
    dims = [] if source is None or source.shape is None else list(source.shape)
    names = [None if isinstance(size, int) else size.value for size in dims]
    target = []
    for axis, one in enumerate(entries):
        if isinstance(one, int):
            target.append(one)
        else:
            target.append(0 if one is not None and names[axis : axis + 1] == [one] else -1)
    return target


def _note_shape(result: ir.Value, entries: list[Entry]) -> None:
    """Note what is known of the result's shape beside what inference found."""
    if result.shape is not None and len(result.shape) != len(entries):
        return
    old = [None] * len(entries) if result.shape is None else list(result.shape)
    named = [None if isinstance(one, int) and one < 0 else one for one in entries]
    result.shape = ir.Shape([size if one is None else one for one, size in zip(named, old, strict=True)])


def _entries(value: ir.Value | None) -> list[Entry] | None:
    """What is known of a vector of integers that is computed from shapes; None if nothing is."""
    array = constant(value)
    if array is not None:
        small = array.dtype == np.int64 and array.ndim <= 1 and array.size <= _MAX_ENTRIES
        return [int(one) for one in array.reshape(-1)] if small else None
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Shape":
        return _lengths(node)
    if node.op_type == "Concat":
        return _joined(node)
    first = _entries(node.inputs[0])
    if first is None:
        return None
    if node.op_type in ("Slice", "Gather"):
        return _picked(node, first)
    if node.op_type == "Mul":
        return _multiplied(first, _entries(node.inputs[1]))
    return first if node.op_type in ("Identity", "Reshape", "Squeeze", "Unsqueeze") else None


def _lengths(node: ir.Node) -> list[Entry] | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    sizes: list[Entry] = [size if isinstance(size, int) else size.value for size in value.shape]
    return sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(sizes))]


def _joined(node: ir.Node) -> list[Entry] | None:
    joined: list[Entry] = []
    for part in node.inputs:
        entries = _entries(part)
        if entries is None:  # of one entry at least its place is known
            if part is None or part.shape is None or part.shape.numpy() != (1,):
                return None
            entries = [None]
        joined += entries
    return joined


def _picked(node: ir.Node, entries: list[Entry]) -> list[Entry] | None:
    if node.op_type == "Gather":
        indices = constant(node.inputs[1])
        return None if indices is None else [entries[int(one)] for one in indices.reshape(-1)]
    starts, ends = (constant(value) for value in node.inputs[1:3])
    if starts is None or ends is None or starts.size != 1 or len(node.inputs) > 4:
        return None
    return entries[int(starts[0]) : int(ends[0])]


def _multiplied(first: list[Entry], second: list[Entry] | None) -> list[Entry] | None:
    if second is None or len(first) != len(second):
        return None
    return [
        a * b if isinstance(a, int) and isinstance(b, int) else None
        for a, b in zip(first, second, strict=True)
    ]
