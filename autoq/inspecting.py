"""What is known of a model before any trial: layers, cost, legal choices, and the error of each choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from autoq.assembly.assemble import Stitcher
from autoq.assembly.local_errors import LocalError
from autoq.calibrating import (
    Calibrator,
    Source,
    SourceKeys,
    build_stitcher,
    derive,
    foreseeable,
    load_source,
    open_variants,
    save_model,
)
from autoq.core.choices import Choice, Format, Rewrites
from autoq.core.groups import Grouping, Role
from autoq.core.layers import ModelSummary
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.ports import Target, Verdict
from autoq.graph.find_groups import find_groups
from autoq.home import Home
from autoq.preparation import Preparation, load_model
from autoq.reporting.layer_facts import LAYER_FACTS_FILE, LayerFacts, save_layer_facts
from autoq.search.ports import SearchListener
from autoq.search.space import LayerSpace, Refusal
from autoq.spec.schema import OnnxModelSpec, TorchModelSpec
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.targets.profile import latency_shares
from autoq.variants.variant import WeightChoice

# A millionth of noise: no model minds it, so no layer is less sensitive for having still less.
_CLEAR_DB = 60.0
_EXACT_DB = 144.0  # stands for no error at all: what float32 itself resolves


@dataclass(frozen=True)
class Inspection:
    """A model as autoq sees it, what a target says of every format, and what a space offers of them."""

    summary: ModelSummary
    latency_share: Mapping[str, float]  # by layer, of the float model's profile
    verdicts: Mapping[str, Mapping[str, Verdict]]  # layer -> format -> verdict
    space: Mapping[str, LayerSpace] = field(default_factory=dict)  # by layer; empty without a spec
    refusals: tuple[Refusal, ...] = ()  # what the space asks for and the target does not run


@dataclass(frozen=True, slots=True)
class ChoiceError:
    """What one choice does to the output of its layer."""

    choice: Choice
    error: LocalError

    @property
    def relative(self) -> float | None:
        """Error as a share of the output's energy.

        None where nothing is known of the layer's inputs, or the format cannot hold its weights.
        """
        known = self.error.energy > 0.0 and math.isfinite(self.error.relative)
        return self.error.relative if known else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal-to-quantisation-noise ratio in dB, infinite for no error; None without an estimate."""
        relative = self.relative
        if relative is None:
            return None
        return -10.0 * math.log10(relative) if relative > 0.0 else math.inf


@dataclass(frozen=True, slots=True, order=True)
class Column:
    """A label at a number of weight bits; `is_widest` means as many as each layer has for the label."""

    label: str
    bits: int
    is_widest: bool = True


