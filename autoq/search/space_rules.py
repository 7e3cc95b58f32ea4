"""What a search-space file says, before it meets a model: rules over globs of names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoq.core.choices import (
    AS_IT_IS,
    Calibration,
    Criterion,
    Format,
    Granularity,
    Grid,
    Pattern,
    Precision,
    Pruning,
    Refit,
    Rewrites,
    Rounding,
)
from autoq.core.layers import OpFamily


@dataclass(frozen=True, slots=True)
class SparsityRange:
    """Grid of sparsities 0, step, 2 step, ... up to and including `maximum`; maximum 0 is none."""

    maximum: float = 0.0
    step: float = 0.1


@dataclass(frozen=True, slots=True)
class WeightMethods:
    """How weights may be treated. None leaves what an earlier rule said; the first is what anchors use."""

    rounding: tuple[Rounding, ...] | None = None
    grid: tuple[Grid, ...] | None = None
    pruning: tuple[Pruning, ...] | None = None
    pattern: tuple[Pattern, ...] | None = None

    def after(self, rule: WeightMethods) -> WeightMethods:
        """Return what holds once a later rule has spoken."""
        return WeightMethods(
            rule.rounding or self.rounding,
            rule.grid or self.grid,
            rule.pruning or self.pruning,
            rule.pattern or self.pattern,
        )


@dataclass(frozen=True, slots=True)
class LayerRule:
    """What layers matching a glob may be. None leaves what an earlier rule said."""

    pattern: str
    formats: tuple[Format, ...] | None = None
    granularities: tuple[Granularity, ...] | None = None
    calibrations: tuple[Calibration, ...] | None = None
    weight_bits: tuple[int, int] | None = None  # inclusive
    sparsity: SparsityRange | None = None
    methods: WeightMethods = WeightMethods()


@dataclass(frozen=True, slots=True)
class GraphRule:
    """Where weightless ops of a family, and of names matching a glob, may run."""

    family: OpFamily
    pattern: str  # "*" for the whole family
    precisions: tuple[Precision, ...]  # the first is what anchors use


@dataclass(frozen=True, slots=True)
class AnchorLayerRule:
    """How an anchor of the user's compresses layers matching a glob."""

    pattern: str
    format: Format
    weight_bits: int | None = None
    granularity: Granularity | None = None
    calibration: Calibration | None = None
    sparsity: float = 0.0
    methods: tuple[tuple[str, str], ...] = ()  # of rounding, grid, pruning and pattern, as pairs


@dataclass(frozen=True, slots=True)
class AnchorRule:
    """A candidate the user wants tried first. Layers no rule matches stay float."""

    name: str
    layers: tuple[AnchorLayerRule, ...]
    graph: Mapping[OpFamily, Precision] = field(default_factory=dict)
    rewrites: Rewrites = AS_IT_IS


GroupShares = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class WidthRule:
    """How narrow the model may get. Full width is always on offer, and is what anchors use."""

    shares: tuple[float, ...] = ()  # of the latency at full width to aim at, below 1, falling; none: off
    # Glob on names of channel groups -> the least share of their units to keep; later globs override.
    groups: GroupShares = ()
    # By name: glob on names of channel groups -> the share of their units to keep; others keep all.
    given: tuple[tuple[str, GroupShares], ...] = ()
    refit: Refit = Refit.NESTED
    criterion: Criterion = Criterion.OBS

    @property
    def n_narrower(self) -> int:
        """How many narrower models it asks for, at most."""
        return len(self.shares) + len(self.given)


@dataclass(frozen=True, slots=True)
class RewriteRule:
    """Rewrites of the float model that may be switched; the first of each is what anchors use."""

    equalize: tuple[bool, ...] = (False,)
    smooth_alpha: tuple[float | None, ...] = (None,)
    widths: WidthRule = WidthRule()


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """A search space as written; later rules override earlier ones."""

    layers: tuple[LayerRule, ...]
    graph: tuple[GraphRule, ...] = ()
    anchors: tuple[AnchorRule, ...] = ()
    rewrites: RewriteRule = RewriteRule()
