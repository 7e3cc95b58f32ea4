"""Building a search space: the rules of the spec, met by a model and judged by a target."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoq.core.choices import (
    FLOAT,
    FLOAT_BITS,
    Calibration,
    Choice,
    Format,
    Granularity,
    Grid,
    Pattern,
    Precision,
    Pruning,
    Rounding,
)
from autoq.core.errors import ModelError, SpecError
from autoq.core.layers import Layer, OpFamily, WeightlessOp
from autoq.core.names import matching
from autoq.evaluation.ports import Target
from autoq.search.space import BitRange, GraphSpace, LayerSpace, Refusal, RewriteSpace, SearchSpace
from autoq.search.space_rules import GraphRule, LayerRule, SpaceRules, SparsityRange, WeightMethods

# The samplers and the ablation need categories they can learn from; a trial must stay small to store.
MAX_LABELS = 12
_NAMES_SHOWN = 5
_PLAIN = {
    "rounding": Rounding.NEAREST,
    "grid": Grid.UNIFORM,
    "pruning": Pruning.MAGNITUDE,
    "pattern": Pattern.UNSTRUCTURED,
}
_FEWEST_BITS = 2


@dataclass(frozen=True)
class _Settings:
    """What the rules together say of one layer."""

    formats: tuple[Format, ...] = (Format.FP32,)
    granularities: tuple[Granularity, ...] | None = None
    calibrations: tuple[Calibration, ...] | None = None
    weight_bits: BitRange | None = None
    sparsity: SparsityRange | None = None
    methods: WeightMethods = field(default_factory=WeightMethods)
    is_wanted: bool = False  # the formats, by a glob that means these layers rather than all

    def after(self, rule: LayerRule) -> _Settings:
        return _Settings(
            rule.formats or self.formats,
            rule.granularities or self.granularities,
            rule.calibrations or self.calibrations,
            rule.weight_bits or self.weight_bits,
            rule.sparsity or self.sparsity,
            self.methods.after(rule.methods),
            rule.pattern != "*" if rule.formats else self.is_wanted,
        )


@dataclass(frozen=True)
class _Judged:
    """What a target says of one layer: the legal labels and grids, and (what, reason) of the others."""

    legal: dict[str, BitRange]
    refused: tuple[tuple[str, str], ...]
    grids: tuple[Grid, ...]


def build_space(
    rules: SpaceRules, layers: Sequence[Layer], ops: Sequence[WeightlessOp], target: Target
) -> SearchSpace:
    """Turn rules into the space of one model on one target, all illegal choices left out.

    Raises:
        ModelError: The model has no layer that can be compressed.
        SpecError: A glob matches nothing; a glob other than `*` names a format that the target
            refuses on every layer it matches; a layer has no legal choice, or too many; nothing is
            left to search.
    """
    if not layers:
        raise ModelError(
            "the model has no layer that can be compressed", hint="expected a Conv, Gemm or MatMul"
        )
    settings = _settings_by_layer(rules.layers, layers)
    _check_explicit_formats(rules.layers, layers, settings, target)
    spaces: list[LayerSpace] = []
    refused: list[tuple[str, str, str]] = []  # (layer, what, reason)
    for layer in layers:
        judged = _judge_layer(layer, settings[layer.name], target)
        spaces.append(_layer_space(layer, settings[layer.name], judged, target))
        refused += [(layer.name, what, reason) for what, reason in judged.refused]
    groups, refused_ops = _graph_spaces(rules.graph, ops, target)
    rewrites = RewriteSpace(rules.rewrites.equalize, rules.rewrites.smooth_alpha)
    refusals = (*_gathered(refused), *refused_ops)
    space = SearchSpace(tuple(spaces), groups, tuple(ops), refusals, rewrites)
    _check_something_to_search(space)
    return space


def unmatched_glob(where: str, pattern: str, names: Iterable[str]) -> SpecError:
    """Say that a glob of the space matches nothing, and show what it could have matched."""
    known = list(names)
    shown = ", ".join(known[:_NAMES_SHOWN]) or "none"
    more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
    return SpecError(f"{where}: the glob {pattern!r} matches nothing", hint=f"there are: {shown}{more}")


def _settings_by_layer(rules: Sequence[LayerRule], layers: Sequence[Layer]) -> dict[str, _Settings]:
    settings = {layer.name: _Settings() for layer in layers}
    for rule in rules:
        names = matching(rule.pattern, settings)
        if not names:
            raise unmatched_glob("space.layers", rule.pattern, settings)
        settings.update({name: settings[name].after(rule) for name in names})
    return settings


def _check_explicit_formats(
    rules: Sequence[LayerRule],
    layers: Sequence[Layer],
    settings: dict[str, _Settings],
    target: Target,
) -> None:
    for rule in rules:
        names = set(matching(rule.pattern, settings))
        for fmt in (rule.formats or ()) if rule.pattern != "*" else ():
            judged = [
                _judge_layer(layer, replace(settings[layer.name], formats=(fmt,)), target)
                for layer in layers
                if layer.name in names
            ]
            if fmt is not Format.FP32 and not any(verdict.legal for verdict in judged):
                raise SpecError(
                    f"space.layers.{rule.pattern}: {target.name} cannot run format {fmt}",
                    hint=judged[0].refused[0][1],
                )


def _judge_layer(layer: Layer, settings: _Settings, target: Target) -> _Judged:
    legal: dict[str, BitRange] = {}
    refused: list[tuple[str, str]] = []
    for fmt in settings.formats:
        if fmt is Format.FP32:
            legal[FLOAT.label] = (FLOAT_BITS, FLOAT_BITS)
            continue
        verdicts: list[tuple[str, str]] = []
        labels = _labels(fmt, settings)
        for label in labels:
            bits, reasons = _legal_bits(layer, label, settings.weight_bits, target)
            if bits is not None:
                legal[label] = bits
            verdicts += reasons
        if not any(label in legal for label in labels):
            # One line for a format that is refused as a whole, not one for each label and width.
            verdicts = [(str(fmt), verdicts[0][1])]
        refused += verdicts
    wanted = settings.methods.grid or (Grid.UNIFORM,)
    refused_grids = {grid: reason for grid in wanted if (reason := _why_no_grid(layer, grid, legal, target))}
    refused += [(str(grid), reason) for grid, reason in refused_grids.items()]
    grids = tuple(grid for grid in wanted if grid not in refused_grids)
    return _Judged(legal, tuple(refused), grids or (Grid.UNIFORM,))


def _why_no_grid(layer: Layer, grid: Grid, legal: Mapping[str, BitRange], target: Target) -> str:
    """Return why some legal label is refused with a grid; empty if none is."""
    for label, (low, _) in legal.items():
        fmt = Choice.from_label(label).format
        if fmt.is_float or fmt.is_weight_only:  # they have no other grid than their own
            continue
        verdict = target.judge(layer, Choice.from_label(label, weight_bits=low, grid=grid))
        if not verdict.legal:
            return verdict.reason
    return ""


def _labels(fmt: Format, settings: _Settings) -> list[str]:
    """Labels of a format: granularities x calibration methods, as far as it can have them.

    A format that can have none of the granularities keeps its usual one: they are meant for others.
    """
    if fmt.is_float:
        return [Choice.of(fmt).label]
    fitting = [g for g in settings.granularities or () if _fits(fmt, g)]
    granularities = fitting or [Choice.of(fmt).granularity]
    calibrations = settings.calibrations or (Calibration.MINMAX,)
    labels = [
        Choice.of(fmt, granularity=granularity, calibration=calibration).label
        for granularity in granularities
        for calibration in calibrations
    ]
    return list(dict.fromkeys(labels))


def _fits(fmt: Format, granularity: Granularity) -> bool:
    return granularity is not Granularity.NONE and (granularity.block_size is not None) == fmt.is_weight_only


def _legal_bits(
    layer: Layer, label: str, wanted: BitRange | None, target: Target
) -> tuple[BitRange | None, list[tuple[str, str]]]:
    """Widest contiguous bits that the target runs, and what it refuses with the reasons."""
    container = Choice.from_label(label).weight_bits
    low, high = wanted or (container, container)
    low, high = min(low, container), min(high, container)
    legal: list[int] = []
    refused: list[tuple[str, str]] = []
    for bits in range(high, low - 1, -1):
        verdict = target.judge(layer, Choice.from_label(label, weight_bits=bits))
        if verdict.legal:
            legal.append(bits)
        else:
            refused.append((f"{label} at {bits} bits", verdict.reason))
            if legal:
                break
    if not legal and high > _FEWEST_BITS:
        # A width the target refuses stands for the widest below it that it runs (reduce_range).
        narrower = range(low - 1, _FEWEST_BITS - 1, -1)
        fits = (b for b in narrower if target.judge(layer, Choice.from_label(label, weight_bits=b)).legal)
        legal = list(itertools.islice(fits, 1))
    return ((legal[-1], legal[0]) if legal else None), refused


def _layer_space(layer: Layer, settings: _Settings, judged: _Judged, target: Target) -> LayerSpace:
    if not judged.legal and not settings.is_wanted:
        return LayerSpace(layer.name, {FLOAT.label: (FLOAT_BITS, FLOAT_BITS)})
    if not judged.legal:
        reasons = "; ".join(f"{what}: {reason}" for what, reason in judged.refused)
        wanted = ", ".join(settings.formats)
        raise SpecError(
            f"space.layers: layer {layer.name!r} may be nothing but {wanted}, and none of it is possible",
            hint=reasons,
        )
    if len(judged.legal) > MAX_LABELS:
        raise SpecError(
            f"space.layers: layer {layer.name!r} has {len(judged.legal)} combinations of format, "
            f"granularity and calibration, expected at most {MAX_LABELS}",
            hint="name fewer calibration methods or granularities",
        )
    sparsities = _legal_sparsities(layer, settings, judged, target)
    return LayerSpace(layer.name, judged.legal, sparsities, _methods(layer, settings, judged, sparsities))


def _methods(
    layer: Layer, settings: _Settings, judged: _Judged, sparsities: tuple[float, ...]
) -> dict[str, tuple[str, ...]]:
    """Ways to treat the weights, as far as something in the layer's space depends on them."""
    wanted = settings.methods
    methods: dict[str, tuple[str, ...]] = {}
    formats = {Choice.from_label(label).format for label in judged.legal}
    if not all(fmt.is_float for fmt in formats):
        methods["rounding"] = wanted.rounding or (Rounding.NEAREST,)
        if not all(fmt.is_float or fmt.is_weight_only for fmt in formats):
            methods["grid"] = judged.grids
    if len(sparsities) > 1:
        methods["pruning"] = wanted.pruning or (Pruning.MAGNITUDE,)
        methods["pattern"] = wanted.pattern or (Pattern.UNSTRUCTURED,)
    if not layer.has_moments:  # nothing to weigh errors with
        methods = {name: (plain,) for name, plain in _PLAIN.items() if name in methods}
    return methods


