"""Refit the layers of a narrowed model on its own activations, one after the other.

A snapshot's refit knows the float model's activations only. Here each layer, in order of depth, learns to
write what it wrote in the float model from what the layers before it, already refitted, now give it: what
they got wrong is made up for as far as a linear layer can. It needs both models to be run, up to each
depth, so it is for the few narrower models of a search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.assembly.biases import correct_bias
from autoq.assembly.parts import by_depth, cut_after
from autoq.calibration.geometry import Floats, LayerInput, Positions, find_layer_inputs
from autoq.calibration.masks import Mask
from autoq.calibration.moments import sampled_positions, vectors_wanted
from autoq.calibration.tensor_run import SeenBatch, TensorRun, find_masks
from autoq.core.data import Split
from autoq.core.layers import Layer
from autoq.graph.blocks import bias_add
from autoq.graph.float_model import FloatModel, describe_graph
from autoq.graph.layers import is_linear, layer_weight
from autoq.graph.values import claim_names, constant, set_initializer
from autoq.pruning.refit import fit_residual
from autoq.variants.rows import from_rows, to_rows

_VECTORS_PER_COLUMN = 4
_MIN_VECTORS = 4096
_SAME_PLACES = "5e9"  # both models are looked at in the same positions


class SequentialRefitter:
    """Refits narrowed models of one float model over a split."""

    def __init__(self, model: FloatModel, split: Split) -> None:
        self._model, self._split = model, split

    @cached_property
    def _masks(self) -> tuple[Mask, ...]:
        return find_masks(self._model, self._split)

    def refit(self, narrowed: FloatModel, kept: Mapping[str, Sequence[int]]) -> FloatModel:
        """Return the narrowed model with its layers refitted.

        Left as they are: recurrences, embeddings, convolutions in groups, products without a bias, and
        layers whose positions cannot be told apart by example.

        Args:
            narrowed: A narrowed model, its layers named as in the float model.
            kept: Output channels that stayed, by layer; layers that are missing kept all.

        Raises:
            ModelError: The runtime refuses a model.
        """
        graph = narrowed.clone()
        claim_names(graph.graph)
        layers = {layer.name: layer for layer in narrowed.summary.layers}
        inputs = find_layer_inputs(narrowed)

        def can_be_refitted(node: ir.Node) -> bool:
            one = inputs.get(str(node.name))
            known = one is not None and one.geometry is not None and one.geometry.groups == 1
            return known and is_linear(node) and (node.op_type != "MatMul" or bias_add(node) is not None)

        for nodes in by_depth(graph, can_be_refitted):
            sites = [_Site.of(node, layers, inputs, kept, self._split.n_examples) for node in nodes]
            targets = [(site, site.output) for site in sites]
            wanted = self._run(self._model.graph, targets, _Site.outputs_of, self._masks)
            known = [place for place, outputs in enumerate(wanted) if outputs is not None]
            sources = [(sites[place], sites[place].inputs.source) for place in known]
            for place, vectors in zip(known, self._run(graph, sources, _Site.vectors_of), strict=True):
                outputs = wanted[place]
                if outputs is not None and vectors is not None:
                    _refit(graph.graph, nodes[place], sites[place], vectors, outputs)
        return describe_graph(graph)

    def _run(
        self,
        graph: ir.Model,
        wanted: Sequence[tuple[_Site, str]],
        take: _Take,
        masks: Sequence[Mask] = (),
    ) -> list[_Halves | None]:
        """Take vectors out of one tensor a site, those of even and of odd examples apart."""
        names = list(dict.fromkeys(name for _, name in wanted))
        made = {value.name for node in graph.graph for value in node.outputs}
        shown = [name for name in names if name in made]
        model = cut_after(graph, shown) if shown else self._model
        found: list[tuple[list[Floats], list[Floats]] | None] = [([], []) for _ in wanted]
        for seen in TensorRun(model, names, self._split, masks).batches():
            for index, (site, name) in enumerate(wanted):
                halves, rows = found[index], take(site, seen, name)
                if halves is None or rows is None:
                    found[index] = None
                    continue
                for example, one in enumerate(rows, seen.first):
                    halves[example % 2].append(one)
        return [None if halves is None else _joined(*halves) for halves in found]


@dataclass(frozen=True)
class _Site:
    """A layer to be refitted: where its inputs and outputs are, and which of them are looked at."""

    layer: Layer
    inputs: LayerInput
    output: str  # with its bias; the same value in both models
    kept: tuple[int, ...] | None  # of the float model's output channels
    n_examples: int
    positions: dict[int, Positions] = field(default_factory=dict)  # looked at, by example

    @staticmethod
    def of(
        node: ir.Node,
        layers: Mapping[str, Layer],
        inputs: Mapping[str, LayerInput],
        kept: Mapping[str, Sequence[int]],
        n_examples: int,
    ) -> _Site:
        name = str(node.name)
        stays = tuple(kept[name]) if name in kept else None
        return _Site(layers[name], inputs[name], str(_output(node).name), stays, n_examples)

    def outputs_of(self, seen: SeenBatch, name: str) -> list[Floats] | None:
        """Choose positions without padding; return outputs there, (positions, kept channels) an example."""
        array, padding = seen.by_example(name), seen.padding_by_example(name)
        if array is None:
            return None
        chosen, outputs = [], self._rows(array, seen)
        flags = None if padding is None else np.any(self._rows(padding, seen), axis=2)
        for index, rows in enumerate(outputs):
            left = np.arange(len(rows)) if flags is None else np.flatnonzero(np.logical_not(flags[index]))
            positions = left[self._sampled(seen.first + index, len(left))]
            self.positions[seen.first + index] = positions
            chosen.append(rows[positions] if self.kept is None else rows[positions][:, list(self.kept)])
        return chosen

    def vectors_of(self, seen: SeenBatch, name: str) -> list[Floats] | None:
        """Return what is read for the outputs that were chosen, (positions, columns) an example."""
        array, geometry = seen.by_example(name), self.inputs.geometry
        if array is None or geometry is None:
            return None
        examples = array.reshape(seen.n_examples, -1, *array.shape[1:])[: seen.n_real]
        return [geometry.vectors(one, self.positions[seen.first + at])[0] for at, one in enumerate(examples)]

    def _rows(self, array: npt.NDArray[Any], seen: SeenBatch) -> npt.NDArray[Any]:
        """Outputs of each example, (examples, positions, channels)."""
        examples = array.reshape(seen.n_examples, -1, *array.shape[1:])[: seen.n_real]
        moved = np.moveaxis(examples, self.inputs.channel_axis % array.ndim + 1, -1)
        return moved.reshape(len(moved), -1, moved.shape[-1])

    def _sampled(self, example: int, n_positions: int) -> Positions:
        assert self.inputs.geometry is not None
        n_vectors = max(_VECTORS_PER_COLUMN * self.inputs.geometry.columns, _MIN_VECTORS)
        wanted = vectors_wanted(example, self.n_examples, n_vectors)
        return sampled_positions(_SAME_PLACES, example, n_positions, wanted)


_Halves = tuple[Floats, Floats]
_Take = Callable[[_Site, SeenBatch, str], list[Floats] | None]


def _joined(first: Sequence[Floats], second: Sequence[Floats]) -> _Halves | None:
    """The vectors of both halves; None where one of them has none."""
    if not (sum(map(len, first)) and sum(map(len, second))):
        return None
    return np.concatenate(first), np.concatenate(second)


def _refit(
    graph: ir.Graph,
    node: ir.Node,
    site: _Site,
    vectors: _Halves,
    outputs: _Halves,
) -> None:
    rows = to_rows(layer_weight(node), site.layer)[0]
    first, second = (y - x @ rows.T for x, y in zip(vectors, outputs, strict=True))
    change, bias = fit_residual(vectors, (first, second))
    correct_bias(graph, node, bias - _bias(node, len(bias)))
    value = node.inputs[1]
    assert value is not None
    set_initializer(graph, node, 1, str(value.name), from_rows((rows + change)[None], site.layer))


def _output(node: ir.Node) -> ir.Value:
    """Where a layer's outputs are, its bias added."""
    add = bias_add(node) if node.op_type == "MatMul" else None
    return (node if add is None else add).outputs[0]


def _bias(node: ir.Node, size: int) -> Floats:
    add = bias_add(node) if node.op_type == "MatMul" else None
    values = node.inputs[2:3] if add is None else add.inputs
    found = [array for array in map(constant, values) if array is not None]
    return found[0].astype(np.float32) if found else np.zeros(size, np.float32)
