"""How channels go through nodes without a weight: one rule for each kind of node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from autoq.graph.channel_labels import Labels, first_along, reshaped, spread, unlabelled, varying
from autoq.graph.channel_trace import Operand, Trace, dims_of
from autoq.graph.shape_entries import entry, given_shape
from autoq.graph.values import constant, rank_of

Rule = Callable[[Trace, ir.Node], None]

# Their other inputs, if any, are scalars or apply to all channels alike.
_UNARY = (
    *(
        "Identity",
        "Cast",
        "CastLike",
        "Dropout",
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
    ),
    *("Erf", "Gelu", "Clip", "Elu", "Selu", "Celu", "Mish", "Softplus", "Softsign", "ThresholdedRelu"),
    *("Exp", "Log", "Sqrt", "Neg", "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Not", "IsNaN"),
)
ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "Where", "PRelu", "And", "Or"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
)
# Normalise every channel over the rest of the map: input and scale, bias, ... of one entry a channel.
CHANNEL_NORMS = ("BatchNormalization", "InstanceNormalization")
_POOLS = (
    *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
    *CHANNEL_NORMS,
)
_REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)


def trace_node(trace: Trace, node: ir.Node) -> None:
    """Label the outputs of a node that is no layer."""
    inputs = [trace.of(value) for value in node.inputs]
    if not any(labels.any() for labels in inputs):
        return
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    has_more = node.op_type != "Split" and any(output.uses() for output in node.outputs[1:])
    if rule is not None and not has_more and rank_of(node.outputs[0]) is not None:
        rule(trace, node)
        return
    for labels in inputs:
        trace.units.keep(labels, f"{node.op_type} {node.name!r} reads them, which cannot be followed")


def int_list(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Return integers that are an attribute in old opsets and an input in new ones; None if computed."""
    if name in node.attributes:
        return [int(one) for one in node.attributes[name].as_ints()]
    given = node.inputs[index] if index < len(node.inputs) else None
    array = constant(given)
    if array is None:
        return None
    return [int(one) for one in array.reshape(-1)]


def _is_absent(node: ir.Node, name: str, index: int) -> bool:
    given = node.inputs[index] if index < len(node.inputs) else None
    return name not in node.attributes and given is None


def _trace_unary(trace: Trace, node: ir.Node) -> None:
    trace.set(node.outputs[0], trace.of(node.inputs[0]))


def _trace_elementwise(trace: Trace, node: ir.Node) -> None:
    result = node.outputs[0]
    rank = rank_of(result)
    assert rank is not None
    operands = [_operand(trace, value) for value in node.inputs if constant(value) is None]
    reason = f"{node.op_type} {node.name!r} joins them with something of fixed width"
    merged = trace.merge(operands, rank, reason)
    _freeze_misfits(trace, node, merged, reason)
    trace.set(result, merged)


def _freeze_misfits(trace: Trace, node: ir.Node, labels: Labels, reason: str) -> None:
    """Keep what a constant would make wider: it is to be cut as the result is."""
    for value in node.inputs:
        array = constant(value)
        if array is None:
            continue
        shape = (1,) * (labels.ndim - array.ndim) + array.shape
        wrong = [axis for axis in varying(labels) if shape[axis] not in (1, labels.shape[axis])]
        trace.freeze(labels, wrong, reason)


def _operand(trace: Trace, value: ir.Value | None) -> Operand:
    return trace.of(value), dims_of(value)


def _trace_pool(trace: Trace, node: ir.Node) -> None:
    labels = trace.of(node.inputs[0])
    spatial = [axis for axis in varying(labels) if axis != 1]
    trace.freeze(labels, spatial, f"{node.op_type} {node.name!r} mixes them")
    labels = first_along(labels, spatial)
    if any(constant(value) is None for value in node.inputs[1:] if value is not None):
        trace.freeze(labels, varying(labels), f"{node.op_type} {node.name!r} has computed parameters")
    trace.set(node.outputs[0], labels)


