"""From a candidate to the model that would be deployed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autoq.assembly.compress_layers import CompressLayers
from autoq.assembly.insert_qdq import InsertQdq
from autoq.assembly.plan import Plan, RangeTable, build_plan
from autoq.calibration.statistics import Statistics
from autoq.core.artifacts import AssembledModel, ModelArtifact
from autoq.core.choices import FLOAT, Candidate, Choice
from autoq.core.data import Array
from autoq.core.layers import Layer
from autoq.graph.blocks import Block, BlockKind, find_blocks
from autoq.graph.float_model import FloatModel, serialize
from autoq.graph.layers import is_layer
from autoq.graph.values import claim_names
from autoq.variants.bundle_size import packed_float_bytes
from autoq.variants.store import VariantStore
from autoq.variants.variant import Variant, WeightChoice

# What the bundle needs beside tensors: the graph, the index, a digest each.
_BUNDLE_OVERHEAD = 4096


class Stitcher:
    """Builds candidates of one float model from stored statistics and variants; needs no data."""

    def __init__(
        self,
        model: FloatModel,
        statistics: Statistics,
        variants: VariantStore,
        is_native: Callable[[Layer, Choice], bool],
    ) -> None:
        self._model = model
        self._variants = variants
        self._is_native = is_native
        self._layers = {layer.name: layer for layer in model.summary.layers}
        self._blocks = find_blocks(model.graph)
        self._ranges = RangeTable(statistics)
        self._leftover_bytes = _leftover_bytes(model)
        self._stored = {
            str(node.name): str(node.inputs[1].name)
            for node in model.graph.graph
            if is_layer(node) and node.inputs[1] is not None
        }

    def float_model(self) -> ModelArtifact:
        """Return the baseline."""
        return self._model.artifact

    def plan(self, candidate: Candidate) -> Plan:
        """Decide where integers flow and with which scales."""
        return build_plan(self._blocks, candidate, self._ranges)

    def variants(self, candidate: Candidate) -> dict[str, Variant]:
        """Return the compressed weights of every layer."""
        return self._variants.get_all(weight_choices(self._choices(candidate)))

    def _choices(self, candidate: Candidate) -> dict[str, Choice]:
        return {name: candidate.by_layer.get(name, FLOAT) for name in self._layers}

    def assemble(self, candidate: Candidate) -> AssembledModel:
        """Build the model of a candidate.

        Raises:
            TrialError: The candidate needs a tensor that the statistics have not seen.
        """
        variants = self.variants(candidate)
        plan = self.plan(candidate)
        changes_nothing = not plan.domains.quantized and set(self._choices(candidate).values()) == {FLOAT}
        artifact = (
            self._model.artifact
            if changes_nothing
            else build_model(self._model, self._blocks, plan, variants)
        )
        # Layers that share a weight and its treatment share its tensor in the bundle.
        distinct = {
            (self._stored[name], WeightChoice.of(choice)): variants[name].bundle_bytes
            for name, choice in self._choices(candidate).items()
        }
        packed = sum(distinct.values())
        storage_only = tuple(
            name
            for name, choice in self._choices(candidate).items()
            if not self._is_native(self._layers[name], choice)
        )
        return AssembledModel(artifact, packed + self._leftover_bytes + _BUNDLE_OVERHEAD, storage_only)


def build_model(
    model: FloatModel, blocks: Sequence[Block], plan: Plan, variants: Mapping[str, Variant]
) -> ModelArtifact:
    """Carry out a plan on a copy of the float model. Pure: equal inputs give equal bytes."""
    graph = model.clone()
    claim_names(graph.graph)
    insert = InsertQdq(plan, list(blocks))
    insert(graph)
    sources = {block.name: block.sources[0] for block in blocks if block.kind is BlockKind.LAYER}
    CompressLayers(plan.candidate, variants, insert.tensors, sources)(graph)
    return serialize(graph)


def weight_choices(choices: Mapping[str, Choice]) -> dict[str, WeightChoice]:
    """Return what each layer's variant is keyed by."""
    return {name: WeightChoice.of(choice) for name, choice in choices.items()}


def layer_weights(model: FloatModel) -> dict[str, Array]:
    """Return the float weight of every layer."""
    weights = {}
    for node in model.graph.graph:
        if is_layer(node):
            value = node.inputs[1]
            assert value is not None
            assert value.const_value is not None
            weights[str(node.name)] = value.const_value.numpy()
    return weights


def _leftover_bytes(model: FloatModel) -> int:
    """Packed size of everything that no choice touches: embeddings, norms, biases."""
    owned = {node.inputs[1] for node in model.graph.graph if is_layer(node)}
    total = 0
    for value in model.graph.graph.initializers.values():
        only_layers_read = value in owned and all(is_layer(use.node) for use in value.uses())
        if only_layers_read or value.const_value is None:
            continue
        array = value.const_value.numpy()
        is_float = array.dtype == np.float32
        total += packed_float_bytes(array) if is_float else int(array.nbytes)
    return total
