"""Rewrite: MatMul + constant Add on rank-2 inputs becomes Gemm, which takes its bias as an input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from autoq.graph.values import constant, only_consumer, rank_of


class FoldMatMulBias(ir.passes.InPlacePass):
    """Only rank 2: Gemm has no batch axes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every MatMul that has a bias Add of its own."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "MatMul" and node.domain == "" and rank_of(node.inputs[0]) == 2:
                modified |= _fold(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _fold(graph: ir.Graph, matmul: ir.Node) -> bool:
    weight = constant(matmul.inputs[1])
    add = only_consumer(matmul.outputs[0])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return False
    if add is None or add.op_type != "Add" or add.domain != "":
        return False
    bias_value = next(value for value in add.inputs if value is not matmul.outputs[0])
    bias = constant(bias_value)
    if bias is None or bias.shape != (weight.shape[1],):
        return False
    gemm = ir.Node("", "Gemm", [*matmul.inputs, bias_value], name=matmul.name, num_outputs=1)
    gemm.metadata_props.update(matmul.metadata_props)
    old, new = add.outputs[0], gemm.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(matmul, gemm)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([add, matmul], safe=True)
    return True
