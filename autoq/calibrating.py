"""Statistics and variants of a float model, and of what rewrites make of it: collected once, then kept."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autoq.assembly.assemble import Stitcher, Stitchers, layer_weights
from autoq.assembly.plan import OutlierChannels
from autoq.calibration.collect import collect_statistics
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.statistics import (
    Statistics,
    load_channel_maxima,
    load_statistics,
    save_statistics,
    statistics_key,
)
from autoq.core.choices import AS_IT_IS, FLOAT, Candidate, Choice, Rewrites
from autoq.core.data import Split
from autoq.core.errors import InfrastructureError
from autoq.core.files import written_whole
from autoq.core.layers import Layer
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.ports import Target
from autoq.graph.blocks import find_blocks, quantizable_values
from autoq.graph.float_model import FloatModel, reload_float_model
from autoq.graph.rewriting import Means, Narrow, RewriteVectors, rewrite_model
from autoq.home import Home
from autoq.search.anchors import Anchor
from autoq.search.ports import SearchListener
from autoq.search.space import SearchSpace
from autoq.variants.build import LayerBuilder
from autoq.variants.store import VARIANT_MEMORY_BYTES, VariantStore
from autoq.variants.variant import WeightChoice

_log = logging.getLogger("autoq")

# More than this is not built ahead of the trials: it would take longer than it saves.
_PREBUILD_WEIGHTS = 600_000_000

Load = Callable[[FloatModel], Statistics]


@dataclass(frozen=True)
class Source:
    """A float model that candidates are built from: as it was given, or rewritten."""

    model: FloatModel
    vectors: RewriteVectors
    statistics_key: str


@dataclass(frozen=True)
class SourceKeys:
    """What a source is found by in the home; it pickles."""

    model_digest: str
    statistics_key: str

    @staticmethod
    def of(source: Source) -> SourceKeys:
        """Name a source that `save_model` and `Calibrator` have kept."""
        return SourceKeys(source.model.summary.digest, source.statistics_key)


class Calibrator:
    """Gives statistics of float models over one calibration split, from the cache or from a pass over it."""

    def __init__(
        self, home: Home, calibration: Split, environment: Mapping[str, Any], listener: SearchListener
    ) -> None:
        self._home, self._listener = home, listener
        self.calibration = calibration
        self.key: Callable[[FloatModel], str] = partial(
            key_of, data_digest=calibration.digest, environment=environment
        )

    def moments(self, model: FloatModel) -> MomentStore:
        """Open the second moments of a model whose statistics were asked for before."""
        return MomentStore.beside(self._home.statistics(self.key(model)))

    def __call__(self, model: FloatModel) -> Statistics:
        """Return the statistics of a model; its second moments lie beside them afterwards.

        Raises:
            UserError: The runtime refuses the model or the data.
        """
        path = self._home.statistics(self.key(model))
        moments = self.moments(model)
        known = load_statistics(path)
        if known is not None and moments.is_complete:
            self._listener.on_note(
                f"statistics: reused, {known.n_examples} examples collected earlier{_padding_left_out(known)}"
            )
            return known
        self._listener.on_phase("statistics", f"one pass over {self.calibration.n_examples} examples")
        with machine_clock():
            values = quantizable_values(find_blocks(model.graph))
            statistics = collect_statistics(model, values, self.calibration, moments=moments)
            save_statistics(statistics, path)
        self._listener.on_note(
            f"statistics: collected in {statistics.seconds:.1f} s, kept for later searches"
            f"{_padding_left_out(statistics)}"
        )
        return statistics


def _padding_left_out(statistics: Statistics) -> str:
    if not statistics.padding:
        return ""
    masks = ", ".join(f"{share:.0%} of the positions by {name}" for name, share in statistics.padding.items())
    n_padded, n_all = len(statistics.padded), len(statistics.tensors)
    return f"; padding ({masks}) is left out of {n_padded} of {n_all} tensors"


def key_of(model: FloatModel, data_digest: str, environment: Mapping[str, Any]) -> str:
    """Name the statistics of a model over a calibration split."""
    return statistics_key(model.summary.digest, data_digest, environment)


def derive(
    model: FloatModel,
    rewrites: Rewrites,
    load: Load,
    key: Callable[[FloatModel], str],
    narrow: Narrow | None = None,
) -> Source:
    """Rewrite a float model and calibrate what comes out; equal inputs give equal bytes.

    Args:
        model: Canonical float model.
        rewrites: What to do with it.
        load: Gives the statistics of a model.
        key: Names them.
        narrow: Narrows a model, if the rewrites have widths.
    """
    rewritten, vectors = rewrite_model(model, rewrites, Means(lambda one: load(one).channel_maxima, narrow))
    load(rewritten)
    return Source(rewritten, vectors, key(rewritten))


def rewrites_of(space: SearchSpace, anchors: Iterable[Anchor]) -> list[Rewrites]:
    """Every combination of rewrites that a candidate may have, the untouched model first."""
    used = [anchor.candidate.rewrites for anchor in anchors]
    return list(dict.fromkeys([AS_IT_IS, *space.rewrites.all, *used]))


def save_model(model: FloatModel, home: Home, *, anew: bool = False) -> Path:
    """Keep a canonical model in the home, where trials read it.

    Args:
        model: The model.
        home: Where models are kept.
        anew: Whether to write it even if it seems to be there.
    """
    path = home.model(model.summary.digest)
    if anew or not all(file.exists() for file in model.artifact.at(path).files):
        with written_whole(path) as temporary:
            model.artifact.save(temporary)
    return path


def load_source(home: Home, keys: SourceKeys) -> tuple[FloatModel, Statistics]:
    """Read a source from the home.

    Raises:
        InfrastructureError: It is not there, or damaged.
    """
    path = home.model(keys.model_digest)
    statistics = load_statistics(home.statistics(keys.statistics_key))
    if statistics is not None and path.exists():
        model = reload_float_model(path)
        if model.summary.digest == keys.model_digest:
            return model, statistics
    raise InfrastructureError("the cache of the home is damaged", hint="delete its cache folder")


def open_variants(
    home: Home, model: FloatModel, statistics_key: str, *, memory_bytes: int = VARIANT_MEMORY_BYTES
) -> VariantStore:
    """Open the variant store for the layers of a model, calibrated under a key."""
    builders = layer_builders(home, model, statistics_key)
    return VariantStore(home.variants, builders, memory_bytes=memory_bytes)


def layer_builders(home: Home, model: FloatModel, statistics_key: str) -> dict[str, LayerBuilder]:
    """Return what builds the variants of each layer."""
    moments = MomentStore.beside(home.statistics(statistics_key))
    weights = layer_weights(model)
    outliers = OutlierChannels(model, lambda: load_channel_maxima(home.statistics(statistics_key)))
    builders = {}
    for layer in model.summary.layers:
        name, key = layer.name, moments.key(layer.name)
        digest = "" if key is None else f"{statistics_key}/{key}"
        load = partial(outliers, name)
        builders[name] = LayerBuilder(layer, weights[name], partial(moments.get, name), digest, load)
    return builders


def build_stitcher(
    home: Home,
    source: tuple[FloatModel, Statistics, str],
    target: Target,
    *,
    memory_bytes: int = VARIANT_MEMORY_BYTES,
) -> Stitcher:
    """Wire what builds candidates from one float model, its statistics and the key of these."""
    model, statistics, key = source

    def is_native(layer: Layer, choice: Choice) -> bool:
        return target.judge(layer, choice).native

    return Stitcher(model, statistics, open_variants(home, model, key, memory_bytes=memory_bytes), is_native)


def open_stitchers(home: Home, sources: Mapping[Rewrites, SourceKeys], target: Target) -> Stitchers:
    """Wire the assembler of all candidates; a source is read when the first candidate needs it.

    All of them share the memory that variants are kept in.
    """
    share = VARIANT_MEMORY_BYTES // len(sources)

    def load(keys: SourceKeys) -> Stitcher:
        source = (*load_source(home, keys), keys.statistics_key)
        return build_stitcher(home, source, target, memory_bytes=share)

    return Stitchers({rewrites: partial(load, keys) for rewrites, keys in sources.items()})


def build_variants(
    home: Home,
    sources: Mapping[Rewrites, Source],
    space: SearchSpace,
    anchors: Sequence[Anchor],
    listener: SearchListener,
) -> None:
    """Build the variants the trials will ask for, as far as they can be foreseen and are not too many."""
    for rewrites, source in sources.items():
        layers = source.model.summary.layers
        choices, is_complete = built_ahead(space, anchors, rewrites, layers)
        about = "" if rewrites.changes_nothing else f" ({rewrites})"
        if not is_complete:
            listener.on_note(f"variants{about}: too many to build ahead, but for the anchors'")
        listener.on_phase("variants", f"{len(choices)} variants of {len(layers)} layers{about}")
        store = open_variants(home, source.model, source.statistics_key)
        missing = store.missing(choices)
        if missing:
            with machine_clock():
                store.build_all(missing)
        n_reused = len(choices) - len(missing)
        listener.on_note(f"variants{about}: {n_reused} reused, {len(missing)} built")


def build_candidate(home: Home, sources: Mapping[Rewrites, Source], candidate: Candidate) -> None:
    """Build the variants of one candidate, as far as they are missing."""
    source = sources[candidate.rewrites]
    store = open_variants(home, source.model, source.statistics_key)
    compressed = [(name, choice) for name, choice in candidate.choices if choice != FLOAT]
    missing = store.missing((name, WeightChoice.of(choice)) for name, choice in compressed)
    if missing:
        with machine_clock():
            store.build_all(missing)


def built_ahead(
    space: SearchSpace, anchors: Sequence[Anchor], rewrites: Rewrites, layers: Sequence[Layer]
) -> tuple[list[tuple[str, WeightChoice]], bool]:
    """Choose the variants to build before the trials; say whether they are more than the anchors'."""
    sizes = {layer.name: layer.n_params for layer in layers}
    for pruned in (True, False):
        choices = list(foreseeable(space, anchors, rewrites, pruned=pruned))
        if sum(sizes[name] for name, _ in choices) <= _PREBUILD_WEIGHTS:
            return choices, True
    return list(_of_anchors(anchors, rewrites)), False


