"""How channels go through layers: what each reads has labels, what it writes gets new ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from autoq.core.layers import GATES
from autoq.graph.channel_labels import along
from autoq.graph.channel_trace import Trace, dims_of
from autoq.graph.layers import bias_input, channel_axis, weight_input
from autoq.graph.values import constant, rank_of


def trace_layer(trace: Trace, node: ir.Node) -> None:
    """Label the outputs of a layer."""
    _LAYER_RULES[node.op_type](trace, node)
    indices = (1, 2) if node.op_type in GATES else (weight_input(node),)
    weights = [value for index in indices if (value := node.inputs[index]) is not None]
    if shared := [value for value in weights if len(value.uses()) > 1 or value.is_graph_output()]:
        reason = f"the weight {shared[0].name!r} is shared by several nodes"
        trace.units.keep(trace.writes[str(node.name)], reason)
        trace.units.keep(trace.reads.get(str(node.name), np.zeros(1, np.int64)), reason)


def _trace_conv(trace: Trace, node: ir.Node) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    groups = node.attributes.get_int("group", 1)
    first, second = weight.shape[:2]
    is_conv = node.op_type == "Conv"
    n_in, n_out = (second * groups, first) if is_conv else (first, second * groups)
    read = trace.read(node, node.inputs[0], axis=1, width=n_in)
    made = trace.write(node, axis=1, width=n_out)
    if groups > 1:
        reason = f"{node.name!r} convolves them in groups with channels that have to stay"
        whole = np.concatenate([read.reshape(groups, -1), made.reshape(groups, -1)], axis=1)
        trace.units.join(whole, whole[:, -1:], reason)


def _trace_product(trace: Trace, node: ir.Node) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    rows = channel_axis(node)
    trace.read(node, node.inputs[0], axis=-1, width=weight.shape[1 - rows])
    trace.write(node, axis=-1, width=weight.shape[rows])


def _trace_embedding(trace: Trace, node: ir.Node) -> None:
    weight = constant(node.inputs[0])
    assert weight is not None
    trace.units.keep(trace.of(node.inputs[1]), f"{node.name!r} looks rows up by them")
    trace.write(node, axis=-1, width=weight.shape[1])


def _trace_recurrence(trace: Trace, node: ir.Node) -> None:
    """Directions have one hidden size, so the units in the same place of all directions go together."""
    recurrence, weight = constant(node.inputs[2]), constant(node.inputs[1])
    assert recurrence is not None
    assert weight is not None
    hidden = recurrence.shape[2]
    read = trace.read(node, node.inputs[0], axis=2, width=weight.shape[2])
    made = trace.units.make(hidden)
    for output in node.outputs:
        if output.name and (rank := rank_of(output)) is not None:
            trace.set(output, along(made, axis=-1, rank=rank))
    if any(output.name and rank_of(output) is None for output in node.outputs):
        trace.units.keep(made, f"the shape of what {node.name!r} gives is not known")
    trace.hidden.append(made)
    trace.reads[str(node.name)] = np.concatenate([read, made])
    trace.writes[str(node.name)] = np.tile(made, GATES[node.op_type])
    _trace_state(trace, node)


def _trace_state(trace: Trace, node: ir.Node) -> None:
    """Initial states are cut if they are constant; labelled ones go with the units they start."""
    made = trace.hidden[-1]
    for value in node.inputs[bias_input(node) + 2 : 7]:
        if value is None or constant(value) is not None:
            continue
        operands = [(along(made, axis=-1, rank=3), None), (trace.of(value), dims_of(value))]
        trace.merge(operands, 3, f"{node.name!r} starts from a state that is computed")
    if len(node.inputs) > 7 and node.inputs[7] is not None:
        trace.units.keep(made, f"{node.name!r} has peepholes")


_LAYER_RULES: dict[str, Callable[[Trace, ir.Node], None]] = {
    "Conv": _trace_conv,
    "ConvTranspose": _trace_conv,
    "Gemm": _trace_product,
    "MatMul": _trace_product,
    "Gather": _trace_embedding,
    **dict.fromkeys(GATES, _trace_recurrence),
}
