"""What the guided strategy starts from: errors, bytes, profile and probes of one model, kept by digest."""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoq.assembly.assemble import Stitcher
from autoq.calibrating import Source, SourceKeys, build_stitcher, built_ahead, load_source
from autoq.calibration.outliers import n_outliers
from autoq.core.choices import FLOAT, Candidate, Choice, Precision, Rewrites
from autoq.core.digests import digest_json
from autoq.core.errors import TrialError
from autoq.core.files import written_whole
from autoq.core.layers import Layer
from autoq.evaluation.batches import feeding_for, timing_feeds
from autoq.graph.float_model import FloatModel
from autoq.home import Home
from autoq.preparation import Preparation, timed
from autoq.search.guide import Border, ErrorProbe, Guide, LatencyProbe, Option, Slot
from autoq.search.ports import SearchListener, TrialRunner
from autoq.search.probing import plan_timings, run_error_probes, run_latency_probes
from autoq.search.sensitivity import plan_probes
from autoq.search.space import GraphSpace, LayerSpace
from autoq.targets.profile import seconds_by_block
from autoq.variants.variant import WeightChoice

_log = logging.getLogger("autoq")

_VERSION = 8  # part of every key; raise it when a guide means something else


def build_guide(
    ready: Preparation,
    sources: Mapping[Rewrites, Source],
    home: Home,
    runner: TrialRunner,
    listener: SearchListener,
) -> Guide:
    """Return the guide of a search: read where one was measured before, else measured now.

    Local errors and bytes come from the variants, which are built. Then the runner runs a few models in
    which one layer is compressed, and times a few mixed ones.

    Raises:
        InfrastructureError: The runner cannot be started.
    """
    path = home.guide(_key(ready, sources))
    if (known := _read(path)) is None:
        with timed(ready.seconds, "guide"), runner.turn():
            # Whoever had the machine meanwhile may have measured the same model.
            if (known := _read(path)) is None:
                guide = _measured(ready, sources, home, runner, listener)
                _save(guide, path)
                return guide
    listener.on_note(
        f"guide: reused, {len(known.error_probes)} probes of errors and "
        f"{len(known.latency_probes)} of latency"
    )
    return known


def _measured(
    ready: Preparation,
    sources: Mapping[Rewrites, Source],
    home: Home,
    runner: TrialRunner,
    listener: SearchListener,
) -> Guide:
    listener.on_phase("guide", "local errors of every option, and the runtime's profile")
    guide = _unprobed(ready, sources, home)
    guide = replace(guide, error_probes=_error_probes(guide, runner, listener))
    return replace(guide, latency_probes=_latency_probes(guide, ready, runner, listener))


def _key(ready: Preparation, sources: Mapping[Rewrites, Source]) -> str:
    """Name a guide by everything that can change it, but for the seed, which picks the examples run."""
    spec = ready.spec.to_json()
    return digest_json(
        {
            "version": _VERSION,
            "content": ready.content_digest,
            "output": ready.output,
            "statistics": [source.statistics_key for source in sources.values()],
            "environment": ready.environment,
            "space": [
                [layer.name, [choice.to_json() for choice in _choices(layer)]] for layer in ready.space.layers
            ],
            "graph": [[group.name, list(group.ops), list(group.precisions)] for group in ready.space.graph],
            "anchors": [anchor.candidate.digest for anchor in ready.anchors],
            "metric": spec["metric"],
            "timing": spec["timing"],
            # They decide which probes fail, and a guide without them is a poorer one.
            "limits": [spec["search"]["trial_timeout_s"], spec["search"]["trial_memory_mb"]],
        }
    )


def _read(path: Path) -> Guide | None:
    try:
        return Guide.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.info("the guide %s cannot be read, it is measured again: %s", path.name, error)
        return None


def _save(guide: Guide, path: Path) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(guide.to_json()))


# --- without running a model -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """A float model with what its candidates are made by."""

    rewrites: Rewrites
    model: FloatModel
    stitcher: Stitcher
    built: frozenset[tuple[str, WeightChoice]]  # variants that exist