def foreseeable(
    space: SearchSpace, anchors: Iterable[Anchor], rewrites: Rewrites, *, pruned: bool = False
) -> Iterator[tuple[str, WeightChoice]]:
    """Every variant the space can name, and those of the anchors, on one float model.

    Args:
        space: The space.
        anchors: The anchors.
        rewrites: Those that make the float model.
        pruned: Whether to count in every sparsity; else only the lowest.
    """
    wanted: dict[tuple[str, WeightChoice], None] = {}
    for layer in space.layers:
        for label, (low, high) in layer.legal.items():
            for bits in range(low, high + 1):
                sparsities = layer.sparsities if pruned else layer.sparsities[:1]
                for sparsity, methods in itertools.product(sparsities, layer.ways):
                    choice = layer.choose(label, bits=bits, sparsity=sparsity, **methods)
                    wanted[layer.name, WeightChoice.of(choice)] = None
    wanted.update(dict.fromkeys(_of_anchors(anchors, rewrites)))
    return iter(wanted)


def _of_anchors(anchors: Iterable[Anchor], rewrites: Rewrites) -> Iterator[tuple[str, WeightChoice]]:
    for anchor in anchors:
        if anchor.candidate.rewrites == rewrites:
            for name, choice in anchor.candidate.choices:
                yield name, WeightChoice.of(choice)
