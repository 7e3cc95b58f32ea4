"""Rewrite: where a Transpose moves an axis that is split afterwards, it is split before.

Torch's attention transposes with batches and heads in one axis. Where the length of the batch is not
known, that hides which of the axis are heads; with the axis split it shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from autoq.graph.channel_labels import Dims, segments
from autoq.graph.channel_trace import dims_of
from autoq.graph.settle_shapes import reshape_target
from autoq.graph.values import add_initializer, constant, only_consumer


class SplitBeforeTranspose(ir.passes.InPlacePass):
    """Reshape, Transpose, Reshape becomes Reshape, Transpose: as one sees it for (b * h, s, d)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every such run of nodes."""
        modified = False
        for node in list(model.graph):
            if (run := _matched(node)) is not None:
                _replace(model.graph, run)
                modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class _Run:
    """Nodes to be replaced, the shape to be transposed, and how."""

    merge: ir.Node
    transpose: ir.Node
    split: ir.Node
    target: list[int]
    dims: Dims
    order: list[int]


def _matched(merge: ir.Node) -> _Run | None:
    transpose = _next(merge, "Transpose") if _is(merge, "Reshape") else None
    split = None if transpose is None else _next(transpose, "Reshape")
    if transpose is None or split is None or constant(split.inputs[0]) is not None:
        return None
    turned, parted = dims_of(transpose.outputs[0]), dims_of(split.outputs[0])
    if turned is None or parted is None or all(isinstance(size, int) for size in turned):
        return None
    pairs = [(ins, outs) for ins, outs in segments(turned, parted) if len(ins) or len(outs)]
    if any(len(ins) != 1 or not len(outs) for ins, outs in pairs):
        return None
    default = tuple(reversed(range(len(turned))))
    moved = list(transpose.attributes.get_ints("perm", default))
    # Axis `moved[i]` of what is transposed becomes axis i, which is split into the axes pairs[i][1].
    parts = [list(pairs[moved.index(axis)][1]) for axis in range(len(moved))]
    before = [place for part in parts for place in part]
    dims = tuple(parted[place] for place in before)
    target = reshape_target(list(dims), merge.inputs[0])
    if target.count(-1) > 1:
        return None
    return _Run(merge, transpose, split, target, dims, [before.index(place) for place in range(len(before))])


def _is(node: ir.Node, op_type: str) -> bool:
    return (node.domain, node.op_type) == ("", op_type)


def _next(node: ir.Node, op_type: str) -> ir.Node | None:
    """The one node that reads a node's output, if it is of this type and does not read it as a shape."""
    consumer = only_consumer(node.outputs[0])
    if consumer is None or not _is(consumer, op_type) or consumer.inputs[0] is not node.outputs[0]:
        return None
    return consumer


def _replace(graph: ir.Graph, run: _Run) -> None:
    shape = add_initializer(graph, f"{run.split.name}_parts", np.array(run.target, np.int64))
    reshape = ir.Node("", "Reshape", [run.merge.inputs[0], shape], name=run.split.name)
    transpose = ir.Node(
        "", "Transpose", [reshape.outputs[0]], [ir.AttrInt64s("perm", run.order)], name=run.transpose.name
    )
    middle, old, new = reshape.outputs[0], run.split.outputs[0], transpose.outputs[0]
    middle.name, middle.shape, middle.type = f"{old.name}_parts", ir.Shape(run.dims), old.type
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(run.merge, [reshape, transpose])
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([run.split, run.transpose, run.merge], safe=True)
