"""Rewrite: cut removed units out of every weight, bias, vector and shape that holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from autoq.core.layers import GATES
from autoq.graph.channel_labels import varying
from autoq.graph.channel_rules import CHANNEL_NORMS, ELEMENTWISE, slice_ranges, split_sizes
from autoq.graph.find_groups import ChannelMap, clarify, map_channels
from autoq.graph.float_model import FloatModel, describe_graph
from autoq.graph.layers import bias_input, channel_axis, is_layer
from autoq.graph.shape_entries import entry, given_shape, set_entry
from autoq.graph.values import add_initializer, change_constant, constant, drop_unused

Kept = Mapping[str, Sequence[int]]
_Places = npt.NDArray[np.int64]


def narrow(model: FloatModel, kept: Kept, channels: ChannelMap | None = None) -> FloatModel:
    """Derive a model in which groups keep some of their units only; layers keep their names.

    What it computes is what the model computes if all layers that read a removed channel weigh it with 0.

    Args:
        model: Canonical float model; it is not changed.
        kept: Units to keep by name of the group, ascending. Other groups stay as they are.
        channels: What `map_channels` says of the model, if it is known already.

    Raises:
        ValueError: A group is not known, or its units are not ascending, out of range, or none.
    """
    graph = model.clone()
    NarrowGroups(kept, channels or map_channels(graph))(graph)
    return describe_graph(graph)


def check_kept(kept: Kept, channels: ChannelMap) -> None:
    """Check that every group is known and keeps at least one of its units.

    Raises:
        ValueError: One is not, or its units are not ascending or out of range.
    """
    sizes = {group.name: group.size for group in channels.grouping.groups}
    for name, units in kept.items():
        if name not in sizes:
            raise ValueError(f"no channel group {name!r}")
        if len(units) == 0:
            raise ValueError(f"group {name!r}: its width may not fall to zero")
        ascending = all(low < high for low, high in pairwise(units))
        if not ascending or units[0] < 0 or units[-1] >= sizes[name]:
            raise ValueError(f"group {name!r}: expected ascending units from 0 to {sizes[name] - 1}")


class NarrowGroups(ir.passes.InPlacePass):
    """Cut the units that groups do not keep out of a graph, and note the new shapes of its values."""

    def __init__(self, kept: Kept, channels: ChannelMap) -> None:
        check_kept(kept, channels)
        self._cut = _Cut.of(kept, channels)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Narrow every node that removed units go through."""
        if not self._cut.removed.size:
            return ir.passes.PassResult(model, modified=False)
        clarify(model)
        for node in list(model.graph):
            if is_layer(node):
                _narrow_layer(model.graph, node, self._cut)
            elif (rule := _RULES.get(node.op_type)) is not None and node.domain == "":
                rule(model.graph, node, self._cut)
        for node in model.graph:
            for value in node.outputs:
                _narrow_shape(value, self._cut)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


@dataclass(frozen=True)
class _Cut:
    """What is removed, and what that leaves of values and layers."""

    channels: ChannelMap
    removed: npt.NDArray[np.int64]  # labels

    @classmethod
    def of(cls, kept: Kept, channels: ChannelMap) -> _Cut:
        removed = [
            label
            for name, units in kept.items()
            for label in np.delete(np.array(channels.units[name], np.int64), list(units)).tolist()
        ]
        return cls(channels, np.array(removed, np.int64))

    def axis_of(self, value: ir.Value | None) -> tuple[int, _Places] | None:
        """The axis along which a value gets narrower, and the places that stay; None if it does not."""
        labels = None if value is None else self.channels.values.get(str(value.name))
        if labels is None or not np.isin(labels, self.removed).any():
            return None
        # Labels vary along one axis once sets are known; along the others they only did by name.
        axis = next(axis for axis in varying(labels) if _varies(labels, axis))
        vector = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)[:, 0]
        return axis, self.places(vector)

    def places(self, vector: npt.NDArray[np.int64]) -> _Places:
        """Places of a vector of labels that stay."""
        return np.flatnonzero(~np.isin(vector, self.removed))


def _varies(labels: npt.NDArray[np.int64], axis: int) -> bool:
    return bool((labels != np.take(labels, [0], axis)).any())


def _narrow_layer(graph: ir.Graph, node: ir.Node, cut: _Cut) -> None:
    name = str(node.name)
    reads, writes = cut.channels.reads.get(name), cut.channels.writes[name]
    outputs = cut.places(writes)
    inputs = np.arange(0) if reads is None else cut.places(reads)
    if len(outputs) == len(writes) and (reads is None or len(inputs) == len(reads)):
        return
    if node.op_type in GATES:
        _narrow_recurrence(graph, node, inputs, outputs)
    elif node.op_type == "Gather":
        _take(graph, node, 0, outputs, axis=1)
    elif node.op_type in ("Conv", "ConvTranspose"):
        assert reads is not None
        _narrow_conv(graph, node, inputs, outputs, n_inputs=len(reads))
    else:
        rows = channel_axis(node)
        _take(graph, node, 1, outputs, axis=rows)
        _take(graph, node, 1, inputs, axis=1 - rows)
        _take(graph, node, bias_input(node), outputs, axis=0)


