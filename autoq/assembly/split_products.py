"""Rewrite a matrix product as an integer one and, beside it, a small float one of the input's outliers.

y = W x is W₁ x₁ + W₂ x₂: x₂ are the few channels of large values, x₁ all channels with these left out.
Integers stand for all of x, where outliers saturate: their rows of the integer weights are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from autoq.assembly.biases import product_bias
from autoq.assembly.kernels import put_kernel
from autoq.assembly.products import product_weights, weight_name
from autoq.calibration.outliers import Outliers
from autoq.core.choices import Choice
from autoq.graph.layers import channel_axis
from autoq.graph.values import add_initializer, constant, fresh_name
from autoq.variants.variant import Variant


def shared_names(source: str) -> tuple[str, str]:
    """Name the nodes that quantise a tensor and pick its outliers: layers that read it share them."""
    return f"{source}_quantize_rest", f"{source}_pick_outliers"


def own_names(layer: str) -> tuple[str, str]:
    """Name the nodes that multiply a layer's outliers and add what comes out."""
    return f"{layer}_outliers", f"{layer}_sum"


@dataclass(frozen=True)
class SplitTensor:
    """A layer's input as integers over the range of most channels, and the other channels as they are."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    picked: ir.Value | None  # None where there is none
    outliers: Outliers


def split_tensor(graph: ir.Graph, before: ir.Node, source: ir.Value, outliers: Outliers) -> SplitTensor:
    """Quantise a tensor over the range without its outliers, and pick these out of it."""
    name, params = str(source.name), outliers.params
    quantizing, picking = shared_names(name)
    scale = add_initializer(graph, f"{name}_rest_scale", np.array(params.scale, np.float32))
    zero = add_initializer(graph, f"{name}_rest_zero_point", np.array(params.zero_point, params.dtype))
    quantize = ir.Node("", "QuantizeLinear", [source, scale, zero], name=quantizing)
    integers = quantize.outputs[0]
    integers.name, integers.shape = fresh_name(graph, f"{name}_rest_quantized"), source.shape
    integers.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(params.dtype)))
    graph.insert_before(before, quantize)
    if not outliers.channels:
        return SplitTensor(integers, scale, zero, None, outliers)
    channels = add_initializer(graph, f"{name}_outlier_channels", np.array(outliers.channels, np.int64))
    pick = ir.Node("", "Gather", [source, channels], [ir.AttrInt64("axis", -1)], name=picking)
    picked = pick.outputs[0]
    picked.name, picked.type = fresh_name(graph, f"{name}_outliers"), source.type
    if source.shape is not None:
        picked.shape = ir.Shape([*source.shape[:-1], len(outliers.channels)])
    graph.insert_before(before, pick)
    return SplitTensor(integers, scale, zero, picked, outliers)


def use_split_product(
    model: ir.Model, node: ir.Node, choice: Choice, variant: Variant, split: SplitTensor
) -> None:
    """Write the fused integer kernel, the float product of the outliers, and their sum."""
    graph, kept = model.graph, _outlier_weights(model.graph, node, split.outliers)
    grid, scales, zeros = product_weights(model, node, choice, variant)
    bias = product_bias(graph, node, variant.correction)
    inputs = [split.integers, grid, split.scale, scales, split.zero_point, zeros, bias]
    kernel = put_kernel(model, node, "MatMulIntegerToFloat", inputs, {})
    if split.picked is None:
        return
    product, wanted = kernel.outputs[0], kernel.outputs[0].name
    multiplying, adding = own_names(str(node.name))
    beside = ir.Node("", "MatMul", [split.picked, kept], name=multiplying)
    total = ir.Node("", "Sum", [product, beside.outputs[0]], name=adding)
    for value in (beside.outputs[0], total.outputs[0]):
        value.shape, value.type = product.shape, product.type
    product.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
    total.replace_input_with(0, product)
    product.name = fresh_name(graph, f"{wanted}_rest")
    beside.outputs[0].name, total.outputs[0].name = fresh_name(graph, f"{wanted}_outliers"), wanted
    graph.insert_after(kernel, [beside, total])


def _outlier_weights(graph: ir.Graph, node: ir.Node, outliers: Outliers) -> ir.Value | None:
    """Add the float weights of the outliers, (outliers, outputs); None where there are none."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if not outliers.channels:
        return None
    by_input = weight if channel_axis(node) == 1 else weight.T
    rows = np.ascontiguousarray(by_input[list(outliers.channels)])
    return add_initializer(graph, f"{weight_name(node)}_outliers", rows)
