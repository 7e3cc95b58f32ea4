"""Anchors: what a user could get by hand, tried before anything is searched."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from autoq.core.choices import FLOAT, Calibration, Candidate, Choice, Format, Granularity, Precision
from autoq.core.errors import SpecError
from autoq.core.layers import Layer
from autoq.core.names import matching
from autoq.evaluation.ports import Target
from autoq.search.space import LayerSpace, SearchSpace
from autoq.search.space_building import unmatched_glob
from autoq.search.space_rules import AnchorLayerRule, AnchorRule, SpaceRules

# Widest first; the anchor of a layer takes the first one it has.
_PERCENTILES = (
    Calibration.PERCENTILE_99_999,
    Calibration.PERCENTILE_99_99,
    Calibration.PERCENTILE_99_9,
)


@dataclass(frozen=True)
class Anchor:
    """A candidate to try first, under a name for people."""

    name: str  # `float`, `int8/channel/minmax`, or the user's
    candidate: Candidate


def build_anchors(
    space: SearchSpace, rules: SpaceRules, layers: Sequence[Layer], target: Target
) -> list[Anchor]:
    """List the float model, one uniform candidate per kind of label, then the user's own.

    Of candidates with one digest the first stays. The user's may lie outside the space.

    Raises:
        SpecError: A glob of a user's anchor matches nothing, or the target refuses its choice: on any
            layer, or for the glob `*` on all of them (else those it refuses stay float).
    """
    float_model = Candidate.of(
        {layer.name: FLOAT for layer in space.layers},
        {op.name: Precision.FLOAT for op in space.ops},
    )
    tables = {layer.name for layer in layers if layer.op == "Gather"}
    found = [Anchor("float", float_model), *_uniform_anchors(space, tables)]
    found += [_user_anchor(rule, space, layers, target) for rule in rules.anchors]
    first: dict[str, Anchor] = {}
    for anchor in found:
        first.setdefault(anchor.candidate.digest, anchor)
    return list(first.values())


def _uniform_anchors(space: SearchSpace, tables: Collection[str]) -> Iterator[Anchor]:
    """One candidate a format, granularity and calibration method.

    Embeddings get 8 bits where others get 4: what they lose is lost before the first layer, and a
    lookup gains no time by it.
    """
    labels = dict.fromkeys(label for layer in space.layers for label in layer.labels)
    legal = [Choice.from_label(label) for label in labels if label != FLOAT.label]
    for fmt, granularity in dict.fromkeys((choice.format, choice.granularity) for choice in legal):
        offered = [c.calibration for c in legal if (c.format, c.granularity) == (fmt, granularity)]
        for methods in _calibrations_tried(offered):
            label = Choice.of(fmt, granularity=granularity, calibration=methods[0]).label
            choices = {
                layer.name: _nearest(
                    layer, _gentler(fmt) if layer.name in tables else fmt, granularity, methods
                )
                for layer in space.layers
            }
            yield Anchor(label, Candidate.of(choices, _usual_graph(space), space.rewrites.usual))
    yield from _smoothed_anchors(space)


def _gentler(fmt: Format) -> Format:
    return Format.INT8_WEIGHT if fmt is Format.INT4_WEIGHT else fmt


def _smoothed_anchors(space: SearchSpace) -> Iterator[Anchor]:
    """Static int8 with every smoothing the space offers beside its first: what SmoothQuant does by hand."""
    static = _gentlest_static(space)
    for alpha in space.rewrites.smooth_alpha[1:]:
        if alpha is not None and static is not None:
            rewrites = replace(space.rewrites.usual, smooth_alpha=alpha)
            candidate = replace(static.candidate, rewrites=rewrites)
            yield Anchor(f"{static.name} smooth {alpha:g}", candidate)


def _gentlest_static(space: SearchSpace) -> Anchor | None:
    """Static int8 all over, with the calibration that loses least; None where the space has none."""
    labels = dict.fromkeys(label for layer in space.layers for label in layer.labels)
    static = [choice for choice in map(Choice.from_label, labels) if choice.format.is_static]
    if not static:
        return None
    first = min(static, key=lambda choice: choice.calibration is not Calibration.MSE)
    methods = (first.calibration,)
    choices = {
        layer.name: _nearest(layer, first.format, first.granularity, methods) for layer in space.layers
    }
    return Anchor(first.label, Candidate.of(choices, _usual_graph(space), space.rewrites.usual))


def reference_anchor(space: SearchSpace, anchors: Sequence[Anchor]) -> Anchor:
    """Return what narrower models are compared with: static int8 all over, else what is tried after float."""
    return _gentlest_static(space) or anchors[min(1, len(anchors) - 1)]


def width_anchors(space: SearchSpace, reference: Anchor) -> list[Anchor]:
    """The reference at every width below full, so that every strategy has measurements of each."""
    return [
        Anchor(
            f"{reference.name} narrowed to {level.label}",
            replace(reference.candidate, rewrites=space.rewrites.narrowed(level.widths)),
        )
        for level in space.rewrites.widths[1:]
    ]


def _calibrations_tried(offered: list[Calibration]) -> list[tuple[Calibration, ...]]:
    """Methods of each anchor, by preference: minmax, mse, and the widest percentile that a layer has.

    Where the space has neither, its first method stands in, so that every format has an anchor.
    """
    percentiles = tuple(method for method in _PERCENTILES if method in offered)
    tried = [(method,) for method in (Calibration.MINMAX, Calibration.MSE) if method in offered]
    return [*tried, *([percentiles] if percentiles else [])] or [(offered[0],)]


def _nearest(
    layer: LayerSpace, fmt: Format, granularity: Granularity, methods: tuple[Calibration, ...]
) -> Choice:
    """Return the wanted choice or the nearest the layer may be: the same format, else fp32."""

    def distance(label: str) -> tuple[bool, int]:
        choice = Choice.from_label(label)
        rank = methods.index(choice.calibration) if choice.calibration in methods else len(methods)
        return (choice.granularity is not granularity, rank)

    same_format = [label for label in layer.labels if Choice.from_label(label).format is fmt]
    if same_format:
        return layer.choose(min(same_format, key=distance))
    return layer.choose(FLOAT.label if FLOAT.label in layer.legal else layer.labels[0])


def _usual_graph(space: SearchSpace) -> dict[str, Precision]:
    graph = {op.name: Precision.FLOAT for op in space.ops}
    for group in space.graph:
        graph.update(dict.fromkeys(group.ops, group.precisions[0]))
    return graph


def _user_anchor(rule: AnchorRule, space: SearchSpace, layers: Sequence[Layer], target: Target) -> Anchor:
    where = f"space.anchors.{rule.name}"
    by_name = {layer.name: layer for layer in layers}
    claims: dict[str, AnchorLayerRule] = {}  # the last rule that matches a layer has it
    for layer_rule in rule.layers:
        names = matching(layer_rule.pattern, by_name)
        if not names:
            raise unmatched_glob(where, layer_rule.pattern, by_name)
        claims.update(dict.fromkeys(names, layer_rule))
    choices = dict.fromkeys(by_name, FLOAT)
    for layer_rule in dict.fromkeys(claims.values()):
        mine = [by_name[name] for name, claimed_by in claims.items() if claimed_by is layer_rule]
        choices.update(_claimed(layer_rule, mine, where, target))
    graph = _graph_of(rule, space, where, target)
    return Anchor(rule.name, Candidate.of(choices, graph, rule.rewrites))


def _claimed(rule: AnchorLayerRule, layers: Sequence[Layer], where: str, target: Target) -> dict[str, Choice]:
    """Choices of the layers of one rule; under `*` those that the target refuses are left out."""
    legal: dict[str, Choice] = {}
    refused: dict[str, str] = {}
    for layer in layers:
        known = rule if layer.has_moments else replace(rule, methods=())  # others have no second order
        tried = [_choice_of(known, bits, where) for bits in _bits_tried(rule)]
        verdicts = [(choice, target.judge(layer, choice)) for choice in tried]
        runs = next((choice for choice, verdict in verdicts if choice == FLOAT or verdict.legal), None)
        if runs is not None:
            legal[layer.name] = runs
        else:
            refused[layer.name] = verdicts[0][1].reason
    if refused and (rule.pattern != "*" or not legal):
        name, reason = next(iter(refused.items()))
        raise SpecError(f"{where}: {target.name} cannot run {rule.format} on {name!r}", hint=reason)
    return legal


def _bits_tried(rule: AnchorLayerRule) -> Sequence[int | None]:
    """Bits of an anchor: those it names, else the widest that the target runs."""
    if rule.weight_bits is not None or rule.format.is_float:
        return [rule.weight_bits]
    return range(rule.format.container_bits, 1, -1)


def _choice_of(rule: AnchorLayerRule, bits: int | None, where: str) -> Choice:
    try:
        return Choice.of(
            rule.format,
            weight_bits=bits,
            granularity=rule.granularity,
            calibration=rule.calibration,
            sparsity=rule.sparsity,
            **dict(rule.methods),
        )
    except ValueError as error:
        raise SpecError(f"{where}.{rule.pattern}: {error}") from error


def _graph_of(rule: AnchorRule, space: SearchSpace, where: str, target: Target) -> dict[str, Precision]:
    """Graph-wide choices of the user's anchor: those it names, the rest as other anchors have it."""
    for family in {op.family for op in space.ops} & rule.graph.keys():
        verdict = target.judge_op(family)
        if rule.graph[family] is Precision.INT8 and not verdict.legal:
            raise SpecError(f"{where}: {target.name} cannot run {family} in int8", hint=verdict.reason)
    usual = _usual_graph(space)
    return {op.name: rule.graph.get(op.family, usual[op.name]) for op in space.ops}
