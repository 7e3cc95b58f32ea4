"""Search spaces: YAML into the rules that `autoq.search` works with."""

from __future__ import annotations

import importlib.resources
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from autoq.core.choices import (
    Calibration,
    Choice,
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
from autoq.core.errors import SpecError
from autoq.core.layers import OpFamily
from autoq.search.space_rules import (
    AnchorLayerRule,
    AnchorRule,
    GraphRule,
    LayerRule,
    RewriteRule,
    SpaceRules,
    SparsityRange,
    WeightMethods,
    WidthRule,
)
from autoq.spec.fields import (
    Flag,
    Number,
    OneOrMore,
    Ordered,
    Positive,
    Section,
    Text,
    Whole,
    distinct,
    mistake,
    problem,
)
from autoq.spec.problems import did_you_mean, validate
from autoq.spec.reading import read_yaml

_SUFFIXES = (".yaml", ".yml")
_BITS = range(2, 9)
_MOST_WIDTHS = 8


def _one_of(kind: type[StrEnum]) -> BeforeValidator:
    """Take the names of `kind` that a user may write; `none` is not one, it is what a format implies."""
    names = [member.value for member in kind if member != "none"]

    def check(value: object) -> object:
        if value not in names:
            raise problem(f"one of {', '.join(names)}")
        return value

    return BeforeValidator(check)


def _fixed_as_range(value: object) -> object:
    if isinstance(value, list | tuple):
        return value
    if value not in _BITS:
        raise problem(f"bits from {_BITS[0]} to {_BITS[-1]}, or [low, high]")
    return (value, value)


def _graph_key(key: object) -> object:
    family = str(key).partition(":")[0]
    if family not in list(OpFamily):
        raise mistake(f"no family {family!r}, {did_you_mean(family, list(OpFamily))}")
    return key


FormatName = Annotated[Format, _one_of(Format)]
RoundingName = Annotated[Rounding, _one_of(Rounding)]
GridName = Annotated[Grid, _one_of(Grid)]
PruningName = Annotated[Pruning, _one_of(Pruning)]
PatternName = Annotated[Pattern, _one_of(Pattern)]
GranularityName = Annotated[Granularity, _one_of(Granularity)]
CalibrationName = Annotated[Calibration, _one_of(Calibration)]
PrecisionName = Annotated[Precision, _one_of(Precision)]
FamilyName = Annotated[OpFamily, _one_of(OpFamily)]
GraphKey = Annotated[str, BeforeValidator(_graph_key)]  # `family` or `family:glob`
Bits = Annotated[Whole, Field(ge=_BITS[0], le=_BITS[-1])]
Sparsity = Annotated[Number, Field(ge=0, lt=1)]


class SparsitySpec(Section):
    """Sparsities 0, step, 2 step, ..., max; a bare number is the max."""

    max: Sparsity
    step: Positive = 0.1

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        return {"max": value} if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _whole_steps(self) -> SparsitySpec:
        steps = self.max / self.step
        if abs(steps - round(steps)) > 1e-6:
            raise mistake(f"max {self.max:g} is not a whole number of steps of {self.step:g}")
        return self


class LayerSpec(Section):
    """What layers may be; a key that is left out keeps what an earlier rule said."""

    format: OneOrMore[FormatName] | None = None
    granularity: OneOrMore[GranularityName] | None = None
    calibration: OneOrMore[CalibrationName] | None = None
    weight_bits: Annotated[tuple[Bits, Bits], BeforeValidator(_fixed_as_range)] | None = None
    sparsity: SparsitySpec | None = None
    rounding: OneOrMore[RoundingName] | None = None
    grid: OneOrMore[GridName] | None = None
    pruning: OneOrMore[PruningName] | None = None
    pattern: OneOrMore[PatternName] | None = None

    @field_validator("weight_bits")
    @classmethod
    def _ordered(cls, bits: tuple[int, int] | None) -> tuple[int, int] | None:
        if bits is not None and bits[0] > bits[1]:
            raise problem("[low, high] with low <= high")
        return bits

    def rule(self, pattern: str) -> LayerRule:
        """Return the rule for layers that match `pattern`."""
        sparsity = None if self.sparsity is None else SparsityRange(self.sparsity.max, self.sparsity.step)
        methods = WeightMethods(self.rounding, self.grid, self.pruning, self.pattern)
        return LayerRule(
            pattern, self.format, self.granularity, self.calibration, self.weight_bits, sparsity, methods
        )


class AnchorLayerSpec(Section):
    """How an anchor compresses layers."""

    format: FormatName
    weight_bits: Bits | None = None
    granularity: GranularityName | None = None
    calibration: CalibrationName | None = None
    sparsity: Sparsity = 0.0
    rounding: RoundingName | None = None
    grid: GridName | None = None
    pruning: PruningName | None = None
    pattern: PatternName | None = None

    @property
    def methods(self) -> dict[str, str]:
        """Ways to treat the weights that are named."""
        named = {name: getattr(self, name) for name in ("rounding", "grid", "pruning", "pattern")}
        return {name: str(how) for name, how in named.items() if how is not None}

    @model_validator(mode="after")
    def _goes_together(self) -> AnchorLayerSpec:
        try:
            Choice.of(
                self.format,
                weight_bits=self.weight_bits,
                granularity=self.granularity,
                calibration=self.calibration,
                sparsity=self.sparsity,
                **self.methods,
            )
        except ValueError as error:
            raise mistake(str(error)) from error
        return self

    def rule(self, pattern: str) -> AnchorLayerRule:
        """Return the rule for layers that match `pattern`."""
        return AnchorLayerRule(
            pattern,
            self.format,
            self.weight_bits,
            self.granularity,
            self.calibration,
            self.sparsity,
            tuple(self.methods.items()),
        )


def _off_is_none(value: object) -> object:
    return None if value is False or value == "off" else value


def _switch(value: object) -> object:
    return {"off": False, "on": True}.get(value, value) if isinstance(value, str) else value


Alpha = Annotated[Annotated[Number, Field(ge=0, le=1)] | None, BeforeValidator(_off_is_none)]
Switch = Annotated[Flag, BeforeValidator(_switch)]


class RewritesSpec(Section):
    """Rewrites of the float model, for one anchor."""

    equalize: Switch = False
    smooth: Alpha = None

    def rewrites(self) -> Rewrites:
        """Return them as a candidate holds them."""
        return Rewrites(self.equalize, self.smooth)


def _off_is_nothing(value: object) -> object:
    return [] if value is False or value == "off" else value


def _share(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:  # type: ignore[operator]
        raise problem("a share above 0 and up to 1: nothing may be narrowed to nothing")
    return float(value)  # type: ignore[arg-type]


def _falling(shares: tuple[float, ...]) -> tuple[float, ...]:
    if len(shares) > _MOST_WIDTHS:
        raise problem(f"at most {_MOST_WIDTHS} shares: each is a float model to calibrate")
    return tuple(sorted(shares, reverse=True))


Share = Annotated[float, BeforeValidator(_share)]
# Full width is there anyway: 1 may stand in the list or not.
LatencyShares = Annotated[
    tuple[Share, ...], BeforeValidator(_off_is_nothing), AfterValidator(distinct), AfterValidator(_falling)
]


class GroupWidthSpec(Section):
    """How narrow channel groups may get; `full` is short for `min: 1`."""

    min: Share

    @model_validator(mode="before")
    @classmethod
    def _full(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "full":
            raise problem("'full', or min: SHARE")
        return {"min": 1.0} if value == "full" else value


# No blank: the labels of shares have one.
Label = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]+$")]


class WidthsSpec(Section):
    """Narrower models: shares of the latency to aim at, or widths by group; a bare list is `latency`."""

    latency: LatencyShares = ()
    groups: Ordered[Text, GroupWidthSpec] = Field(default_factory=dict)
    given: Ordered[Label, Annotated[Ordered[Text, Share], Field(min_length=1)]] = Field(default_factory=dict)
    refit: Refit = Refit.NESTED
    criterion: Criterion = Criterion.OBS

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: Any) -> Any:
        return value if isinstance(value, dict | WidthsSpec) or value is None else {"latency": value}

    @model_validator(mode="after")
    def _not_too_many(self) -> WidthsSpec:
        if len(self.latency) + len(self.given) > _MOST_WIDTHS:
            raise problem(f"at most {_MOST_WIDTHS} widths: each is a float model to calibrate")
        return self

    def rule(self) -> WidthRule:
        """Return the rule that search works with."""
        shares = tuple(share for share in self.latency if share < 1.0)
        bounds = tuple((glob, one.min) for glob, one in self.groups.items())
        given = tuple((name, tuple(widths.items())) for name, widths in self.given.items())
        return WidthRule(shares, bounds, given, self.refit, self.criterion)


class RewriteSpaceSpec(Section):
    """What is made of the float model and searched; the first of each is what anchors use."""

    equalize: OneOrMore[Switch] = (False,)
    smooth: OneOrMore[Alpha] = (None,)
    widths: WidthsSpec = WidthsSpec()

    def rule(self) -> RewriteRule:
        """Return the rule that search works with."""
        return RewriteRule(self.equalize, self.smooth, self.widths.rule())


class AnchorSpec(Section):
    """A candidate of the user's, tried first."""

    name: Text
    layers: Ordered[Text, AnchorLayerSpec] = Field(min_length=1)
    graph: dict[FamilyName, PrecisionName] = Field(default_factory=dict)
    rewrites: RewritesSpec = RewritesSpec()

    def rule(self) -> AnchorRule:
        """Return the rule that search works with."""
        layers = tuple(layer.rule(pattern) for pattern, layer in self.layers.items())
        return AnchorRule(self.name, layers, dict(self.graph), self.rewrites.rewrites())


class SpaceSpec(Section):
    """A search space; later entries of layers and graph override earlier ones."""

    version: Literal[1]
    description: str = ""
    layers: Ordered[Text, LayerSpec] = Field(min_length=1)
    graph: Ordered[GraphKey, OneOrMore[PrecisionName]] = Field(default_factory=dict)
    rewrites: RewriteSpaceSpec = RewriteSpaceSpec()
    anchors: tuple[AnchorSpec, ...] = ()

    @field_validator("anchors")
    @classmethod
    def _named_apart(cls, anchors: tuple[AnchorSpec, ...]) -> tuple[AnchorSpec, ...]:
        names = [anchor.name for anchor in anchors]
        if twice := [name for name in names if names.count(name) > 1]:
            raise mistake(f"two anchors are named {twice[0]!r}")
        return anchors

    def rules(self) -> SpaceRules:
        """Return the rules that search works with."""
        layers = tuple(layer.rule(pattern) for pattern, layer in self.layers.items())
        graph = tuple(_graph_rule(key, precisions) for key, precisions in self.graph.items())
        return SpaceRules(
            layers, graph, tuple(anchor.rule() for anchor in self.anchors), self.rewrites.rule()
        )


def _graph_rule(key: str, precisions: tuple[Precision, ...]) -> GraphRule:
    family, _, pattern = key.partition(":")
    return GraphRule(OpFamily(family), pattern or "*", precisions)


def ready_spaces() -> list[str]:
    """Names of the search spaces that come with autoq."""
    files = (Path(file.name) for file in importlib.resources.files("autoq.search_spaces").iterdir())
    return sorted(file.stem for file in files if file.suffix in _SUFFIXES)


def load_space(source: str, base: Path, *, where: str = "space") -> SpaceSpec:
    """Load a search space by the name of a ready one, or from a YAML file.

    Args:
        source: A name, or a path that ends in .yaml or .yml.
        base: Folder that a relative path refers to.
        where: What an error about the name begins with.

    Raises:
        SpecError: There is no such space, or its file is wrong; one line for each problem.
    """
    if source in ready_spaces():
        resource = importlib.resources.files("autoq.search_spaces") / f"{source}.yaml"
        with importlib.resources.as_file(resource) as path:
            return validate(SpaceSpec, read_yaml(path), path.name)
    if not source.endswith(_SUFFIXES):
        names = ready_spaces()
        raise SpecError(
            f"{where}: no search space named {source!r}, {did_you_mean(source, names)}",
            hint="a space of your own is given as a path that ends in .yaml",
        )
    path = (base / Path(source).expanduser()).resolve()
    return validate(SpaceSpec, read_yaml(path), str(path))
