"""Rewrite: the Add before a layer norm becomes a Sum, which is not joined with the norm.

ONNX Runtime joins Add and LayerNormalization into SkipLayerNormalization, whose CPU kernel takes several
times as long as both apart: of an int8 MiniLM a quarter of the time went there (`experiments/search`, part
`handmade`, has both). Where the Add is chosen int8 it is written as an Add again.
"""

from __future__ import annotations

import onnx_ir as ir

from autoq.graph.values import constant


class KeepNormsApart(ir.passes.InPlacePass):
    """Add of two computed tensors right before LayerNormalization, or before a norm that is spelt out."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename every such Add."""
        modified = False
        for node in model.graph.all_nodes():
            if _is_sum_of_two(node) and _feeds_norm(node.outputs[0]):
                node.op_type = "Sum"
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_sum_of_two(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Add") or node.outputs[0].dtype is not ir.DataType.FLOAT:
        return False
    return all(value is not None and constant(value) is None for value in node.inputs)


def _feeds_norm(value: ir.Value) -> bool:
    return any(_is_norm(use.node, value) for use in value.uses())


def _is_norm(node: ir.Node, source: ir.Value) -> bool:
    """Whether a node normalises its source, or takes the mean that another subtracts from it."""
    if node.domain != "" or node.inputs[0] is not source:
        return False
    if node.op_type == "LayerNormalization":
        return True
    readers = [use.node for use in node.outputs[0].uses()]
    return node.op_type == "ReduceMean" and any(
        one.op_type == "Sub" and source in one.inputs for one in readers
    )
