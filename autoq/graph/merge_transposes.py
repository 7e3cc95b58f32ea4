"""Rewrite: a transpose of the last two axes between two reshapes that undo each other stands alone.

Torch transposes keys of scaled_dot_product_attention with batches and heads in one axis, which hides
the heads where the length of the batch is not known.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from autoq.graph.values import constant, only_consumer

_Size = int | ir.SymbolicDim


class MergeTransposes(ir.passes.InPlacePass):
    """Reshape (b, h, s, d) to (b * h, s, d), transpose, reshape to (b, h, d, s)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every such run of nodes."""
        modified = False
        for node in list(model.graph):
            if (run := _matched(node)) is not None:
                _replace(model.graph, *run)
                modified = True
        return ir.passes.PassResult(model, modified)


def _matched(merge: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    if (merge.domain, merge.op_type) != ("", "Reshape"):
        return None
    transpose = only_consumer(merge.outputs[0])
    if transpose is None or transpose.op_type != "Transpose" or transpose.domain != "":
        return None
    if tuple(transpose.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    part = only_consumer(transpose.outputs[0])
    if part is None or (part.domain, part.op_type) != ("", "Reshape") or constant(part.inputs[0]) is not None:
        return None
    ends = [merge.inputs[0], merge.outputs[0], part.outputs[0]]
    shapes = [None if value is None or value.shape is None else tuple(value.shape) for value in ends]
    if shapes[0] is None or shapes[1] is None or shapes[2] is None:
        return None
    whole, merged, parted = shapes[0], shapes[1], shapes[2]
    if len(whole) != 4 or len(parted) != 4 or not _are_equal(whole[2:], merged[1:]):
        return None
    back = (parted[0], parted[1], parted[3], parted[2])
    # The number of elements is the same, so of the four one may be unknown.
    equal = sum(_are_equal([one], [other]) for one, other in zip(whole, back, strict=True))
    return (merge, transpose, part) if equal >= 3 else None


def _are_equal(sizes: Sequence[_Size], others: Sequence[_Size]) -> bool:
    """Whether lengths are the same for sure: equal numbers, or axes of one name."""
    if len(sizes) != len(others):
        return False
    return all(
        one == other if isinstance(one, int) else one.value is not None and one == other
        for one, other in zip(sizes, others, strict=True)
    )


def _replace(graph: ir.Graph, merge: ir.Node, transpose: ir.Node, part: ir.Node) -> None:
    single = ir.Node(
        "", "Transpose", [merge.inputs[0]], [ir.AttrInt64s("perm", (0, 1, 3, 2))], name=transpose.name
    )
    old, new = part.outputs[0], single.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(merge, single)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([part, transpose, merge], safe=True)
