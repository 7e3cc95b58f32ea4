"""Rewrite: give each layer the kernel and the weights of its choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.assembly.insert_qdq import QuantizedTensor
from autoq.assembly.weights import add_dequantized, add_grid, make_room_for_bias, pack_nibbles
from autoq.core.choices import Candidate, Choice, Format
from autoq.graph.blocks import bias_add
from autoq.graph.layers import channel_axis, is_layer
from autoq.graph.values import add_initializer, constant, drop_unused, set_initializer
from autoq.variants.variant import Variant

CONTRIB = "com.microsoft"


class CompressLayers(ir.passes.InPlacePass):
    """Replace the weights of every compressed layer, and its node where the format needs another.

    Runs after `InsertQdq`, whose tensors static MatMuls read as integers.
    """

    def __init__(
        self,
        candidate: Candidate,
        variants: Mapping[str, Variant],
        tensors: Mapping[str, QuantizedTensor],
        sources: Mapping[str, str],
    ) -> None:
        self._candidate = candidate
        self._variants = variants
        self._tensors = tensors
        self._sources = sources  # layer -> name of the value it reads in the float graph

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Compress layer by layer, in graph order."""
        modified = False
        for node in [node for node in model.graph if is_layer(node)]:
            choice = self._candidate.by_layer.get(str(node.name))
            if choice is None or (choice.format is Format.FP32 and not choice.sparsity):
                continue
            self._compress(model, node, choice, self._variants[str(node.name)])
            modified = True
        return ir.passes.PassResult(model, modified)

    def _compress(self, model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
        if choice.format is Format.FP32:
            weight = node.inputs[1]
            assert weight is not None
            set_initializer(model.graph, node, 1, str(weight.name), variant.weights)
        elif choice.format.is_weight_only:
            _use_blocks(model, node, choice, variant)
        elif choice.format is Format.INT8_DYNAMIC:
            _use_dynamic(model, node, choice, variant)
        else:
            tensor = self._tensors[self._sources[str(node.name)]]
            if node.op_type == "MatMul":
                _use_static_matmul(model, node, choice, variant, tensor)
            else:
                _use_qdq(model, node, choice, variant, tensor)


def _use_qdq(
    model: ir.Model, node: ir.Node, choice: Choice, variant: Variant, tensor: QuantizedTensor
) -> None:
    """Weights and bias through DequantizeLinear: the runtime fuses QLinearConv and QGemm from it."""
    graph = model.graph
    axis = channel_axis(node)
    integers, scales = variant.weights, variant.scales
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    scale = constant(tensor.scale)
    assert scale is not None
    if bias is not None:
        integers, scales = make_room_for_bias(integers, scales, bias, input_scale=float(scale), axis=axis)
    old_weight = node.inputs[1]
    assert old_weight is not None
    grid = add_grid(model, node, f"{old_weight.name}_quantized", integers, choice.weight_bits)
    node.replace_input_with(1, add_dequantized(graph, node, grid, scales, zero_dtype=np.int8, axis=axis))
    drop_unused(graph, old_weight)
    if bias is None:
        return
    # The runtime fuses only if the bias has exactly the scale of its accumulator.
    sums = np.asarray(scales * np.float32(scale), np.float32)
    counts = np.rint(bias.astype(np.float64) / sums.astype(np.float64)).astype(np.int32)
    old_bias = node.inputs[2]
    assert old_bias is not None
    stored = add_initializer(graph, f"{old_bias.name}_quantized", counts)
    node.replace_input_with(2, add_dequantized(graph, node, stored, sums, zero_dtype=np.int32, axis=0))
    drop_unused(graph, old_bias)


def _use_static_matmul(
    model: ir.Model, node: ir.Node, choice: Choice, variant: Variant, tensor: QuantizedTensor
) -> None:
    """Write the fused kernel itself: integers in, floats out, bias included.

    Fusing it from Q/DQ depends on rank and static shapes: MatMul and Add of static shape become a
    float Gemm first.
    """
    grid, scales, zeros = _product_weights(model, node, choice, variant)
    inputs = [tensor.integers, grid, tensor.scale, scales, tensor.zero_point, zeros, _bias(model, node)]
    _replace(model, node, "MatMulIntegerToFloat", inputs)


def _use_dynamic(model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
    """DynamicQuantizeMatMul, with the bias as its input."""
    grid, scales, zeros = _product_weights(model, node, choice, variant)
    _replace(model, node, "DynamicQuantizeMatMul", [node.inputs[0], grid, scales, zeros, _bias(model, node)])


def _use_blocks(model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
    """MatMulNBits at accuracy level 4: integer arithmetic on weights unpacked block by block."""
    graph = model.graph
    n_rows, n_blocks = variant.scales.shape
    block_size = variant.weights.shape[1] // n_blocks
    n_inputs = _shape(node)[0]
    bits = choice.format.container_bits
    unsigned = variant.weights.astype(np.int16) + 2 ** (bits - 1)
    packed = pack_nibbles(unsigned.astype(np.int8)) if bits == 4 else unsigned.astype(np.uint8)
    name = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.name)
    weights = add_initializer(
        graph, f"{name}_packed", packed.reshape(n_rows, n_blocks, block_size * bits // 8)
    )
    scales = add_initializer(graph, f"{name}_scales", variant.scales.reshape(n_rows, n_blocks))
    attributes = {"K": n_inputs, "N": n_rows, "bits": bits, "block_size": block_size, "accuracy_level": 4}
    inputs = [node.inputs[0], weights, scales, None, None, _bias(model, node)]
    _replace(model, node, "MatMulNBits", inputs, attributes)


def _product_weights(
    model: ir.Model, node: ir.Node, choice: Choice, variant: Variant
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Weights as (inputs, outputs), with scales and zero points, for kernels that multiply from the right."""
    weight: npt.NDArray[Any] = variant.weights
    if channel_axis(node) == 0:
        weight = np.ascontiguousarray(weight.T)
    name = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.name)
    grid = add_grid(model, node, f"{name}_quantized", weight, choice.weight_bits)
    scales = add_initializer(model.graph, f"{name}_scale", variant.scales)
    zeros = add_initializer(model.graph, f"{name}_zero_point", np.zeros(variant.scales.shape, np.int8))
    return grid, scales, zeros


def _shape(node: ir.Node) -> tuple[int, int]:
    """(inputs, outputs) of a matrix product."""
    weight = constant(node.inputs[1])
    assert weight is not None
    n_first, n_second = weight.shape
    return (n_second, n_first) if channel_axis(node) == 0 else (n_first, n_second)


def _bias(model: ir.Model, node: ir.Node) -> ir.Value | None:
    """Bias of a Gemm, or of the Add that a MatMul absorbs."""
    if node.op_type == "Gemm":
        return node.inputs[2] if len(node.inputs) > 2 else None
    add = bias_add(node)
    if add is None:
        return None
    return next(value for value in add.inputs if value is not node.outputs[0])


def _replace(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: Mapping[str, int] | None = None,
) -> None:
    """Put a contrib node in the place of a layer and of the bias Add it absorbs."""
    graph = model.graph
    add = bias_add(node) if node.op_type == "MatMul" else None
    last = node if add is None else add
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    attrs = [ir.AttrInt64(name, value) for name, value in (attributes or {}).items()]
    fresh = ir.Node(CONTRIB, op_type, inputs, attrs, name=node.name)
    old, new = last.outputs[0], fresh.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(node, fresh)
    old_weight = node.inputs[1]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([last, node] if last is not node else [node], safe=True)
    drop_unused(graph, old_weight)
    model.opset_imports.setdefault(CONTRIB, 1)