def _unprobed(ready: Preparation, sources: Mapping[Rewrites, Source], home: Home) -> Guide:
    usual = ready.space.rewrites.usual
    ordered = sorted(sources, key=lambda rewrites: rewrites != usual)
    opened = [
        _open(ready, sources[rewrites], rewrites, home) for rewrites in ordered if _offers(ready, rewrites)
    ]
    grouped = [group for group in ready.space.graph if len(group.precisions) > 1]
    slots = {
        one.rewrites: tuple(
            [_layer_slot(layer, one, opened[0].built) for layer in ready.space.layers]
            + [_group_slot(group) for group in grouped]
        )
        for one in opened
    }
    free = {op for group in grouped for op in group.ops}
    fixed = {name: precision for name, precision in ready.space.decode({}).graph if name not in free}
    first, of_first = opened[0].stitcher, next(iter(slots.values()))
    weights_bytes = sum(4 * layer.n_params for layer in ready.model.summary.layers)
    ratios, whole = _kernel_ratios(ready, opened[0], of_first)
    narrowed = {
        one.rewrites: _kernel_ratios(ready, one, slots[one.rewrites], whole)[0]
        for one in opened
        if one.rewrites.widths
    }
    return Guide(
        slots,
        borders=_borders(first, of_first),
        kernel_ratios=ratios,
        narrowed_ratios=narrowed,
        fixed_ops=fixed,
        float_bundle_bytes=first.fixed_bundle_bytes,
        float_size_bytes=max(ready.model.summary.size_bytes - weights_bytes, 0),
    )


def _offers(ready: Preparation, rewrites: Rewrites) -> bool:
    """Whether the space has these rewrites; a user's anchor may bring others along."""
    return ready.space.rewrites.encode(rewrites) is not None


def _open(ready: Preparation, source: Source, rewrites: Rewrites, home: Home) -> _Opened:
    kept = (*load_source(home, SourceKeys.of(source)), source.statistics_key)
    stitcher = build_stitcher(home, kept, ready.target)
    built, _ = built_ahead(ready.space, ready.anchors, rewrites, source.model.summary.layers)
    return _Opened(rewrites, kept[0], stitcher, frozenset(built))


def _choices(layer: LayerSpace) -> list[Choice]:
    """Every choice that a layer may have."""
    found = (
        layer.choose(label, bits=bits, sparsity=sparsity, **way)
        for label, (low, high) in layer.legal.items()
        for bits in range(high, low - 1, -1)
        for sparsity, way in itertools.product(layer.sparsities, layer.ways)
    )
    return list(dict.fromkeys(found))


def _layer_slot(space: LayerSpace, opened: _Opened, offered: Container[tuple[str, WeightChoice]]) -> Slot:
    """One layer on one float model; options are those offered on the first, whatever is built here."""
    layer = next(one for one in opened.model.summary.layers if one.name == space.name)
    built = [one for one in _choices(space) if (layer.name, WeightChoice.of(one)) in offered]
    options = tuple(_option(layer, choice, opened.stitcher) for choice in built or [space.decode({})])
    shape = "x".join(map(str, layer.weight_shape))
    return Slot(layer.name, f"{layer.op} {shape} /{layer.group}", options)


def _option(layer: Layer, choice: Choice, stitcher: Stitcher) -> Option:
    error = stitcher.local_error(layer.name, choice)
    energy = error.energy if error.energy > 0.0 else 1.0
    kernel = f"{choice.format}/{choice.granularity}" if choice.granularity != "none" else str(choice.format)
    return Option(
        choice,
        kernel,
        error.weight / energy if choice != FLOAT else 0.0,
        error.activation / energy,
        stitcher.bundle_bytes(layer.name, choice),
        _stored_bytes(layer, choice),
    )


