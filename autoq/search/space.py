"""The search space of one model on one target: what each layer may be, as parameters to propose."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from autoq.core.choices import (
    FLOAT,
    FLOAT_BITS,
    Candidate,
    Choice,
    Criterion,
    Precision,
    Refit,
    Rewrites,
    Widths,
)
from autoq.core.layers import OpFamily, WeightlessOp

BitRange = tuple[int, int]  # inclusive
Params = Mapping[str, Any]  # parameter name -> label, bits, sparsity or precision


@dataclass(frozen=True, slots=True)
class CategoryParam:
    """One of several names without an order."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IntegerParam:
    """A whole number between two bounds, both included."""

    name: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class GridParam:
    """A number on the grid low, low + step, ..., high."""

    name: str
    low: float
    high: float
    step: float


Param = CategoryParam | IntegerParam | GridParam


@dataclass(frozen=True)
class LayerSpace:
    """What one layer may be: labels with the bit range each runs at, and a grid of sparsities."""

    name: str
    legal: Mapping[str, BitRange]  # `Choice.label` -> bits, in the order of the rules
    sparsities: tuple[float, ...] = (0.0,)  # evenly spaced, ascending
    # `rounding`, `grid`, `pruning`, `pattern` -> what each may be; the first is what anchors use.
    methods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the legal choices, without bits and sparsity."""
        return tuple(self.legal)

    @property
    def bits(self) -> BitRange:
        """Range over all labels; a label that runs at fewer clamps. Floats have nothing to choose."""
        ranges = [bits for label, bits in self.legal.items() if not Choice.from_label(label).format.is_float]
        if not ranges:
            return (FLOAT_BITS, FLOAT_BITS)
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    @property
    def ways(self) -> list[dict[str, str]]:
        """Every combination of the methods."""
        combined = itertools.product(*self.methods.values())
        return [dict(zip(self.methods, one, strict=True)) for one in combined]

    @property
    def params(self) -> list[Param]:
        """Parameters of the layer; what has one value is fixed and no parameter."""
        found: list[Param] = []
        if len(self.legal) > 1:
            found.append(CategoryParam(f"{self.name}/format", self.labels))
        low, high = self.bits
        if low < high:
            found.append(IntegerParam(f"{self.name}/bits", low, high))
        if len(self.sparsities) > 1:
            first, second = self.sparsities[:2]
            step = round(second - first, 6)
            found.append(GridParam(f"{self.name}/sparsity", first, self.sparsities[-1], step))
        for method, options in self.methods.items():
            if len(options) > 1:
                found.append(CategoryParam(f"{self.name}/{method}", options))
        return found

    def choose(
        self, label: str, *, bits: int | None = None, sparsity: float | None = None, **methods: str | None
    ) -> Choice:
        """Build a legal choice: bits are clamped to what the label runs at, by default its widest."""
        low, high = self.legal[label]
        clamped = high if bits is None else min(max(bits, low), high)
        usual = {method: options[0] for method, options in self.methods.items()}
        return Choice.from_label(
            label,
            weight_bits=clamped,
            sparsity=self.sparsities[0] if sparsity is None else sparsity,
            **self._possible(label, {**usual, **{name: how for name, how in methods.items() if how}}),
        )

    def _possible(self, label: str, methods: Mapping[str, str]) -> dict[str, str]:
        """Leave out a codebook where the label's kernel wants uniform levels."""
        is_blocked = Choice.from_label(label).format.is_weight_only
        return {name: how for name, how in methods.items() if name != "grid" or not is_blocked}

    def decode(self, params: Params) -> Choice:
        """Read the layer's choice out of a proposal."""
        label = params.get(f"{self.name}/format", self.labels[0])
        bits, sparsity = params.get(f"{self.name}/bits"), params.get(f"{self.name}/sparsity")
        methods = {method: params.get(f"{self.name}/{method}") for method in self.methods}
        return self.choose(label, bits=bits, sparsity=sparsity, **methods)

    def encode(self, choice: Choice) -> dict[str, Any]:
        """Write a choice as parameter values; every parameter gets one, also where it means nothing."""
        low, high = self.bits
        nearest = min(self.sparsities, key=lambda sparsity: abs(sparsity - choice.sparsity))
        values = {
            f"{self.name}/format": choice.label,
            f"{self.name}/bits": min(max(choice.weight_bits, low), high),
            f"{self.name}/sparsity": nearest,
        }
        for method, options in self.methods.items():
            used = str(getattr(choice, method))
            values[f"{self.name}/{method}"] = used if used in options else options[0]
        return {param.name: values[param.name] for param in self.params}


@dataclass(frozen=True)
class GraphSpace:
    """Where one group of weightless ops may run, decided together."""

    name: str  # `graph/add`, `graph/add:layer1.*`
    family: OpFamily
    ops: tuple[str, ...]
    precisions: tuple[Precision, ...]  # the first is what anchors use

    @property
    def params(self) -> list[Param]:
        """The parameter of the group, unless it is fixed."""
        return [CategoryParam(self.name, self.precisions)] if len(self.precisions) > 1 else []


_OFF = "off"


@dataclass(frozen=True, slots=True)
class WidthLevel:
    """Widths of all channel groups that are chosen together."""

    label: str  # what samplers and people call it
    widths: Widths = ()

    @staticmethod
    def of_share(share: float, widths: Widths = ()) -> WidthLevel:
        """Name widths by the share of the latency at full width that they aim at."""
        return WidthLevel(f"{100 * share:.4g} %", widths)


