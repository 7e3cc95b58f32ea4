"""Rewrite: a mean over both spatial axes becomes GlobalAveragePool, which has an int8 kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from autoq.graph.values import add_initializer, constant, rank_of


class UseGlobalPool(ir.passes.InPlacePass):
    """ReduceMean over axes 2 and 3 of a rank-4 tensor; a dropped axis pair is reshaped away."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every such mean."""
        modified = False
        for node in list(model.graph):
            if _is_spatial_mean(node):
                _replace(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_spatial_mean(node: ir.Node) -> bool:
    if node.outputs[0].dtype is not ir.DataType.FLOAT:
        return False
    if node.op_type != "ReduceMean" or node.domain != "" or rank_of(node.inputs[0]) != 4:
        return False
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if given is None else [int(axis) for axis in given.reshape(-1)]
    return sorted(axis % 4 for axis in axes) == [2, 3]


def _replace(graph: ir.Graph, mean: ir.Node) -> None:
    pool = ir.Node("", "GlobalAveragePool", [mean.inputs[0]], num_outputs=1, name=mean.name)
    pool.metadata_props.update(mean.metadata_props)
    old = mean.outputs[0]
    new_nodes = [pool]
    result = pool.outputs[0]
    result.type = old.type
    if not mean.attributes.get_int("keepdims", 1):
        # 0 keeps the batch axis as it is, whether static or dynamic.
        shape = add_initializer(graph, f"{mean.name or 'pool'}_shape", np.array([0, -1], np.int64))
        assert mean.inputs[0] is not None
        assert mean.inputs[0].shape is not None
        result.name, result.shape = f"{old.name}_pooled", ir.Shape([*mean.inputs[0].shape[:2], 1, 1])
        reshape = ir.Node(
            "", "Reshape", [result, shape], num_outputs=1, name=f"{mean.name or 'pool'}_flatten"
        )
        reshape.metadata_props.update(mean.metadata_props)
        new_nodes.append(reshape)
        result = reshape.outputs[0]
    result.name, result.shape, result.type = old.name, old.shape, old.type
    graph.insert_before(mean, new_nodes)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(mean, safe=True)