@dataclass(frozen=True)
class Sensitivity:
    """Local error of every choice that a space offers, layer by layer in the order of the graph."""

    name: str  # of the search
    n_examples: int  # of the calibration split
    rewrites: Rewrites  # of the float model that is compressed
    errors: Mapping[str, Sequence[ChoiceError]]  # by layer; nothing for one that stays as it is

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every label at its widest bits, then the narrower bits of the label that loses least."""
        bits = self._bits
        widest = tuple(Column(label, max(offered)) for label, offered in bits.items())
        divisible = [column for column in widest if len(bits[column.label]) > 1]
        if not divisible:
            return widest
        best = max(divisible, key=self._merit)
        narrower = sorted(bits[best.label] - {best.bits}, reverse=True)
        return (*widest, *(Column(best.label, fewer, is_widest=False) for fewer in narrower))

    def offers(self, layer: str, column: Column) -> bool:
        """Whether the space offers the column's label and bits on a layer."""
        return bool(self._matching(layer, column))

    def sqnr_db(self, layer: str, column: Column) -> float | None:
        """Best ratio over the roundings and grids that the space offers there; None for no estimate."""
        ratios = [one.sqnr_db for one in self._matching(layer, column)]
        return max((ratio for ratio in ratios if ratio is not None), default=None)

    def most_sensitive_first(self) -> list[str]:
        """Order layers by how far they are below the others; those without an estimate come last.

        Whoever reads the list wants to know which layers to spare. Layers are compared column by column:
        a mean over whatever each is offered would put those first that are offered few bits.
        """
        return sorted(self.errors, key=self._lead_db)

    @cached_property
    def _bits(self) -> dict[str, set[int]]:
        bits: dict[str, set[int]] = {}
        for errors in self.errors.values():
            for one in errors:
                bits.setdefault(one.choice.label, set()).add(one.choice.weight_bits)
        return bits

    def _matching(self, layer: str, column: Column) -> list[ChoiceError]:
        of_label = [one for one in self.errors[layer] if one.choice.label == column.label]
        widest = max((one.choice.weight_bits for one in of_label), default=column.bits)
        bits = widest if column.is_widest else column.bits
        return [one for one in of_label if one.choice.weight_bits == bits]

    def _merit(self, column: Column) -> tuple[int, float]:
        """A label is good if it is known on many layers, and good there."""
        ratios = [ratio for layer in self.errors if (ratio := self.sqnr_db(layer, column)) is not None]
        return len(ratios), sum(ratios) / max(len(ratios), 1)

    @cached_property
    def _means_db(self) -> dict[Column, float]:
        """Mean ratio of each column over the layers where it is known."""
        known = {column: [self._clear_db(layer, column) for layer in self.errors] for column in self.columns}
        ratios = {column: [ratio for ratio in of if ratio is not None] for column, of in known.items()}
        return {column: sum(of) / max(len(of), 1) for column, of in ratios.items()}

    def _lead_db(self, layer: str) -> float:
        """Mean distance of a layer's ratios from those of all layers in the same columns."""
        leads = [
            ratio - self._means_db[column]
            for column in self.columns
            if (ratio := self._clear_db(layer, column)) is not None
        ]
        return sum(leads) / len(leads) if leads else math.inf

    def _clear_db(self, layer: str, column: Column) -> float | None:
        ratio = self.sqnr_db(layer, column)
        return None if ratio is None else min(ratio, _CLEAR_DB)


def inspect_model(path: Path) -> Inspection:
    """Read a model and say what could be done to it on this machine's CPU.

    Raises:
        ModelError: The file cannot be read or has nothing to compress.
    """
    model = load_model(OnnxModelSpec(path=str(path)))
    return Inspection(model.summary, latency_shares(model), _verdicts(model.summary, OnnxRuntimeTarget()))


def inspect_groups(spec: OnnxModelSpec | TorchModelSpec) -> Grouping:
    """Read or export a model and say which of its channels can only be removed together.

    Raises:
        ModelError: The model cannot be read or exported, or has nothing to compress.
    """
    return find_groups(load_model(spec).graph)


def inspect_search(ready: Preparation) -> Inspection:
    """Say what the target of a search could do to its model, and what its space offers."""
    summary = ready.model.summary
    return Inspection(
        summary,
        latency_shares(ready.model),
        _verdicts(summary, ready.target),
        {layer.name: layer for layer in ready.space.layers},
        ready.space.refusals,
    )


def estimate_sensitivity(ready: Preparation, home: Home, listener: SearchListener) -> Sensitivity:
    """Estimate what every choice of a search's space does to the output of its layer.

    No candidate is run. Statistics and variants are left in the home, where a search finds them. Of the
    rewrites in the space, those that anchors use are made.

    Raises:
        UserError: The runtime refuses the model or the calibration data.
        InfrastructureError: What was just written to the home is gone.
    """
    rewrites = ready.space.rewrites.usual
    source = _calibrate(ready, rewrites, home, listener)
    _build(ready, rewrites, source, home, listener)
    kept = (*load_source(home, SourceKeys.of(source)), source.statistics_key)
    stitcher = build_stitcher(home, kept, ready.target)
    offered = {layer.name: list(offered_choices(layer)) for layer in ready.space.layers}
    n_choices = sum(map(len, offered.values()))
    listener.on_phase("sensitivity", f"local errors of {n_choices} choices of {len(offered)} layers")
    errors = {name: _errors(stitcher, name, choices) for name, choices in offered.items()}
    return Sensitivity(ready.spec.name, ready.data.calibration.n_examples, rewrites, errors)


def offered_choices(layer: LayerSpace) -> Iterator[Choice]:
    """Every choice of a layer by label, bits, rounding and grid, at its usual sparsity; not plain fp32."""
    choices = (
        layer.choose(label, bits=bits, rounding=rounding, grid=grid)
        for label, (low, high) in layer.legal.items()
        for bits in range(high, low - 1, -1)
        for rounding in layer.methods.get("rounding", (None,))
        for grid in layer.methods.get("grid", (None,))
    )
    return (one for one in dict.fromkeys(choices) if not WeightChoice.of(one).is_untouched)


