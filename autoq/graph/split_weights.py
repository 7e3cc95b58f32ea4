"""Rewrite: cut stored weights where a Split does, as exporters of packed projections leave it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.graph.values import add_initializer, constant


class SplitWeights(ir.passes.InPlacePass):
    """Give the readers of each part of a stored tensor a tensor of their own."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the graph."""
        modified = False
        for node in list(model.graph):
            parts = _parts(node)
            if parts is None or any(output.is_graph_output() for output in node.outputs):
                continue
            for output, part in zip(node.outputs, parts, strict=True):
                if output.uses():
                    output.replace_all_uses_with(add_initializer(model.graph, str(output.name), part))
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _parts(node: ir.Node) -> list[npt.NDArray[np.generic]] | None:
    """What a Split makes of a stored tensor; None if it is another node, or of another tensor."""
    whole = constant(node.inputs[0]) if node.op_type == "Split" and node.domain == "" else None
    if whole is None:
        return None
    axis, n_parts = node.attributes.get_int("axis", 0), len(node.outputs)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    lengths = constant(given)
    if lengths is None and given is not None:
        return None
    if lengths is None:  # even parts, the last one shorter
        lengths = np.full(n_parts, -(-whole.shape[axis] // n_parts))
    return np.split(whole, np.cumsum(lengths)[:-1], axis=axis)