def _legal_sparsities(
    layer: Layer, settings: _Settings, judged: _Judged, target: Target
) -> tuple[float, ...]:
    """Sparsities from zero up to the first that some legal label is refused at."""
    grid = settings.sparsity or SparsityRange()
    n_steps = int(grid.maximum / grid.step + 1e-9)
    kept = [0.0]
    for sparsity in (round(index * grid.step, 6) for index in range(1, n_steps + 1)):
        choices = [
            Choice.from_label(label, weight_bits=bits[1], sparsity=sparsity)
            for label, bits in judged.legal.items()
        ]
        if not all(target.judge(layer, choice).legal for choice in choices):
            break
        kept.append(sparsity)
    return tuple(kept)


def _graph_spaces(
    rules: Sequence[GraphRule], ops: Sequence[WeightlessOp], target: Target
) -> tuple[tuple[GraphSpace, ...], list[Refusal]]:
    """One group per rule, holding the ops that no later rule claims."""
    owner: dict[str, int] = {}
    for index, rule in enumerate(rules):
        family = [op.name for op in ops if op.family is rule.family]
        names = matching(rule.pattern, family)
        if not names and rule.pattern != "*":
            raise unmatched_glob(f"space.graph.{rule.family}", rule.pattern, family)
        owner.update(dict.fromkeys(names, index))
    groups: list[GraphSpace] = []
    refusals: dict[OpFamily, Refusal] = {}
    for index, rule in enumerate(rules):
        names = [name for name, claimed_by in owner.items() if claimed_by == index]
        if not names:
            continue
        verdict, precisions = target.judge_op(rule.family), tuple(dict.fromkeys(rule.precisions))
        if not verdict.legal and Precision.INT8 in precisions:
            before = refusals[rule.family].layers if rule.family in refusals else ()
            refusals[rule.family] = Refusal((*before, *names), f"{rule.family} in int8", verdict.reason)
            precisions = (Precision.FLOAT,)
        suffix = "" if rule.pattern == "*" else f":{rule.pattern}"
        groups.append(GraphSpace(f"graph/{rule.family}{suffix}", rule.family, tuple(names), precisions))
    return tuple(groups), list(refusals.values())


def _gathered(refused: Sequence[tuple[str, str, str]]) -> list[Refusal]:
    """One refusal for all layers that are refused the same thing for the same reason."""
    layers: dict[tuple[str, str], list[str]] = {}
    for layer, what, reason in refused:
        layers.setdefault((what, reason), []).append(layer)
    return [Refusal(tuple(names), what, reason) for (what, reason), names in layers.items()]


def _check_something_to_search(space: SearchSpace) -> None:
    compressed = any(layer.labels != (FLOAT.label,) or len(layer.sparsities) > 1 for layer in space.layers)
    if not compressed:
        reasons = "; ".join(f"{refusal.what}: {refusal.reason}" for refusal in space.refusals)
        raise SpecError(
            "space.layers: every layer stays fp32, there is nothing to search",
            hint=reasons or "give some layers another format",
        )
