"""What is known of the channels of every value while a graph is walked from its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from autoq.graph.channel_labels import (
    Dims,
    Labels,
    Units,
    along,
    compact,
    first_along,
    unlabelled,
    varying,
)
from autoq.graph.values import rank_of

Operand: TypeAlias = tuple[Labels, Dims | None]  # what is labelled, and its shape


class Trace:
    """Labels of values by name, and of the channels that layers read and write."""

    def __init__(self) -> None:
        self.units = Units()
        self.labels: dict[str, Labels] = {}
        self.reads: dict[str, Labels] = {}  # by layer: one label for each input channel
        self.writes: dict[str, Labels] = {}  # by layer: one label for each output channel
        self.heads: list[Labels] = []  # what products of two activations have in common
        self.hidden: list[Labels] = []  # units of recurrent layers

    def of(self, value: ir.Value | None) -> Labels:
        """Return the labels of a value; a constant or a value of unknown rank has none."""
        rank = rank_of(value)
        if value is None or rank is None:
            return unlabelled(0)
        return self.labels.get(str(value.name), unlabelled(rank))

    def set(self, value: ir.Value, labels: Labels) -> None:
        """Label a value that a node has made."""
        labels = compact(labels)
        if not _fits(labels, dims_of(value)):
            self.units.keep(labels, f"the shape of {value.name!r} is not known")
        elif varying(labels):
            self.labels[str(value.name)] = labels
        else:  # nothing of it can be cut off
            self.units.keep(labels, f"{value.name!r} is a single one of them")

    def freeze(self, labels: Labels, axes: Iterable[int], reason: str) -> None:
        """Say that a value may not get shorter along some axes: labels along them are one set."""
        chosen = set(axes) & set(varying(labels))
        if chosen == set(varying(labels)):
            self.units.keep(labels, reason)
        elif chosen:
            self.units.join(labels, first_along(labels, chosen), reason)

    def read(self, node: ir.Node, value: ir.Value | None, *, axis: int, width: int) -> Labels:
        """Note that a layer weighs the channels along one axis of a value: (width,)."""
        labels, name = self.of(value), str(node.name)
        if not labels.ndim:
            self.reads[name] = np.zeros(width, np.int64)
            return self.reads[name]
        axis %= labels.ndim
        others = [other for other in varying(labels) if other != axis]
        self.freeze(labels, others, f"{name!r} reads them as positions")
        vector = first_along(labels, others).reshape(-1)
        if vector.size not in (1, width):
            self.units.keep(vector, f"{name!r} reads another number of them")
            vector = np.zeros(width, np.int64)
        self.reads[name] = np.array(np.broadcast_to(vector, width))
        return self.reads[name]

    def write(self, node: ir.Node, *, axis: int, width: int) -> Labels:
        """Give new labels to the channels that a layer makes along one axis of its output: (width,)."""
        made, value = self.units.make(width), node.outputs[0]
        self.writes[str(node.name)] = made
        rank = rank_of(value)
        if width == 1:
            self.units.keep(made, "there is only one")
        elif rank is None:
            self.units.keep(made, f"the shape of {value.name!r} is not known")
        else:
            self.set(value, along(made, axis=axis, rank=rank))
        return made

    def merge(self, operands: Sequence[Operand], rank: int, reason: str) -> Labels:
        """Label the result of an elementwise operation with broadcasting.

        Args:
            operands: What is computed from; no constants, which are cut as the result is.
            rank: Of the result.
            reason: Why channels stay that meet something without labels.
        """
        padded = [_pad(labels, rank) for labels, _ in operands]
        labelled = [labels for labels in padded if labels.any()]
        if not labelled:
            return unlabelled(rank)
        merged = self._joined(labelled, reason)
        for labels, (_, dims) in zip(padded, operands, strict=True):
            if not labels.any():
                self.freeze(merged, _long_axes(dims, rank), reason)
        return merged

    def _joined(self, labelled: Sequence[Labels], reason: str) -> Labels:
        try:
            shape = np.broadcast_shapes(*(labels.shape for labels in labelled))
        except ValueError:  # no valid model, or shapes that inference got wrong
            for labels in labelled:
                self.units.keep(labels, reason)
            return unlabelled(labelled[0].ndim)
        first = np.broadcast_to(labelled[0], shape)
        for other in labelled[1:]:
            self.units.join(first, other, reason)
        return np.array(first)


def dims_of(value: ir.Value | None) -> Dims | None:
    """Return the shape of a value: lengths, names of dynamic axes, and None for unknown ones."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _fits(labels: Labels, dims: Dims | None) -> bool:
    if dims is None or len(dims) != labels.ndim:
        return False
    return all(labels.shape[axis] == dims[axis] or dims[axis] is None for axis in varying(labels))


def _pad(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _long_axes(dims: Dims | None, rank: int) -> list[int]:
    """Axes of a result along which an operand of this shape is not repeated."""
    if dims is None:
        return list(range(rank))
    offset = rank - len(dims)
    return [offset + axis for axis, size in enumerate(dims) if size != 1]