def _trace_along_axis(trace: Trace, node: ir.Node) -> None:
    """Softmax and the like: what is normalised over has to stay."""
    labels = trace.of(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % labels.ndim
    axes = range(axis, labels.ndim) if node.op_type.endswith("Normalization") else [axis]
    trace.freeze(labels, axes, f"{node.op_type} {node.name!r} normalises over them")
    trace.set(node.outputs[0], labels)


def _trace_reduction(trace: Trace, node: ir.Node) -> None:
    labels = trace.of(node.inputs[0])
    axes = int_list(node, "axes", 1)
    if axes is None and not _is_absent(node, "axes", 1):
        axes = list(range(labels.ndim))
    chosen = {axis % labels.ndim for axis in axes or range(labels.ndim)}
    trace.freeze(labels, chosen, f"{node.op_type} {node.name!r} reduces over them")
    rest = first_along(labels, chosen)
    if not node.attributes.get_int("keepdims", 1):
        rest = rest.reshape([size for axis, size in enumerate(rest.shape) if axis not in chosen])
    trace.set(node.outputs[0], rest)


def _trace_product(trace: Trace, node: ir.Node) -> None:
    """A product of two activations: the axes before the last two are batches, such as heads."""
    reason = f"MatMul {node.name!r} sums over them"
    operands: list[Operand] = []
    for index, contracted in ((0, -1), (1, -2)):
        labels, dims = _operand(trace, node.inputs[index])
        if dims is None or len(dims) < 2:
            trace.units.keep(labels, f"MatMul {node.name!r} reads them in a shape that is not known")
            labels, dims = unlabelled(2), (1, 1)
        axis = contracted % len(dims)
        trace.freeze(labels, [axis], reason)
        operands.append((first_along(labels, [axis]), (*dims[:axis], 1, *dims[axis + 1 :])))
    rank = max(len(labels.shape) for labels, _ in operands)
    merged = trace.merge(operands, rank, f"MatMul {node.name!r} joins them with something of fixed width")
    if set(varying(merged)) & set(range(rank - 2)):
        trace.heads.append(merged)
    trace.set(node.outputs[0], merged)


def _trace_transpose(trace: Trace, node: ir.Node) -> None:
    labels = trace.of(node.inputs[0])
    order = node.attributes.get_ints("perm", tuple(reversed(range(labels.ndim))))
    trace.set(node.outputs[0], labels.transpose(tuple(order)))


def _trace_reshape(trace: Trace, node: ir.Node) -> None:
    """Also Flatten, Squeeze and Unsqueeze: the elements stay in their order."""
    labels = trace.of(node.inputs[0])
    dims, target = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    assert dims is not None
    assert target is not None
    followed = reshaped(labels, dims, target)
    if followed is None:
        trace.units.keep(labels, f"{node.op_type} {node.name!r} mixes them with axes of unknown length")
        return
    _set_given(trace, node, followed)


def _trace_expand(trace: Trace, node: ir.Node) -> None:
    rank = rank_of(node.outputs[0])
    assert rank is not None
    _set_given(trace, node, trace.merge([_operand(trace, node.inputs[0])], rank, ""))


def _trace_resize(trace: Trace, node: ir.Node) -> None:
    labels = trace.of(node.inputs[0])
    others = [axis for axis in varying(labels) if axis != 1]
    trace.freeze(labels, others, f"Resize {node.name!r} mixes them")
    labels = first_along(labels, others)
    if "axes" in node.attributes:
        trace.freeze(labels, [1], f"Resize {node.name!r} names its axes")
    _set_given(trace, node, labels)


def _set_given(trace: Trace, node: ir.Node, labels: Labels) -> None:
    """Label a result whose shape is an input, where that says how wide it is with a constant."""
    shape = given_shape(node)
    if shape is not None:
        computed = [axis for axis in varying(labels) if entry(shape, axis) is None]
        trace.freeze(labels, computed, f"{node.op_type} {node.name!r} computes their number")
    trace.set(node.outputs[0], labels)


def _trace_shape(trace: Trace, node: ir.Node) -> None:
    """Reading lengths does no harm, unless it is the length that changes."""
    labels = trace.of(node.inputs[0])
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", labels.ndim)
    lengths = list(range(labels.ndim))[start:end]
    seen = set(lengths) if node.outputs[0].is_graph_output() else set()
    for use in node.outputs[0].uses():
        seen.update(_picked(use.node, lengths))
    trace.freeze(labels, seen, f"Shape {node.name!r} counts them")


def _picked(node: ir.Node, lengths: list[int]) -> list[int]:
    """Which of the lengths that a Shape gives a node goes on with."""
    if node.op_type == "Gather" and (indices := constant(node.inputs[1])) is not None:
        return [lengths[int(one)] for one in indices.reshape(-1)]
    if node.op_type == "Slice" and (ranges := slice_ranges(node, 1)) is not None:
        return [length for _, start, end in ranges for length in lengths[start:end]]
    return lengths


def _trace_concat(trace: Trace, node: ir.Node) -> None:
    rank = rank_of(node.outputs[0])
    assert rank is not None
    axis = node.attributes.get_int("axis", 0) % rank
    parts = [_operand(trace, value) for value in node.inputs]
    reason = f"Concat {node.name!r} joins them with something of fixed width"
    if any(set(varying(labels)) - {axis} for labels, _ in parts):
        for labels, _ in parts:
            trace.freeze(labels, [axis], f"Concat {node.name!r} joins them along two axes")
        across = [(first_along(labels, [axis]), dims) for labels, dims in parts]
        trace.set(node.outputs[0], trace.merge(across, rank, reason))
        return
    sizes = [None if dims is None else dims[axis] for _, dims in parts]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(parts):
        for labels, _ in parts:
            trace.units.keep(labels, reason)
        return
    spreads = [spread(labels, axis, size) for (labels, _), size in zip(parts, known, strict=True)]
    trace.set(node.outputs[0], np.concatenate(spreads, axis))


def _trace_split(trace: Trace, node: ir.Node) -> None:
    labels = trace.of(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % labels.ndim
    sizes = split_sizes(node)
    if labels.shape[axis] == 1 or sizes is None:
        trace.freeze(labels, [axis], f"Split {node.name!r} has computed sizes")
        pieces = [first_along(labels, [axis])] * len(node.outputs)
    else:
        pieces = np.split(labels, np.cumsum(sizes)[:-1], axis)
    for output, piece in zip(node.outputs, pieces, strict=True):
        trace.set(output, piece)


def split_sizes(node: ir.Node) -> list[int] | None:
    """Return the lengths that a Split gives its outputs, or None where they are computed or unknown."""
    given = int_list(node, "split", 1)
    if given is not None or not _is_absent(node, "split", 1):
        return given
    rank = rank_of(node.inputs[0])
    axis = node.attributes.get_int("axis", 0)
    sizes = [None if output.shape is None else output.shape[axis] for output in node.outputs]
    known = [size for size in sizes if isinstance(size, int)]
    return known if rank is not None and len(known) == len(sizes) else None


def _trace_slice(trace: Trace, node: ir.Node) -> None:
    labels = trace.of(node.inputs[0])
    ranges = slice_ranges(node, labels.ndim)
    if ranges is None:
        axes = varying(labels)
        trace.freeze(labels, axes, f"Slice {node.name!r} is computed or has steps")
        labels, ranges = first_along(labels, axes), []
    for axis, start, end in ranges:
        labels = labels if labels.shape[axis] == 1 else _cut(labels, axis, start, end)
    trace.set(node.outputs[0], labels)


def _cut(labels: Labels, axis: int, start: int, end: int) -> Labels:
    return labels[tuple(slice(start, end) if one == axis else slice(None) for one in range(labels.ndim))]


def slice_ranges(node: ir.Node, rank: int) -> list[tuple[int, int, int]] | None:
    """Return (axis, start, end) of a Slice in steps of one, or None where it is anything else."""
    starts, ends = (constant(value) for value in node.inputs[1:3])
    axes = int_list(node, "axes", 3)
    if starts is None or ends is None or (axes is None and not _is_absent(node, "axes", 3)):
        return None
    steps = int_list(node, "steps", 4)
    if (steps is None and not _is_absent(node, "steps", 4)) or set(steps or [1]) != {1}:
        return None
    chosen = [axis % rank for axis in axes] if axes is not None else list(range(starts.size))
    return [(axis, int(a), int(b)) for axis, a, b in zip(chosen, starts, ends, strict=True)]


def _trace_gather(trace: Trace, node: ir.Node) -> None:
    """Picking along an axis: it is not cut, what lies across may be."""
    labels, indices = trace.of(node.inputs[0]), node.inputs[1]
    rank = rank_of(indices)
    trace.units.keep(trace.of(indices), f"Gather {node.name!r} picks by them")
    if rank is None or not labels.ndim:
        trace.units.keep(labels, f"Gather {node.name!r} picks among them")
        return
    axis = node.attributes.get_int("axis", 0) % labels.ndim
    trace.freeze(labels, [axis], f"Gather {node.name!r} picks among them")
    picked = np.take(first_along(labels, [axis]), np.zeros((1,) * rank, np.int64), axis)
    trace.set(node.outputs[0], picked)


def _trace_pad(trace: Trace, node: ir.Node) -> None:
    labels = trace.of(node.inputs[0])
    pads, axes = int_list(node, "pads", 1), int_list(node, "axes", 3)
    chosen = [axis % labels.ndim for axis in axes] if axes is not None else list(range(labels.ndim))
    if pads is None or (axes is None and not _is_absent(node, "axes", 3)):
        padded = list(range(labels.ndim))
    else:
        padded = [axis for index, axis in enumerate(chosen) if pads[index] or pads[index + len(chosen)]]
    trace.freeze(labels, padded, f"Pad {node.name!r} pads their axis")
    trace.set(node.outputs[0], first_along(labels, padded))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _trace_unary),
    **dict.fromkeys(ELEMENTWISE, _trace_elementwise),
    **dict.fromkeys(_POOLS, _trace_pool),
    **dict.fromkeys(_REDUCTIONS, _trace_reduction),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _trace_reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"), _trace_along_axis),
    "MatMul": _trace_product,
    "Transpose": _trace_transpose,
    "Expand": _trace_expand,
    "Resize": _trace_resize,
    "Shape": _trace_shape,
    "Concat": _trace_concat,
    "Split": _trace_split,
    "Slice": _trace_slice,
    "Gather": _trace_gather,
    "Pad": _trace_pad,
}
