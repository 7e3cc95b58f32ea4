"""From a float model and a width for each channel group to a narrower float model, refitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autoq.assembly.assemble import layer_weights
from autoq.assembly.biases import correct_bias
from autoq.calibration.moments import Moments
from autoq.core.choices import Criterion
from autoq.core.data import Array
from autoq.core.errors import UnknownNameError
from autoq.core.groups import ChannelGroup, GroupKind, Role
from autoq.graph.blocks import bias_add
from autoq.graph.find_groups import ChannelMap, map_channels
from autoq.graph.float_model import FloatModel, describe_graph
from autoq.graph.layers import is_layer, weight_input
from autoq.graph.narrow import NarrowGroups
from autoq.graph.values import claim_names, set_initializer
from autoq.pruning.consumers import find_consumers
from autoq.pruning.fisher import MaskGradients, order_by_fisher
from autoq.pruning.scores import removal_order
from autoq.pruning.snapshot_store import SnapshotStore
from autoq.pruning.widths import GroupSnapshots, Snapshot, build_snapshots, width_grid
from autoq.variants.rows import from_rows, to_rows

Widths = Mapping[str, int]  # units that stay, by group

MULTIPLES = (16, 8)  # of channels: registers of int32 sums with AVX512, and half of one
_FEWEST_WIDTHS = 4  # of a group, before it takes a finer grid


class Narrower:
    """Makes a narrower model of any widths on the grid: a trial picks snapshots, and solves nothing."""

    def __init__(
        self, model: FloatModel, channels: ChannelMap, snapshots: Mapping[str, GroupSnapshots]
    ) -> None:
        self._model, self._channels = model, channels
        self._layers = {layer.name: layer for layer in model.summary.layers}
        self.snapshots = snapshots  # by group, those that may get narrower

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Groups that may get narrower, in graph order."""
        return tuple(one.group for one in self.snapshots.values())

    def kept(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        """Return the units that stay, by group; groups that are not named keep all.

        Raises:
            UnknownNameError: A group is not known, or has no such width.
        """
        return {name: self._snapshot(name, width).kept for name, width in widths.items()}

    def kept_outputs(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        """Return the output channels that stay, rising, of each layer that loses some.

        Raises:
            UnknownNameError: A group is not known, or has no such width.
        """
        gone: dict[str, set[int]] = {}
        for name, width in widths.items():
            kept = set(self._snapshot(name, width).kept)
            for member in self.snapshots[name].group.members:
                if member.role is Role.WRITES:
                    removed = (one for unit, one in enumerate(member.channels) if unit not in kept)
                    gone.setdefault(member.layer, set()).update(*removed)
        return {
            name: tuple(np.setdiff1d(np.arange(self._n_outputs(name)), list(channels)).tolist())
            for name, channels in gone.items()
            if channels
        }

    def _n_outputs(self, name: str) -> int:
        layer = self._layers[name]
        n_channels = layer.weight_shape[layer.channel_axis]
        return n_channels * layer.group if layer.op == "ConvTranspose" else n_channels

    def narrow(self, widths: Widths) -> FloatModel:
        """Derive the narrower model; equal widths give equal bytes.

        Weights that read a narrowed group are refitted, then everything is cut: the rows of a refitted
        weight may be another group's to cut, which is exact.

        Raises:
            UnknownNameError: A group is not known, or has no such width.
        """
        return self._cut(self._refitted(widths), widths)

    def cut(self, widths: Widths) -> FloatModel:
        """Derive the narrower model without refitting anything: what the refit is compared with.

        Raises:
            UnknownNameError: A group is not known, or has no such width.
        """
        return self._cut({}, widths)

    def _cut(self, refitted: Mapping[str, tuple[Array, Array]], widths: Widths) -> FloatModel:
        graph = self._model.clone()
        claim_names(graph.graph)
        nodes = {node.name: node for node in graph.graph}
        for layer, (weight, bias) in refitted.items():
            node = nodes[layer]
            correct_bias(graph.graph, node, bias)
            index = weight_input(node)
            old = node.inputs[index]
            assert old is not None
            set_initializer(graph.graph, node, index, str(old.name), weight)
        NarrowGroups(self.kept(widths), self._channels)(graph)
        return describe_graph(graph)

    def _refitted(self, widths: Widths) -> dict[str, tuple[Array, Array]]:
        """Weights at full size, zero where a removed unit was read, with what to add to the bias."""
        rows: dict[str, tuple[Array, Array]] = {}
        weights = layer_weights(self._model)
        for name, width in widths.items():
            for layer, parts in self._snapshot(name, width).refits.items():
                if layer not in rows:
                    weight = to_rows(weights[layer], self._layers[layer]).copy()
                    rows[layer] = weight, np.zeros(weight.shape[:2], np.float32)
                weight, bias = rows[layer]
                for part in parts:
                    weight[part.row_group][:, part.replaced] = 0.0
                    weight[part.row_group][:, part.refit.columns] = part.refit.weight
                    bias[part.row_group] += part.refit.bias
        return {
            name: (from_rows(weight, self._layers[name]), bias.reshape(-1))
            for name, (weight, bias) in rows.items()
        }

    def _snapshot(self, name: str, width: int) -> Snapshot:
        if name not in self.snapshots:
            known = ", ".join(self.snapshots) or "none"
            raise UnknownNameError(f"no channel group {name!r} to narrow", hint=f"channel groups: {known}")
        return self.snapshots[name].at(width)


def build_narrower(
    model: FloatModel,
    moments: Callable[[str], Moments | None],
    *,
    multiples: Sequence[int] = MULTIPLES,
    criterion: Criterion = Criterion.OBS,
    gradients: MaskGradients | None = None,
) -> Narrower:
    """Find the channel groups of a model, order their units and refit what reads them at every width.

    Groups that nothing reads whose inputs have second moments stay as they are: there is nothing to
    order them by and nothing to refit.

    Args:
        model: Canonical float model.
        moments: Gives the second moments of a layer's inputs.
        multiples: Channels that the target likes a width to be a multiple of, best first; a group that
            has too few widths by one takes the next.
        criterion: What units are ordered by.
        gradients: For Fisher scores; groups whose gradients are not known are ordered by OBS.
    """
    channels = map_channels(model.graph)
    layers = {layer.name: layer for layer in model.summary.layers}
    weights = layer_weights(model)
    fixed = _without_bias(model)
    snapshots = {}
    for group in channels.grouping.groups:
        consumers = find_consumers(group, layers, weights, moments, without_bias=fixed)
        if consumers:
            order = (
                removal_order(consumers, group.size, criterion)
                if gradients is None or gradients.why_none(group)
                else order_by_fisher(gradients.of_units(consumers, group.size))
            )
            widths = width_grid(group.size, _step(group, multiples))
            snapshots[group.name] = build_snapshots(group, consumers, order, widths)
    return Narrower(model, channels, snapshots)


def open_narrower(model: FloatModel, store: SnapshotStore) -> Narrower | None:
    """Open what `build_narrower` made and `SnapshotStore.save` kept; None if it is not there."""
    channels = map_channels(model.graph)
    snapshots = store.load(channels.grouping.groups)
    return None if snapshots is None else Narrower(model, channels, snapshots)


def units_of(multiple: int, group: ChannelGroup) -> int:
    """Return the fewest units of a group that are a multiple of so many channels; a head stands alone."""
    if group.kind is GroupKind.HEADS:
        return 1
    per_unit = min((len(unit) for member in group.members for unit in member.channels), default=1)
    return multiple // math.gcd(multiple, per_unit)


def _step(group: ChannelGroup, multiples: Sequence[int]) -> int:
    steps = [units_of(multiple, group) for multiple in multiples]
    return next((step for step in steps if group.size >= _FEWEST_WIDTHS * step), steps[-1])


def _without_bias(model: FloatModel) -> frozenset[str]:
    """Products that nothing constant is added to: what a removed unit was on average cannot be made up."""
    return frozenset(
        str(node.name)
        for node in model.graph.graph
        if is_layer(node) and node.op_type == "MatMul" and bias_add(node) is None
    )