def _narrow_conv(graph: ir.Graph, node: ir.Node, inputs: _Places, outputs: _Places, *, n_inputs: int) -> None:
    """Of a convolution in groups whole groups go, so the other axis of its weight stays."""
    groups, is_conv = node.attributes.get_int("group", 1), node.op_type == "Conv"
    if groups == 1 or is_conv:
        _take(graph, node, 1, outputs, axis=channel_axis(node))
    if groups == 1 or not is_conv:
        _take(graph, node, 1, inputs, axis=1 - channel_axis(node))
    _take(graph, node, 2, outputs, axis=0)
    if groups > 1:
        node.attributes["group"] = ir.AttrInt64("group", groups * len(inputs) // n_inputs)


def _narrow_recurrence(graph: ir.Graph, node: ir.Node, inputs: _Places, rows: _Places) -> None:
    """Weights hold all gates, biases those of W and then those of R, states one entry a unit."""
    recurrence, weight = constant(node.inputs[2]), constant(node.inputs[1])
    assert recurrence is not None
    assert weight is not None
    n_rows, hidden = recurrence.shape[1:]
    units = rows[rows < hidden]
    _take(graph, node, 1, rows, axis=1)
    _take(graph, node, 1, inputs[inputs < weight.shape[2]], axis=2)
    _take(graph, node, 2, rows, axis=1)
    _take(graph, node, 2, units, axis=2)
    _take(graph, node, 3, np.concatenate([rows, rows + n_rows]), axis=1)
    for index in (5, 6):
        _take(graph, node, index, units, axis=2)
    node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", len(units))


def _take(graph: ir.Graph, node: ir.Node, index: int, places: _Places, *, axis: int) -> None:
    """Cut a constant input down, for this node only; an absent or computed input is left as it is."""
    old = node.inputs[index] if index < len(node.inputs) else None
    array = constant(old)
    if old is None or array is None or array.shape[axis] == len(places):
        return
    change_constant(graph, node, index, np.take(array, places, axis), "narrow")


def _narrow_elementwise(graph: ir.Graph, node: ir.Node, cut: _Cut) -> None:
    found, rank = cut.axis_of(node.outputs[0]), node.outputs[0].shape
    if found is None or rank is None:
        return
    axis, places = found
    for index, value in enumerate(node.inputs):
        array = constant(value)
        own_axis = 0 if array is None else axis - len(rank) + array.ndim
        if array is not None and own_axis >= 0 and array.shape[own_axis] > 1:
            _take(graph, node, index, places, axis=own_axis)


def _narrow_norm(graph: ir.Graph, node: ir.Node, cut: _Cut) -> None:
    found = cut.axis_of(node.inputs[0])
    if found is not None and found[0] == 1:
        for index in range(1, len(node.inputs)):
            _take(graph, node, index, found[1], axis=0)


def _narrow_given_shape(graph: ir.Graph, node: ir.Node, cut: _Cut) -> None:
    """Reshape, Expand and Resize: 0, -1 and 1 follow by themselves."""
    found, shape = cut.axis_of(node.outputs[0]), given_shape(node)
    if found is None or shape is None:
        return
    axis, places = found
    if (entry(shape, axis) or 0) > 1:
        set_entry(graph, node, axis, len(places))
        drop_unused(graph, shape)


def _narrow_split(graph: ir.Graph, node: ir.Node, cut: _Cut) -> None:
    found, sizes = cut.axis_of(node.inputs[0]), split_sizes(node)
    if found is None or sizes is None:
        return
    axis, places = found
    own_axis = node.attributes.get_int("axis", 0)
    assert node.inputs[0] is not None
    if own_axis % len(cut.channels.values[str(node.inputs[0].name)].shape) != axis:
        return
    ends = np.searchsorted(places, np.cumsum(sizes))
    widths = np.diff(ends, prepend=0).astype(np.int64)
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    old = node.inputs[1]
    node.replace_input_with(1, add_initializer(graph, f"{node.name}_narrow", widths))
    drop_unused(graph, old)


def _narrow_slice(graph: ir.Graph, node: ir.Node, cut: _Cut) -> None:
    found = cut.axis_of(node.inputs[0])
    if found is None:
        return
    axis, places = found
    assert node.inputs[0] is not None
    labels = cut.channels.values[str(node.inputs[0].name)]
    ranges = slice_ranges(node, labels.ndim) or []
    for position, (own_axis, start, end) in enumerate(ranges):
        if own_axis == axis:
            bounds = slice(start, end).indices(labels.shape[axis])[:2]
            for index, bound in zip((1, 2), bounds, strict=True):
                array = constant(node.inputs[index])
                assert array is not None
                moved = array.copy()
                moved[position] = np.searchsorted(places, bound)
                change_constant(graph, node, index, moved, "narrow")


def _narrow_shape(value: ir.Value, cut: _Cut) -> None:
    found = cut.axis_of(value)
    if found is not None and value.shape is not None:
        axis, places = found
        sizes = list(value.shape)
        value.shape = ir.Shape([*sizes[:axis], len(places), *sizes[axis + 1 :]])


_RULES: dict[str, Callable[[ir.Graph, ir.Node, _Cut], None]] = {
    **dict.fromkeys(ELEMENTWISE, _narrow_elementwise),
    **dict.fromkeys(CHANNEL_NORMS, _narrow_norm),
    **dict.fromkeys(("Reshape", "Expand", "Resize"), _narrow_given_shape),
    "Split": _narrow_split,
    "Slice": _narrow_slice,
}
