"""Rewrite: drop nodes that hand on what they read."""

from __future__ import annotations

import onnx_ir as ir


class DropIdentities(ir.passes.InPlacePass):
    """Let whoever reads an Identity read what it reads.

    Those in the body of a control-flow node stay: what a body gives has to be written in it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop every Identity of the main graph that is not needed to give an output its name."""
        found = [node for node in model.graph if _may_go(node)]
        for node in found:
            if _may_go(node):  # two outputs may be one value, which has only one name to give
                _drop(node)
        return ir.passes.PassResult(model, modified=bool(found))


def _may_go(node: ir.Node) -> bool:
    if node.op_type != "Identity" or node.domain != "" or len(node.inputs) != 1 or node.inputs[0] is None:
        return False
    source = node.inputs[0]
    return not node.outputs[0].is_graph_output() or (
        source.producer() is not None and not source.is_graph_output()
    )


def _drop(node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    assert node.graph is not None
    source.shape = output.shape if source.shape is None else source.shape
    source.type = output.type if source.type is None else source.type
    is_result = output.is_graph_output()
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    if is_result:
        source.name = output.name