FULL_WIDTH = WidthLevel.of_share(1.0)


@dataclass(frozen=True)
class RewriteSpace:
    """Rewrites of the float model that may be switched; the first of each is what anchors use.

    Widths below full go with the usual other rewrites only: each combination is a float model to
    calibrate, and their product would soon be too many.
    """

    equalize: tuple[bool, ...] = (False,)
    smooth_alpha: tuple[float | None, ...] = (None,)
    widths: tuple[WidthLevel, ...] = (FULL_WIDTH,)
    # At every width below full:
    refit: Refit = Refit.NESTED
    criterion: Criterion = Criterion.OBS
    loss: str = ""  # whose gradients Fisher scores are made of

    @property
    def usual(self) -> Rewrites:
        """What anchors use."""
        return Rewrites(self.equalize[0], self.smooth_alpha[0])

    @property
    def all(self) -> list[Rewrites]:
        """Every combination on offer, the usual one first."""
        full = [Rewrites(equalize, alpha) for equalize in self.equalize for alpha in self.smooth_alpha]
        return [*full, *(self.narrowed(level.widths) for level in self.widths[1:])]

    def narrowed(self, widths: Widths) -> Rewrites:
        """The rewrites that widths below full go with."""
        return replace(self.usual, widths=widths, refit=self.refit, criterion=self.criterion, loss=self.loss)

    @property
    def params(self) -> list[Param]:
        """One parameter for each rewrite there is a choice about."""
        return [CategoryParam(name, tuple(o)) for name, o in self._options.items() if len(o) > 1]

    def decode(self, params: Params) -> Rewrites:
        """Read the rewrites out of a proposal."""
        picked = [params.get(name, next(iter(options))) for name, options in self._options.items()]
        (equalize, smooth, level), options = picked, self._options
        if widths := options["graph/widths"][level]:
            return self.narrowed(widths)
        return Rewrites(options["graph/equalize"][equalize], options["graph/smooth"][smooth])

    def encode(self, rewrites: Rewrites) -> dict[str, Any] | None:
        """Inverse of `decode`; None for rewrites outside the space."""
        expected = self.narrowed(rewrites.widths) if rewrites.widths else self.usual
        if any(getattr(rewrites, how) != getattr(expected, how) for how in ("refit", "criterion", "loss")):
            return None
        used: dict[str, Any] = {
            "graph/equalize": rewrites.equalize,
            "graph/smooth": rewrites.smooth_alpha,
            "graph/widths": rewrites.widths,
        }
        params: dict[str, Any] = {}
        for name, options in self._options.items():
            written = next((label for label, value in options.items() if value == used[name]), None)
            if written is None:
                return None
            params[name] = written
        return {param.name: params[param.name] for param in self.params}

    @cached_property
    def _options(self) -> dict[str, dict[str, Any]]:
        """Value of each option by the label the samplers see."""
        return {
            "graph/equalize": {"on" if value else _OFF: value for value in self.equalize},
            "graph/smooth": {_OFF if a is None else f"{a:g}": a for a in self.smooth_alpha},
            "graph/widths": {level.label: level.widths for level in self.widths},
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something the rules ask for and the target does not run."""

    layers: tuple[str, ...]  # names of layers, or of weightless ops
    what: str  # a format, a label, `int8/channel/minmax at 8 bits`, a family of ops
    reason: str


@dataclass(frozen=True)
class SearchSpace:
    """Every candidate a strategy may propose."""

    layers: tuple[LayerSpace, ...]
    graph: tuple[GraphSpace, ...] = ()
    ops: tuple[WeightlessOp, ...] = ()  # of the model; one in no group is float
    refusals: tuple[Refusal, ...] = ()
    rewrites: RewriteSpace = RewriteSpace()

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """What a strategy proposes, layer by layer, then the graph."""
        of_layers = [param for layer in self.layers for param in layer.params]
        return (*of_layers, *(p for group in self.graph for p in group.params), *self.rewrites.params)

    def decode(self, params: Params) -> Candidate:
        """Build the candidate of a proposal; every layer and weightless op is named in it."""
        graph = dict.fromkeys((op.name for op in self.ops), Precision.FLOAT)
        for group in self.graph:
            precision = Precision(params.get(group.name, group.precisions[0]))
            graph.update(dict.fromkeys(group.ops, precision))
        choices = {layer.name: layer.decode(params) for layer in self.layers}
        return Candidate.of(choices, graph, self.rewrites.decode(params))

    def encode(self, candidate: Candidate) -> dict[str, Any] | None:
        """Inverse of `decode`: a value for every parameter, or None for a candidate outside the space."""
        params: dict[str, Any] = {}
        for layer in self.layers:
            choice = candidate.by_layer.get(layer.name, FLOAT)
            if choice.label not in layer.legal:
                return None
            params.update(layer.encode(choice))
        for group in self.graph:
            precisions = {candidate.by_op.get(op, Precision.FLOAT) for op in group.ops}
            if len(precisions) > 1 or not precisions <= set(group.precisions):
                return None
            if group.params:
                params[group.name] = str(precisions.pop())
        rewrites = self.rewrites.encode(candidate.rewrites)
        if rewrites is None:
            return None
        params.update(rewrites)
        return params if self.decode(params) == candidate else None
