"""Rewrite a matrix product as the fused integer kernel of its format."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.assembly.biases import product_bias
from autoq.assembly.insert_qdq import QuantizedTensor
from autoq.assembly.kernels import put_kernel
from autoq.assembly.weights import add_grid, pack_unsigned
from autoq.core.choices import Choice
from autoq.graph.layers import channel_axis
from autoq.graph.values import add_initializer, constant
from autoq.variants.variant import Variant


def use_static_matmul(
    model: ir.Model, node: ir.Node, choice: Choice, variant: Variant, tensor: QuantizedTensor
) -> None:
    """Write the fused kernel itself: integers in, floats out, bias included.

    Fusing it from Q/DQ depends on rank and static shapes: MatMul and Add of static shape become a
    float Gemm first.
    """
    grid, scales, zeros = product_weights(model, node, choice, variant)
    bias = product_bias(model.graph, node, variant.correction)
    inputs = [tensor.integers, grid, tensor.scale, scales, tensor.zero_point, zeros, bias]
    put_kernel(model, node, "MatMulIntegerToFloat", inputs, {})


def use_dynamic_product(model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
    """Write DynamicQuantizeMatMul, with the bias as its input."""
    grid, scales, zeros = product_weights(model, node, choice, variant)
    bias = product_bias(model.graph, node, variant.correction)
    put_kernel(model, node, "DynamicQuantizeMatMul", [node.inputs[0], grid, scales, zeros, bias], {})


def use_blocked_product(model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
    """Write MatMulNBits at accuracy level 4: integer arithmetic on weights unpacked block by block."""
    graph = model.graph
    n_rows, n_blocks = variant.scales.shape
    block_size = variant.weights.shape[1] // n_blocks
    bits = choice.format.container_bits
    packed = pack_unsigned(variant.weights, bits).reshape(n_rows, n_blocks, block_size * bits // 8)
    name = weight_name(node)
    weights = add_initializer(graph, f"{name}_packed", packed)
    scales = add_initializer(graph, f"{name}_scales", variant.scales.reshape(n_rows, n_blocks))
    attributes = {"K": _n_inputs(node), "N": n_rows, "bits": bits, "block_size": block_size}
    bias = product_bias(graph, node, variant.correction)
    inputs = [node.inputs[0], weights, scales, None, None, bias]
    put_kernel(model, node, "MatMulNBits", inputs, {**attributes, "accuracy_level": 4})


def product_weights(
    model: ir.Model, node: ir.Node, choice: Choice, variant: Variant
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Add weights as (inputs, outputs), scales and zero points, for kernels that multiply from the right."""
    weight: npt.NDArray[Any] = variant.weights
    if channel_axis(node) == 0:
        weight = np.ascontiguousarray(weight.T)
    name = weight_name(node)
    grid = add_grid(model, node, f"{name}_quantized", weight, choice.stored_bits)
    scales = add_initializer(model.graph, f"{name}_scale", variant.scales)
    zeros = add_initializer(model.graph, f"{name}_zero_point", np.zeros(variant.scales.shape, np.int8))
    return grid, scales, zeros


def weight_name(node: ir.Node) -> str:
    """Name that what replaces a layer's weight is called after."""
    return str(node.inputs[1].name) if node.inputs[1] is not None else str(node.name)


def _n_inputs(node: ir.Node) -> int:
    weight = constant(node.inputs[1])
    assert weight is not None
    n_inputs: int = weight.shape[1 - channel_axis(node)]
    return n_inputs