def keep_layer_facts(ready: Preparation, sources: Mapping[Rewrites, Source], home: Home) -> None:
    """Write what reports show of the layers, unless it is there: order, share of latency, usual errors.

    Raises:
        AutoqError: The float model cannot be profiled, or what was calibrated is gone from the home.
    """
    path = home.artifacts(ready.spec.name) / LAYER_FACTS_FILE
    if path.exists():
        return
    with machine_clock():
        shares = latency_shares(ready.model)
    source = sources[ready.space.rewrites.usual]
    kept = (*load_source(home, SourceKeys.of(source)), source.statistics_key)
    stitcher = build_stitcher(home, kept, ready.target)
    spaces = {layer.name: layer for layer in ready.space.layers}
    sizes = _group_sizes(ready)
    facts = [
        LayerFacts(
            layer.name,
            layer.op,
            layer.n_params,
            shares.get(layer.name),
            {
                f"{one.label} w{one.weight_bits}": _finite_db(
                    ChoiceError(one, stitcher.local_error(layer.name, one))
                )
                for one in _usual_choices(spaces.get(layer.name))
            },
            sizes.get(layer.name, {}),
        )
        for layer in ready.model.summary.layers
    ]
    save_layer_facts(facts, path)


def _group_sizes(ready: Preparation) -> dict[str, dict[str, int]]:
    """Sizes of the channel groups that each layer writes, if the search may make them narrower."""
    sizes: dict[str, dict[str, int]] = {}
    if not ready.width_rule.n_narrower:
        return sizes
    for group in find_groups(ready.model.graph).groups:
        for member in group.members:
            if member.role is Role.WRITES:
                sizes.setdefault(member.layer, {})[group.name] = group.size
    return sizes


def _usual_choices(layer: LayerSpace | None) -> list[Choice]:
    """Every label at its widest, and the first label at fewer bits: their variants are built already."""
    if layer is None:
        return []
    labels = [label for label in layer.labels if not Choice.from_label(label).format.is_float]
    choices = [layer.choose(label) for label in labels]
    for label in labels[:1]:
        low, high = layer.legal[label]
        choices += [layer.choose(label, bits=bits) for bits in range(high - 1, low - 1, -1)]
    return list(dict.fromkeys(choices))


def _finite_db(error: ChoiceError) -> float | None:
    ratio = error.sqnr_db
    return None if ratio is None else round(min(ratio, _EXACT_DB), 2)


def _calibrate(ready: Preparation, rewrites: Rewrites, home: Home, listener: SearchListener) -> Source:
    calibrator = Calibrator(home, ready.data.calibration, ready.target.environment(), listener)
    source = derive(ready.model, rewrites, calibrator, calibrator.key)
    save_model(source.model, home)
    return source


def _build(
    ready: Preparation, rewrites: Rewrites, source: Source, home: Home, listener: SearchListener
) -> None:
    """Build what a search would build ahead: each layer is factorised once for all of its choices."""
    wanted = list(foreseeable(ready.space, ready.anchors, rewrites))
    listener.on_phase("variants", f"{len(wanted)} variants of {len(ready.space.layers)} layers")
    with machine_clock():
        store = open_variants(home, source.model, source.statistics_key)
        built = store.build_all(wanted, _quarters(listener))
    listener.on_note(f"variants: {len(wanted) - built} reused, {built} built, kept for later searches")


def _quarters(listener: SearchListener) -> Callable[[int, int], None]:
    """Tell how far the variants are, three times on the way."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if (quarter := 4 * done // total) > told and done < total:
            told = quarter
            listener.on_note(f"variants: {done} of {total} built")

    return tell


def _errors(stitcher: Stitcher, layer: str, choices: Sequence[Choice]) -> tuple[ChoiceError, ...]:
    return tuple(ChoiceError(choice, stitcher.local_error(layer, choice)) for choice in choices)


def _verdicts(summary: ModelSummary, target: Target) -> dict[str, dict[str, Verdict]]:
    return {
        layer.name: {str(fmt): target.judge(layer, Choice.of(fmt)) for fmt in Format}
        for layer in summary.layers
    }
