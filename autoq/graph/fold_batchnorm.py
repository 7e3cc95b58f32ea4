"""Rewrite: fold a BatchNormalization into the Conv, ConvTranspose or Gemm before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from autoq.graph.values import constant, only_consumer, set_initializer


class FoldBatchNorm(ir.passes.InPlacePass):
    """y = g (conv(x) - m) / sqrt(v + e) + b becomes one convolution with scaled weights and a bias."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every batch norm that has a foldable producer of its own."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "BatchNormalization" and node.domain == "" and not _is_training(node):
                modified |= _fold(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _is_training(norm: ir.Node) -> bool:
    """Whether it normalises by the batch's own statistics, as nothing stored can."""
    return norm.attributes.get_int("training_mode", 0) != 0


def _fold(graph: ir.Graph, norm: ir.Node) -> bool:
    source = norm.inputs[0]
    layer = source.producer() if source is not None else None
    if layer is None or layer.domain != "" or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    assert source is not None
    if only_consumer(source) is not norm or any(output.uses() for output in norm.outputs[1:]):
        return False
    gamma, beta, mean, variance = (constant(value) for value in norm.inputs[1:5])
    weight = constant(layer.inputs[1])
    if weight is None or gamma is None or beta is None or mean is None or variance is None:
        return False
    old_bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    bias = np.zeros_like(mean) if old_bias is None else constant(old_bias)
    axis = _channel_axis(layer)
    if axis is None or bias is None or weight.shape[axis] != len(gamma):
        return False

    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    shape = [1] * weight.ndim
    shape[axis] = -1
    weight_value = layer.inputs[1]
    assert weight_value is not None
    name = weight_value.name or "weight"
    set_initializer(graph, layer, 1, name, (weight * factor.reshape(shape)).astype(weight.dtype))
    new_bias = (bias - mean) * factor + beta
    bias_name = old_bias.name if old_bias is not None and old_bias.name else f"{name}_bias"
    set_initializer(graph, layer, 2, bias_name, new_bias.astype(weight.dtype))
    norm.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
    layer.outputs[0].name = norm.outputs[0].name  # which a graph output may not lose, nor its type and shape
    layer.outputs[0].type = layer.outputs[0].type or norm.outputs[0].type
    layer.outputs[0].shape = layer.outputs[0].shape or norm.outputs[0].shape
    graph.remove(norm, safe=True)
    return True


def _channel_axis(layer: ir.Node) -> int | None:
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1 if layer.attributes.get_int("group", 1) == 1 else None
    plain = layer.attributes.get_float("alpha", 1.0) == 1.0 and layer.attributes.get_float("beta", 1.0) == 1.0
    return (0 if layer.attributes.get_int("transB", 0) else 1) if plain else None