def _stored_bytes(layer: Layer, choice: Choice) -> int:
    """Bytes of a layer's weights and scales in the deployed file."""
    if choice.format.is_float:
        return layer.n_params * choice.weight_bits // 8
    container = next(bits for bits in (2, 4, 8) if choice.stored_bits <= bits)
    block = choice.granularity.block_size
    channels = layer.weight_shape[layer.channel_axis]
    n_scales = layer.n_params // block if block else channels if choice.granularity == "channel" else 1
    n_floats = channels * n_outliers(layer.n_params // channels) if choice.format.keeps_outliers else 0
    return layer.n_params * container // 8 + 4 * (n_scales + n_floats)


def _group_slot(group: GraphSpace) -> Slot:
    options = tuple(Option(precision, str(precision)) for precision in group.precisions)
    return Slot(group.name, group.name, options, group.ops)


def _borders(stitcher: Stitcher, slots: Sequence[Slot]) -> tuple[Border, ...]:
    """Borders between slots; several between the same two count as one of their size."""
    owner = {name: slot.name for slot in slots for name in (slot.ops or (slot.name,))}
    sizes: defaultdict[tuple[str, str], float] = defaultdict(float)
    for one in stitcher.borders():
        ends = owner.get(one.writer), owner.get(one.reader)
        if ends[0] is not None and ends[1] is not None and ends[0] != ends[1]:
            sizes[ends[0], ends[1]] += one.elements
    return tuple(Border(writer, reader, elements) for (writer, reader), elements in sizes.items())


def _kernel_ratios(
    ready: Preparation, opened: _Opened, slots: Sequence[Slot], whole: float = 0.0
) -> tuple[dict[str, dict[str, float]], float]:
    """Profile a float model and one uniform candidate a kernel.

    Args:
        ready: The search.
        opened: The float model.
        slots: Its slots.
        whole: Kernel time, in seconds, that shares are of; the float model's own by default.

    Returns:
        Shares by slot and kernel, and the time that they are of.
    """
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    owner = {name: slot.name for slot in slots for name in (slot.ops or (slot.name,))}
    for candidate in profiled_candidates((anchor.candidate for anchor in ready.anchors), slots):
        seconds = _profile(ready, opened.stitcher, candidate)
        whole = whole or sum(seconds.values()) or 1.0
        spent: defaultdict[str, float] = defaultdict(float)
        for block, one in seconds_by_block(seconds, opened.model).items():
            spent[owner.get(block, "")] += one
        for slot in slots:
            kernel = _kernel_of(slot, candidate)
            if slot.name in spent and kernel is not None:
                found[slot.name].setdefault(kernel, spent[slot.name] / whole)
    return dict(found), whole


def profiled_candidates(anchors: Iterable[Candidate], slots: Sequence[Slot]) -> list[Candidate]:
    """Pick what has to be profiled: the float model, then anchors with kernels that those before lack.

    Kernels of weightless ops that no anchor has come last, within the anchor of the most integer layers.
    """
    seen: set[tuple[str, str]] = set()
    profiled: list[Candidate] = []
    for candidate in anchors:
        kernels = {
            (slot.name, kernel) for slot in slots if (kernel := _kernel_of(slot, candidate)) is not None
        }
        if not profiled or not kernels <= seen:
            seen |= kernels
            profiled.append(candidate)
    unseen = {
        op: option.what
        for slot in slots
        for option in slot.options
        for op in slot.ops
        if isinstance(option.what, Precision) and (slot.name, option.kernel) not in seen
    }
    if unseen and profiled:
        base = max(profiled, key=lambda one: sum(choice.format.is_static for choice in one.by_layer.values()))
        profiled.append(Candidate.of(base.by_layer, {**base.by_op, **unseen}, base.rewrites))
    return profiled


def _kernel_of(slot: Slot, candidate: Candidate) -> str | None:
    """Kernel that a candidate gives a slot, float ones also where the space has no such option."""
    if slot.is_layer:
        choice = candidate.by_layer.get(slot.name, FLOAT)
        offered = (option.kernel for option in slot.options if option.what == choice)
        return FLOAT.label if choice == FLOAT else next(offered, None)
    precision = candidate.by_op.get(slot.ops[0], Precision.FLOAT)
    offered = (option.kernel for option in slot.options if option.what == precision)
    return str(precision) if precision is Precision.FLOAT else next(offered, None)


def _profile(ready: Preparation, stitcher: Stitcher, candidate: Candidate) -> dict[str, float]:
    inputs = ready.model.summary.inputs
    feeding = feeding_for(inputs, ready.target.batch_size)
    feeds = timing_feeds(ready.data.calibration, inputs, feeding, shapes=ready.spec.timing.shapes, n_feeds=2)
    try:
        return ready.target.profile(stitcher.assemble(candidate).artifact, feeds)
    except TrialError as error:
        _log.info("no profile of an anchor: %s", error)
        return {}


# --- by running models -------------------------------------------------------------------------------


def _error_probes(guide: Guide, runner: TrialRunner, listener: SearchListener) -> tuple[ErrorProbe, ...]:
    plans = plan_probes(guide)
    listener.on_phase("guide", f"sensitivity: {len(plans)} models with a few layers compressed")
    return run_error_probes(guide, plans, runner)


def _latency_probes(
    guide: Guide, ready: Preparation, runner: TrialRunner, listener: SearchListener
) -> tuple[LatencyProbe, ...]:
    anchors = [stitch for anchor in ready.anchors if (stitch := guide.stitch(anchor.candidate)) is not None]
    stitches = plan_timings(guide, anchors, seed=ready.spec.search.seed)
    listener.on_phase("guide", f"latency: {len(stitches)} mixed models")
    return run_latency_probes(guide, stitches, runner)
