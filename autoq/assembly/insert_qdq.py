"""Rewrite: put Q/DQ pairs on the tensors of a plan and point the right readers at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from autoq.assembly.plan import Plan
from autoq.core.choices import FLOAT
from autoq.core.quantization import ActivationParams
from autoq.graph.blocks import Block
from autoq.graph.values import add_initializer

_REQUANTIZED_BEHIND_OUR_BACK = ("Conv", "ConvTranspose", "Gemm")


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
        self.tensors: dict[str, QuantizedTensor] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the pairs in graph order."""
        values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
        for value in values:
            if value.name in self._plan.domains.quantized:
                self._quantize(model.graph, value)
        return ir.passes.PassResult(model, modified=bool(self.tensors))

    def _quantize(self, graph: ir.Graph, value: ir.Value) -> None:
        name = str(value.name)
        domains = self._plan.domains
        readers = [use.node for use in value.uses()]
        integer = [node for node in readers if self._reads_integers(node)]
        tensor = self._integers(graph, value, self._plan.params[domains.roots[name]])
        self.tensors[name] = tensor
        if not integer and name not in domains.produced:
            return  # only static MatMuls read it, and they take the integers themselves
        real = self._real(graph, value, tensor)
        _redirect(integer, value, real)
        if name not in domains.produced:
            return
        floats = [node for node in readers if node not in integer]
        shielded = [node for node in floats if self._needs_shield(node, value)]
        if shielded:
            _redirect(shielded, value, self._shield(graph, value, tensor))
        _redirect([node for node in floats if node not in shielded], value, real)
        if value.is_graph_output():
            _become_output(graph, value, real)

    def _reads_integers(self, node: ir.Node) -> bool:
        return node.name in self._plan.domains.integer_blocks

    def _needs_shield(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether ONNX Runtime would quantise this float node because of the Q/DQ pairs around it.

        Its optimiser WeightBiasQuantization gives 8-bit weights to a Conv or Gemm between a DQ with
        one scale and a Q. It leaves alone what follows a DQ with a scale per channel.
        """
        if node.op_type not in _REQUANTIZED_BEHIND_OUR_BACK or node.inputs[0] is not value:
            return False
        block = self._blocks.get(str(node.name))
        result = str(node.outputs[0].name) if block is None else block.results[0]
        stays_float = self._plan.candidate.by_layer.get(str(node.name), FLOAT).format == FLOAT.format
        return stays_float and result in self._plan.domains.quantized and _n_channels(value) is not None

    def _integers(self, graph: ir.Graph, value: ir.Value, params: ActivationParams) -> QuantizedTensor:
        scale, zero_point = self._constants(graph, str(value.name), params)
        node = ir.Node("", "QuantizeLinear", [value, scale, zero_point], name=f"{value.name}_quantize")
        integers = node.outputs[0]
        integers.name, integers.shape = f"{value.name}_quantized", value.shape
        integers.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(params.dtype)))
        _insert_after(graph, value, node)
        return QuantizedTensor(integers, scale, zero_point)

    def _real(self, graph: ir.Graph, value: ir.Value, tensor: QuantizedTensor) -> ir.Value:
        inputs = [tensor.integers, tensor.scale, tensor.zero_point]
        node = ir.Node("", "DequantizeLinear", inputs, name=f"{value.name}_dequantize")
        real = node.outputs[0]
        real.name, real.shape, real.type = f"{value.name}_dequantized", value.shape, value.type
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

    def _shield(self, graph: ir.Graph, value: ir.Value, tensor: QuantizedTensor) -> ir.Value:
        """Dequantise once more with the same scale for every channel: equal values, another form."""
        n_channels = _n_channels(value)
        assert n_channels is not None
        params = self._plan.params[self._plan.domains.roots[str(value.name)]]
        scales = add_initializer(graph, f"{value.name}_scales", np.full(n_channels, params.scale, np.float32))
        zeros = add_initializer(
            graph, f"{value.name}_zero_points", np.full(n_channels, params.zero_point, params.dtype)
        )
        dequantize = ir.Node(
            "",
            "DequantizeLinear",
            [tensor.integers, scales, zeros],
            [ir.AttrInt64("axis", 1)],
            name=f"{value.name}_dequantize_for_float",
        )
        real = dequantize.outputs[0]
        real.name, real.shape, real.type = f"{value.name}_for_float", value.shape, value.type
        _insert_after(graph, tensor.integers, dequantize)
        return real


def _n_channels(value: ir.Value) -> int | None:
    if value.shape is None or len(value.shape) < 2:
        return None
    axis = value.shape[1]
    return axis if isinstance(axis, int) else None


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
    value.name = f"{name}_float"
    real.name = name
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = real
