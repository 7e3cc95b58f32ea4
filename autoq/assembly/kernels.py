"""Put a kernel of ONNX Runtime's own in the place of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from autoq.graph.blocks import bias_add
from autoq.graph.values import drop_unused

CONTRIB = "com.microsoft"


def put_kernel(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | str],
) -> ir.Node:
    """Replace a layer, and the bias Add that a MatMul absorbs; weights that nothing else reads go.

    The kernel, which is returned, takes over the name of the layer and the names of what it writes.
    """
    graph = model.graph
    add = bias_add(node) if node.op_type == "MatMul" else None
    replaced = [node] if add is None else [add, node]
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    attrs = [_attribute(name, value) for name, value in attributes.items()]
    results = replaced[0].outputs
    fresh = ir.Node(CONTRIB, op_type, given, attrs, name=node.name, num_outputs=len(results))
    graph.insert_before(node, fresh)
    for old, new in zip(results, fresh.outputs, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    unused = [value for one in replaced for value in one.inputs]
    graph.remove(replaced, safe=True)
    for value in unused:
        drop_unused(graph, value)
    model.opset_imports.setdefault(CONTRIB, 1)
    return fresh


def _attribute(name: str, value: int | str) -> ir.Attr:
    return ir.AttrString(name, value) if isinstance(value, str) else ir.AttrInt64(name, value)
