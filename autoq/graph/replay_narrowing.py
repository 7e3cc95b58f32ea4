"""Rewrite: narrow a model as it was narrowed before, from the units kept and the constants refitted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.graph.find_groups import map_channels
from autoq.graph.narrow import NarrowGroups
from autoq.graph.values import claim_names, constant, set_initializer

Units = Mapping[str, npt.NDArray[np.int64]]  # by channel group, rising
Constants = Mapping[str, npt.NDArray[np.float32]]  # by place: `input index|node`

_MOST_INPUTS = 8


class ReplayNarrowing(ir.passes.InPlacePass):
    """Cut units out, then put refitted weights and biases in the place of what the cut has left."""

    def __init__(self, kept: Units, constants: Constants) -> None:
        self._kept, self._constants = kept, constants

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Narrow, if there is anything to.

        Raises:
            ValueError: A group, unit, node or shape is not the model's.
        """
        if not self._kept and not self._constants:
            return ir.passes.PassResult(model, modified=False)
        claim_names(model.graph)
        kept = {name: [int(unit) for unit in np.ravel(units)] for name, units in self._kept.items()}
        NarrowGroups(kept, map_channels(model))(model)
        nodes = {str(node.name): node for node in model.graph}
        for place, array in self._constants.items():
            name, index = _node_and_input(place)
            if name not in nodes:
                raise ValueError(f"no node {name!r}")
            _set_constant(model.graph, nodes[name], index, array)
        return ir.passes.PassResult(model, modified=True)


def changed_constants(cut: ir.Model, narrowed: ir.Model) -> dict[str, npt.NDArray[np.float32]]:
    """Return what `ReplayNarrowing` needs to make of a model that was only cut one that was refitted too.

    Args:
        cut: The model without the units that went.
        narrowed: The same nodes, some with other constants.
    """
    before = {str(node.name): node for node in cut.graph}
    found = {}
    for node in narrowed.graph:
        old = before[str(node.name)].inputs
        for index, value in enumerate(node.inputs):
            array = constant(value)
            known = constant(old[index]) if index < len(old) else None
            if array is not None and (known is None or not np.array_equal(array, known)):
                found[f"{index}|{node.name}"] = array
    return found


def _node_and_input(place: str) -> tuple[str, int]:
    index, _, name = place.partition("|")
    if not index.isdigit() or int(index) >= _MOST_INPUTS:
        raise ValueError(f"no input of a node: {place!r}")
    return name, int(index)


def _set_constant(graph: ir.Graph, node: ir.Node, index: int, array: npt.NDArray[np.float32]) -> None:
    old = node.inputs[index] if index < len(node.inputs) else None
    known = constant(old)
    if old is not None and (known is None or known.shape != array.shape or known.dtype != array.dtype):
        raise ValueError(f"{node.name!r} has no such constant of shape {array.shape}")
    name = f"{node.name}_{index}" if old is None else str(old.name)
    set_initializer(graph, node, index, name, array)
