"""Rewrite: give each layer the kernel and the weights of its choice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from autoq.assembly.biases import correct_bias
from autoq.assembly.insert_qdq import QuantizedTensor
from autoq.assembly.lookups import use_blocked_lookup
from autoq.assembly.plan import Plan
from autoq.assembly.products import use_blocked_product, use_dynamic_product, use_static_matmul
from autoq.assembly.recurrences import use_dynamic_lstm
from autoq.assembly.split_products import SplitTensor, split_tensor, use_split_product
from autoq.assembly.weights import add_dequantized, add_grid, add_half, make_room_for_bias
from autoq.core.choices import Choice, Format
from autoq.core.errors import TrialError
from autoq.graph.layers import channel_axis, is_layer, weight_parts
from autoq.graph.values import add_initializer, constant, drop_unused, set_initializer
from autoq.variants.variant import Variant


class CompressLayers(ir.passes.InPlacePass):
    """Replace the weights of every compressed layer, and its node where the format needs another.

    Runs after `InsertQdq`, whose tensors static MatMuls read as integers.
    """

    def __init__(
        self,
        plan: Plan,
        variants: Mapping[str, Variant],
        tensors: Mapping[str, QuantizedTensor],
        sources: Mapping[str, str],
    ) -> None:
        self._candidate = plan.candidate
        self._outliers = plan.outliers
        self._variants = variants
        self._tensors = tensors
        self._sources = sources  # layer -> name of the value it reads in the float graph
        self._split: dict[ir.Value, SplitTensor] = {}  # layers that read one value share what is made of it

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Compress layer by layer, in graph order.

        Raises:
            TrialError: A layer cannot be what was chosen.
        """
        modified = False
        for node in [node for node in model.graph if is_layer(node)]:
            choice = self._candidate.by_layer.get(str(node.name))
            if choice is None or (choice.format is Format.FP32 and not choice.sparsity):
                continue
            self._compress(model, node, choice, self._variants[str(node.name)])
            modified = True
        return ir.passes.PassResult(model, modified)

    def _compress(self, model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
        fmt, op = choice.format, node.op_type
        correct_bias(model.graph, node, variant.correction)
        if fmt.is_float:
            _use_floats(model.graph, node, choice, variant)
        elif op == "Gather" and fmt.is_weight_only:
            use_blocked_lookup(model, node, choice, variant)
        elif op == "LSTM" and fmt is Format.INT8_DYNAMIC:
            use_dynamic_lstm(model, node, choice, variant)
        elif op in ("Gemm", "MatMul") and fmt.is_weight_only:
            use_blocked_product(model, node, choice, variant)
        elif op in ("Gemm", "MatMul") and fmt is Format.INT8_DYNAMIC:
            use_dynamic_product(model, node, choice, variant)
        elif op in ("Gemm", "MatMul") and fmt.keeps_outliers:
            use_split_product(model, node, choice, variant, self._split_input(model.graph, node))
        elif fmt.is_static and str(node.name) in self._sources:
            tensor = self._tensors[self._sources[str(node.name)]]
            write = use_static_matmul if op == "MatMul" else _use_qdq
            write(model, node, choice, variant, tensor)
        else:
            raise TrialError(f"layer {node.name!r} cannot be {fmt}: there is no such kernel for {op}")

    def _split_input(self, graph: ir.Graph, node: ir.Node) -> SplitTensor:
        source = node.inputs[0]
        assert source is not None
        if source not in self._split:
            outliers = self._outliers[self._sources[str(node.name)]]
            self._split[source] = split_tensor(graph, node, source, outliers)
        return self._split[source]


def _use_floats(graph: ir.Graph, node: ir.Node, choice: Choice, variant: Variant) -> None:
    """Float weights in place of the old; half ones behind a Cast, which the runtime folds at load."""
    for index, part in weight_parts(node, variant.weights):
        old = node.inputs[index]
        assert old is not None
        if choice.format is Format.FP32:
            set_initializer(graph, node, index, str(old.name), part)
            continue
        try:
            half = add_half(graph, node, f"{old.name}_half", part)
        except ValueError as error:
            raise TrialError(f"layer {node.name!r} cannot be {choice.format}: {error}") from error
        node.replace_input_with(index, half)
        drop_unused(graph, old)


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
    grid = add_grid(model, node, f"{old_weight.name}_quantized", integers, choice.stored_bits)
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
