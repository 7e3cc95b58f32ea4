"""Rewrite: put Q/DQ pairs on the tensors of a plan and point the right readers at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from autoq.assembly.plan import Plan
from autoq.core.choices import FLOAT
from autoq.core.quantization import ActivationParams
from autoq.graph.blocks import Block, BlockKind
from autoq.graph.values import add_initializer, fresh_name

# MatMul, because with its bias of static shape the runtime makes a Gemm of it.
_REQUANTIZED_BEHIND_OUR_BACK = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class QuantizedTensor:
    """The nodes and initializers around one quantised tensor."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class InsertQdq(ir.passes.InPlacePass):
    """Quantise and dequantise every tensor of the plan.

    Integer blocks read the dequantised value. So do all others where the tensor only exists in int8;
    a tensor that is computed in float stays float for its float readers. After the pass `tensors`
    holds what was made, by value name.
    """

    def __init__(self, plan: Plan, blocks: list[Block]) -> None:
        self._plan = plan
        self._blocks = {block.name: block for block in blocks}
        self._shared: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._graph: ir.Graph | None = None
        self.tensors: dict[str, QuantizedTensor] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the pairs in graph order."""
        self._graph = model.graph
        values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
        for value in values:
            if value.name in self._plan.domains.quantized:
                self._quantize(model.graph, value)
        for node in model.graph:
            if node.op_type == "Sum" and self._reads_integers(node):
                node.op_type = "Add"  # which has an integer kernel
        return ir.passes.PassResult(model, modified=bool(self.tensors))

    def _quantize(self, graph: ir.Graph, value: ir.Value) -> None:
        name = str(value.name)
        produced = name in self._plan.domains.produced
        readers = [use.node for use in value.uses() if not self._is_static_matmul(use.node)]
        tensor = self._integers(graph, value, self._plan.params[self._plan.domains.roots[name]])
        self.tensors[name] = tensor
        if not produced:
            readers = [node for node in readers if self._reads_integers(node)]
        axis = _shield_axis(value)
        shielded = [node for node in readers if axis is not None and self._needs_shield(node, value)]
        if shielded and axis is not None:
            _redirect(shielded, value, self._shield(graph, value, tensor, axis))
        readers = [node for node in readers if node not in shielded]
        becomes_output = produced and value.is_graph_output()
        if readers or becomes_output:
            real = self._real(graph, value, tensor)
            _redirect(readers, value, real)
            if becomes_output:
                _become_output(graph, value, real)

    def _reads_integers(self, node: ir.Node) -> bool:
        # Nodes inside control flow keep the names they came with, which may be a layer's.
        return node.graph is self._graph and node.name in self._plan.domains.integer_blocks

    def _is_static_matmul(self, node: ir.Node) -> bool:
        """Whether `CompressLayers` will let this node read the integers themselves."""
        choice = self._plan.candidate.by_layer.get(str(node.name), FLOAT)
        return node.graph is self._graph and node.op_type == "MatMul" and choice.format.is_static

    def _needs_shield(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether ONNX Runtime may quantise this float node, or what it feeds, behind our back.

        Its optimiser WeightBiasQuantization gives 8-bit weights to a Conv or Gemm between a DQ with
        one scale and a Q, and both may come from afar: QDQPropagation moves them through a MaxPool
        that was chosen float. A DQ with a scale per channel is left alone by both. Other ops cannot be
        kept from their integer kernel like this: the runtime fuses them all the same, and then refuses
        the scales.
        """
        if node.inputs[0] is not value or self._reads_integers(node):
            return False
        block = self._blocks.get(str(node.name))
        if block is not None and block.kind is BlockKind.MOVE:
            return True
        choice = self._plan.candidate.by_layer.get(str(node.name), FLOAT)
        return node.op_type in _REQUANTIZED_BEHIND_OUR_BACK and choice.format.is_float

    def _integers(self, graph: ir.Graph, value: ir.Value, params: ActivationParams) -> QuantizedTensor:
        scale, zero_point = self._constants(graph, str(value.name), params)
        source = self._held(graph, value) if self._comes_from_float_pool(value) else value
        node = ir.Node("", "QuantizeLinear", [source, scale, zero_point], name=f"{value.name}_quantize")
        integers = node.outputs[0]
        integers.name, integers.shape = fresh_name(graph, f"{value.name}_quantized"), value.shape
        integers.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(params.dtype)))
        _insert_after(graph, source, node)
        return QuantizedTensor(integers, scale, zero_point)

    def _comes_from_float_pool(self, value: ir.Value) -> bool:
        """Whether a value is what moves make of the output of a MaxPool that computes in float."""
        node = value.producer()
        while node is not None and node.name not in self._plan.domains.integer_blocks:
            block = self._blocks.get(str(node.name))
            if block is None or block.kind is not BlockKind.MOVE:
                return False
            if node.op_type == "MaxPool":
                return True
            node = None if node.inputs[0] is None else node.inputs[0].producer()
        return False

    def _held(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """Put a Clip that clips nothing between a value and its Q.

        ONNX Runtime's QDQPropagation would move the Q up through the pool, whose integer kernel is slow
        where its input comes from no integer convolution. Afterwards ClipQuantFusion takes the Clip out
        again: a Q clips more than it does.
        """
        name = str(value.name)
        limits = np.finfo(np.float32)
        low, high = (
            add_initializer(graph, f"{name}_{which}", np.array(limit, np.float32))
            for which, limit in (("lowest", limits.min), ("highest", limits.max))
        )
        node = ir.Node("", "Clip", [value, low, high], name=f"{name}_hold")
        held = node.outputs[0]
        held.name, held.shape, held.type = fresh_name(graph, f"{name}_held"), value.shape, value.type
        _insert_after(graph, value, node)
        return held

    def _real(self, graph: ir.Graph, value: ir.Value, tensor: QuantizedTensor) -> ir.Value:
        inputs = [tensor.integers, tensor.scale, tensor.zero_point]
        node = ir.Node("", "DequantizeLinear", inputs, name=f"{value.name}_dequantize")
        real = node.outputs[0]
        real.name = fresh_name(graph, f"{value.name}_dequantized")
        real.shape, real.type = value.shape, value.type
        _insert_after(graph, tensor.integers, node)
        return real

    def _constants(self, graph: ir.Graph, name: str, params: ActivationParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point; tensors that share a scale share the initializers."""
        root = self._plan.domains.roots[name]
        if root not in self._shared:
            scale = add_initializer(graph, f"{root}_scale", np.array(params.scale, np.float32))
            zero = add_initializer(graph, f"{root}_zero_point", np.array(params.zero_point, params.dtype))
            self._shared[root] = (scale, zero)
        return self._shared[root]

    def _shield(self, graph: ir.Graph, value: ir.Value, tensor: QuantizedTensor, axis: int) -> ir.Value:
        """Dequantise once more with the same scale for every channel: equal values, another form."""
        assert value.shape is not None
        size = value.shape[axis]
        assert isinstance(size, int)
        params = self._plan.params[self._plan.domains.roots[str(value.name)]]
        scales = add_initializer(graph, f"{value.name}_scales", np.full(size, params.scale, np.float32))
        zeros = add_initializer(
            graph, f"{value.name}_zero_points", np.full(size, params.zero_point, params.dtype)
        )
        dequantize = ir.Node(
            "",
            "DequantizeLinear",
            [tensor.integers, scales, zeros],
            [ir.AttrInt64("axis", axis)],
            name=f"{value.name}_dequantize_for_float",
        )
        real = dequantize.outputs[0]
        real.name = fresh_name(graph, f"{value.name}_for_float")
        real.shape, real.type = value.shape, value.type
        _insert_after(graph, tensor.integers, dequantize)
        return real


def _shield_axis(value: ir.Value) -> int | None:
    """An axis of known length to repeat a scale along; one of length 1 would still pass for a scalar.

    The batch comes last: what a model says of its length is not always true.
    """
    sizes = list(enumerate(value.shape or ()))
    for axis, size in (*sizes[1:], *sizes[:1]):
        if isinstance(size, int) and size > 1:
            return axis
    return None


def _redirect(nodes: list[ir.Node], old: ir.Value, new: ir.Value) -> None:
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(index, new)


def _insert_after(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)


def _become_output(graph: ir.Graph, value: ir.Value, real: ir.Value) -> None:
    """Let the dequantised value take over the name and place of a graph output."""
    name = value.name
    value.name = fresh_name(graph, f"{name}_float")
    real.name = name
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = real
