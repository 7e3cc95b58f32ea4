"""From a candidate to the model that would be deployed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from autoq.assembly.borders import Border, find_borders
from autoq.assembly.bundle_estimate import BundleEstimator
from autoq.assembly.compress_layers import CompressLayers
from autoq.assembly.insert_qdq import InsertQdq
from autoq.assembly.local_errors import LocalError, local_error
from autoq.assembly.plan import Plan, RangeTable, build_plan, layer_sources
from autoq.calibration.statistics import Statistics
from autoq.core.artifacts import AssembledModel, ModelArtifact
from autoq.core.choices import AS_IT_IS, FLOAT, Candidate, Choice, Rewrites
from autoq.core.data import Array
from autoq.core.errors import TrialError
from autoq.core.layers import Layer
from autoq.graph.blocks import Block, find_blocks
from autoq.graph.float_model import FloatModel, serialize
from autoq.graph.layers import is_layer, layer_weight, weight_input, weight_parts
from autoq.graph.values import claim_names
from autoq.variants.bundle_size import packed_float_bytes
from autoq.variants.store import VariantStore
from autoq.variants.variant import Variant, WeightChoice


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
        self._weights = layer_weights(model)
        self._sources = layer_sources(self._blocks)
        self._leftover_bytes = _leftover_bytes(model)
        self._estimate_bundle = BundleEstimator()
        self._stored = {
            str(node.name): str(value.name)
            for node in model.graph.graph
            if is_layer(node) and (value := node.inputs[weight_input(node)]) is not None
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

    def _distinct(self, candidate: Candidate) -> dict[tuple[str, WeightChoice], int]:
        """Bytes of each tensor in the bundle: layers that share a weight and its treatment share its tensor.

        They do not where the treatment looks at inputs, which differ.
        """
        distinct, variants = {}, self.variants(candidate)
        for name, choice in self._choices(candidate).items():
            treatment = WeightChoice.of(choice)
            shared = treatment.is_plain and not self._layers[name].is_recurrent
            distinct[self._stored[name] if shared else name, treatment] = variants[name].bundle_bytes
        return distinct

    def local_error(self, layer: str, choice: Choice) -> LocalError:
        """Estimate what a choice does to the output of a layer, without running anything."""
        variant = self._variants.get(layer, WeightChoice.of(choice))
        source = self._sources.get(layer)
        return local_error(choice, variant, self._weights[layer], self._layers[layer], source, self._ranges)

    def bundle_bytes(self, layer: str, choice: Choice) -> int:
        """Bytes of one layer's tensors in the storage bundle."""
        return self._variants.get(layer, WeightChoice.of(choice)).bundle_bytes

    @property
    def fixed_bundle_bytes(self) -> int:
        """Bytes of the bundle that no choice changes."""
        return self._leftover_bytes

    def borders(self) -> list[Border]:
        """Tensors between layers and weightless ops, where integers may have to be converted."""
        return find_borders(self._blocks, self._ranges.statistics)

    def _choices(self, candidate: Candidate) -> dict[str, Choice]:
        return {name: candidate.by_layer.get(name, FLOAT) for name in self._layers}

    def assemble(self, candidate: Candidate) -> AssembledModel:
        """Build the model of a candidate.

        Raises:
            TrialError: The candidate needs a tensor that the statistics have not seen.
        """
        treatments = weight_choices(self._choices(candidate))
        # Layers that stay float are not written anew: nobody has to read what they weigh.
        variants = self._variants.get_all({n: one for n, one in treatments.items() if not one.is_untouched})
        plan = self.plan(candidate)
        changes_nothing = not plan.domains.quantized and set(self._choices(candidate).values()) == {FLOAT}
        artifact = (
            self._model.artifact
            if changes_nothing
            else build_model(self._model, self._blocks, plan, variants)
        )
        storage_only = tuple(
            name
            for name, choice in self._choices(candidate).items()
            if not self._is_native(self._layers[name], choice)
        )
        estimate = partial(self._bundle_bytes, artifact, candidate)
        return AssembledModel(artifact, estimate, storage_only)

    def _bundle_bytes(self, artifact: ModelArtifact, candidate: Candidate) -> int:
        """Estimate the bundle; a model of several files gets none, so its tensors are added up."""
        if artifact.content is not None:
            return self._estimate_bundle(artifact.content)
        return sum(self._distinct(candidate).values()) + self._leftover_bytes


class Stitchers:
    """Builds every candidate from the float model that its rewrites make; each is read when needed."""

    def __init__(self, load: Mapping[Rewrites, Callable[[], Stitcher]]) -> None:
        """Remember where they come from; the untouched model is among them."""
        self._load = load
        self._loaded: dict[Rewrites, Stitcher] = {}

    def load_all(self) -> None:
        """Read every float model now, so that no candidate has to wait for its own."""
        for rewrites in self._load:
            self.of(rewrites)

    def float_model(self) -> ModelArtifact:
        """Return the baseline: the float model as it was given."""
        return self.of(AS_IT_IS).float_model()

    def assemble(self, candidate: Candidate) -> AssembledModel:
        """Build the model of a candidate.

        Raises:
            TrialError: Its rewrites were not prepared, or a tensor it needs was not calibrated.
        """
        return self.of(candidate.rewrites).assemble(candidate)

    def of(self, rewrites: Rewrites) -> Stitcher:
        """Return the stitcher of some rewrites.

        Raises:
            TrialError: They were not prepared.
        """
        if rewrites not in self._load:
            raise TrialError(f"the rewrites {rewrites} were not prepared")
        if rewrites not in self._loaded:
            self._loaded[rewrites] = self._load[rewrites]()
        return self._loaded[rewrites]


def build_model(
    model: FloatModel, blocks: Sequence[Block], plan: Plan, variants: Mapping[str, Variant]
) -> ModelArtifact:
    """Carry out a plan on a copy of the float model. Pure: equal inputs give equal bytes."""
    graph = model.clone()
    claim_names(graph.graph)
    insert = InsertQdq(plan, list(blocks))
    insert(graph)
    CompressLayers(plan, variants, insert.tensors, layer_sources(blocks))(graph)
    return serialize(graph)


def weight_choices(choices: Mapping[str, Choice]) -> dict[str, WeightChoice]:
    """Return what each layer's variant is keyed by."""
    return {name: WeightChoice.of(choice) for name, choice in choices.items()}


def layer_weights(model: FloatModel) -> dict[str, Array]:
    """Return the float weight of every layer."""
    return {str(node.name): layer_weight(node) for node in model.graph.graph if is_layer(node)}


def _leftover_bytes(model: FloatModel) -> int:
    """Packed size of everything that no choice touches: embeddings, norms, biases."""
    owned = {
        node.inputs[index]
        for node in model.graph.graph
        if is_layer(node)
        for index, _ in weight_parts(node, layer_weight(node))
    }
    total = 0
    for value in model.graph.graph.initializers.values():
        only_layers_read = value in owned and all(is_layer(use.node) for use in value.uses())
        if only_layers_read or value.const_value is None:
            continue
        array = value.const_value.numpy()
        is_float = array.dtype == np.float32
        total += packed_float_bytes(array) if is_float else int(array.nbytes)
    return total
