"""Parts of a graph, from its inputs to values in its middle: what is run to correct layers in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from autoq.graph.float_model import FloatModel, describe_graph


def by_depth(graph: ir.Model, is_wanted: Callable[[ir.Node], bool]) -> list[list[ir.Node]]:
    """List the wanted nodes that do not depend on each other, those with the fewest before them first."""
    depths: dict[ir.Value, int] = {}
    found: defaultdict[int, list[ir.Node]] = defaultdict(list)
    for node in graph.graph:
        depth = max((depths.get(value, 0) for value in node.inputs if value is not None), default=0)
        if is_wanted(node):
            found[depth].append(node)
            depth += 1
        depths.update(dict.fromkeys(node.outputs, depth))
    return [found[depth] for depth in sorted(found)]


def cut_after(graph: ir.Model, values: Sequence[str]) -> FloatModel:
    """Return the part of a model that makes some values."""
    part = graph.clone()
    produced = {output.name: output for node in part.graph for output in node.outputs}
    part.graph.outputs[:] = [produced[name] for name in values]
    common.RemoveUnusedNodesPass()(part)
    return describe_graph(part, is_part=True)
