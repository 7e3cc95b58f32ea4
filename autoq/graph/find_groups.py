"""Find the channels of a graph that can only be removed together.

Labels are followed from the inputs to the outputs, in the manner of DepGraph (Fang et al. 2023,
arXiv:2301.12900) but on single channels: what meets in an elementwise operation is united, what an
operation cannot do without is kept. Whatever is left can go, and groups are what goes the same ways.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from autoq.core.groups import ChannelGroup, Grouping, GroupKind, LeftAlone, Member, Role
from autoq.core.names import unique_name
from autoq.graph.channel_labels import KEPT, Labels, Units, first_along, varying
from autoq.graph.channel_rules import trace_node
from autoq.graph.channel_trace import Trace
from autoq.graph.drop_zero_states import DropZeroStates
from autoq.graph.layer_rules import trace_layer
from autoq.graph.layers import is_layer
from autoq.graph.settle_shapes import SettleShapes
from autoq.graph.split_before_transpose import SplitBeforeTranspose


@dataclass(frozen=True)
class ChannelMap:
    """Groups of a graph, and where their units lie in every value and layer: what narrowing needs."""

    grouping: Grouping
    units: dict[str, tuple[int, ...]]  # by group: the label of each unit
    values: dict[str, Labels]  # by value that can get narrower; 0 where it stays
    reads: dict[str, Labels]  # by layer: (input channels,)
    writes: dict[str, Labels]  # by layer: (output channels,)


def find_groups(model: ir.Model) -> Grouping:
    """Return the channel groups of a canonical float model, and what is left alone and why."""
    return map_channels(model).grouping


def clarify(model: ir.Model) -> None:
    """Rewrite what hides channels in place, exactly: shape arithmetic and what torch wraps around it."""
    SettleShapes()(model)
    SplitBeforeTranspose()(model)
    DropZeroStates()(model)
    common.RemoveUnusedNodesPass()(model)


def map_channels(model: ir.Model) -> ChannelMap:
    """Find the channel groups of a canonical float model, and all places that they reach.

    The model is not changed; places are those of the model once `clarify` has gone over it.
    """
    model = model.clone()
    clarify(model)
    trace = Trace()
    for node in model.graph:
        if is_layer(node):
            trace_layer(trace, node)
        else:
            trace_node(trace, node)
    _keep_borders(trace, model.graph)
    _make_rectangular(trace)
    members = _members(trace)
    _keep_useless(trace.units, members)
    values = {name: trace.units.find(labels) for name, labels in trace.labels.items()}
    families = _families(values, members)
    groups: dict[str, ChannelGroup] = {}
    units: dict[str, tuple[int, ...]] = {}
    for family in families:
        group = _group(trace, family, members, groups)
        groups[group.name], units[group.name] = group, family
    return ChannelMap(
        grouping=Grouping(tuple(groups.values()), tuple(_left_alone(trace, families))),
        units=units,
        values=values,
        reads={name: trace.units.find(labels) for name, labels in trace.reads.items()},
        writes={name: trace.units.find(labels) for name, labels in trace.writes.items()},
    )


def _keep_borders(trace: Trace, graph: ir.Graph) -> None:
    """Keep what reaches an output or the body of a control-flow node."""
    for output in graph.outputs:
        trace.units.keep(trace.of(output), f"they reach the output {output.name!r}")
    for node in graph:
        for value in node.outputs:
            inside = next((use.node for use in value.uses() if use.node.graph is not graph), None)
            if inside is not None:
                trace.units.keep(trace.of(value), f"{inside.name!r} reads them inside control flow")


def _make_rectangular(trace: Trace) -> None:
    """Unite labels until each value varies along one axis only, so that a part of it can be cut out.

    Of several axes the one with most labels stays free: what lies across it goes together.
    """
    pending = True
    while pending:
        pending = False
        for name, labels in trace.labels.items():
            found = trace.units.find(labels)
            axes = [axis for axis in varying(found) if (found != first_along(found, [axis])).any()]
            if not axes and found.any():
                trace.units.keep(labels, f"all of {name!r} would go")
            elif len(axes) > 1:
                widest = max(axes, key=lambda axis: labels.shape[axis])
                across = [axis for axis in axes if axis != widest]
                trace.freeze(labels, across, f"they lie across other channels in {name!r}")
                pending = True


_Members = dict[int, list[tuple[str, Role, list[int]]]]


def _members(trace: Trace) -> _Members:
    """List, for each label, the layers that write and read its channels, in the order of the graph."""
    members: _Members = defaultdict(list)
    for layer in trace.writes:
        for role, vectors in ((Role.READS, trace.reads), (Role.WRITES, trace.writes)):
            vector = vectors.get(layer)
            if vector is None:
                continue
            for label, channels in _positions(trace.units.find(vector)).items():
                members[label].append((layer, role, channels))
    return members


def _positions(vector: Labels) -> dict[int, list[int]]:
    """The places of each label that may go, labels in the order of their first place."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(vector.tolist()):
        if label != KEPT:
            places[label].append(place)
    return places


def _keep_useless(units: Units, members: _Members) -> None:
    """Keep what no layer reads: there is nothing by which its loss could be weighed."""
    for label, parts in list(members.items()):
        roles = {role for _, role, _ in parts}
        if len(roles) < 2:
            missing = "reads" if Role.READS not in roles else "writes"
            units.keep(np.array([label]), f"no layer {missing} them")
            del members[label]


def _families(values: dict[str, Labels], members: _Members) -> list[tuple[int, ...]]:
    """Sort labels into those that lie in the same values and layers: as long as one stays, none is empty."""
    ways: dict[int, list[str]] = {
        label: [f"{layer} {role}" for layer, role, _ in members[label]] for label in members
    }
    for name, labels in values.items():
        for label in np.unique(labels).tolist():
            if label != KEPT:
                ways[label].append(name)
    families: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for label, way in ways.items():
        families[tuple(way)].append(label)
    return [tuple(family) for family in families.values() if len(family) > 1]


def _group(
    trace: Trace, family: Sequence[int], members: _Members, taken: dict[str, ChannelGroup]
) -> ChannelGroup:
    ordered = [[channels for _, _, channels in members[label]] for label in family]
    parts = tuple(
        Member(layer, role, tuple(tuple(channels[index]) for channels in ordered))
        for index, (layer, role, _) in enumerate(members[family[0]])
    )
    kind = _kind(trace, family)
    return ChannelGroup(unique_name(_name(parts, kind), taken), len(family), kind, parts)


def _kind(trace: Trace, family: Sequence[int]) -> GroupKind:
    for kind, marked in ((GroupKind.HIDDEN, trace.hidden), (GroupKind.HEADS, trace.heads)):
        if any(np.isin(trace.units.find(labels), family).any() for labels in marked):
            return kind
    return GroupKind.CHANNELS


def _name(members: Sequence[Member], kind: GroupKind) -> str:
    writers = [member.layer for member in members if member.role is Role.WRITES]
    if kind is not GroupKind.HEADS:
        return writers[0]
    columns = zip(*(name.split(".") for name in writers), strict=False)
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns)]
    return f"{'.'.join(common) or writers[0]} heads"


def _left_alone(trace: Trace, families: Sequence[Sequence[int]]) -> Iterator[LeftAlone]:
    """Say of every layer of which some output channels stay why they do."""
    chosen = np.array([label for family in families for label in family], np.int64)
    for layer, made in trace.writes.items():
        found = trace.units.find(made)
        if np.isin(found, chosen).all():
            continue
        reasons = trace.units.reasons(made) or ["they go other ways than the rest, one by one"]
        yield LeftAlone(layer, "; ".join(reasons))
