"""How a model is compressed: one choice a layer, graph-wide choices, and the candidate they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from autoq.core.digests import digest_json

FLOAT_BITS = 32
HALF_BITS = 16


class Format(StrEnum):
    """What a layer computes in, and how its weights are stored."""

    FP32 = "fp32"
    FP16 = "fp16"  # weights stored in half the bytes, computed in float32
    INT8 = "int8"  # static: u8 activations x s8 weights
    INT8_S8 = "int8_s8"  # static: s8 activations x s8 weights
    INT8_OUTLIER = "int8_outlier"  # static, but for the few input channels of the largest values: float
    INT8_DYNAMIC = "int8_dynamic"  # activations quantised at run time, one scale a batch
    INT8_WEIGHT = "int8_weight"  # weight-only, blocks
    INT4_WEIGHT = "int4_weight"  # weight-only, blocks

    @property
    def is_float(self) -> bool:
        """Whether the weights stay floating-point numbers."""
        return self in (Format.FP32, Format.FP16)

    @property
    def is_static(self) -> bool:
        """Whether activations are quantised with ranges fixed by calibration."""
        return self in (Format.INT8, Format.INT8_S8)

    @property
    def keeps_outliers(self) -> bool:
        """Whether input channels of large values are multiplied in float, beside all others in int8.

        The layer takes floats and gives floats: it quantises its input itself, over a range of its own.
        """
        return self is Format.INT8_OUTLIER

    @property
    def is_weight_only(self) -> bool:
        """Whether the layer keeps float inputs and outputs and unpacks blocks of weights."""
        return self in (Format.INT8_WEIGHT, Format.INT4_WEIGHT)

    @property
    def container_bits(self) -> int:
        """Bits of the integer type the weights are computed in; the widest grid that fits."""
        if self.is_float:
            return FLOAT_BITS if self is Format.FP32 else HALF_BITS
        return 4 if self is Format.INT4_WEIGHT else 8


class Granularity(StrEnum):
    """How many weights share a scale."""

    NONE = "none"  # floats
    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK32 = "block32"
    BLOCK64 = "block64"
    BLOCK128 = "block128"

    @property
    def block_size(self) -> int | None:
        """Weights along the input axis that share a scale, or None if not blocked."""
        return int(self.value[5:]) if self.value.startswith("block") else None


class Calibration(StrEnum):
    """How the range of a layer's input is derived from its histogram."""

    NONE = "none"  # the format fixes no activation range
    MINMAX = "minmax"
    PERCENTILE_99_9 = "percentile99.9"
    PERCENTILE_99_99 = "percentile99.99"
    PERCENTILE_99_999 = "percentile99.999"
    ENTROPY = "entropy"
    MSE = "mse"


class Rounding(StrEnum):
    """How weights are put on their grid."""

    NONE = "none"  # floats
    NEAREST = "nearest"
    GPTQ = "gptq"  # each column makes up for the errors of those before it
    ADAROUND = "adaround"  # up or down is learnt, layer by layer: slow, for finalists


class Grid(StrEnum):
    """Where the levels of a weight grid lie."""

    NONE = "none"  # floats
    UNIFORM = "uniform"
    CODEBOOK = "codebook"  # 2^bits levels chosen among the 8-bit ones: int8's speed, fewer bytes stored


class Pruning(StrEnum):
    """How the weights that become zero are chosen."""

    NONE = "none"  # dense
    MAGNITUDE = "magnitude"
    SPARSEGPT = "sparsegpt"  # by what each costs the output, and the others make up for it


class Pattern(StrEnum):
    """Where zeros may lie."""

    NONE = "none"  # dense
    UNSTRUCTURED = "unstructured"
    N2M4 = "2:4"  # at most 2 nonzero of 4 neighbours along the inputs
    N1M4 = "1:4"
    N4M8 = "4:8"

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(n, m) of a structured pattern: at most n nonzero in each m neighbours."""
        n, colon, m = self.value.partition(":")
        return (int(n), int(m)) if colon else None


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """How one layer is compressed. Build it with `Choice.of`, which normalises.

    Fields that mean nothing for a format hold its neutral value, so equal treatments are equal
    objects: a float layer has no bits, granularity or calibration to differ in.
    """

    format: Format = Format.FP32
    weight_bits: int = FLOAT_BITS  # 2..8 for a grid inside the format's container, 32 for fp32
    granularity: Granularity = Granularity.NONE
    calibration: Calibration = Calibration.NONE
    sparsity: float = 0.0  # fraction of weights set to zero, in [0, 1)
    rounding: Rounding = Rounding.NONE
    grid: Grid = Grid.NONE
    pruning: Pruning = Pruning.NONE
    pattern: Pattern = Pattern.NONE

    @staticmethod
    def of(
        format: Format | str,
        *,
        weight_bits: int | None = None,
        granularity: Granularity | str | None = None,
        calibration: Calibration | str | None = None,
        sparsity: float = 0.0,
        **methods: str | None,
    ) -> Choice:
        """Build a normalised choice; omitted fields take the format's usual value.

        Args:
            format: Of the layer.
            weight_bits: Of the grid; more than the format holds mean as many as it holds.
            granularity: Of the weight scales.
            calibration: Of the input's range.
            sparsity: Fraction of zeros; a structured pattern has one of its own, taken for any above 0.
            methods: `rounding` (nearest), `grid` (uniform), `pruning` (magnitude) and `pattern`
                (unstructured).

        Raises:
            ValueError: A value is out of range for the format.
        """
        fmt, how = Format(format), _Methods.of(**methods)
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity {sparsity} is outside [0, 1)")
        zeros = _zeros(round(sparsity, 6), how)
        if fmt.is_float:
            return Choice(fmt, fmt.container_bits, **zeros)
        bits = fmt.container_bits if weight_bits is None else weight_bits
        if not 2 <= bits <= 8:
            raise ValueError(f"{bits} weight bits are outside 2..8")
        bits = min(bits, fmt.container_bits)
        default = Granularity.BLOCK32 if fmt.is_weight_only else Granularity.CHANNEL
        grain = Granularity(granularity or default)
        if (grain.block_size is not None) != fmt.is_weight_only or grain is Granularity.NONE:
            raise ValueError(f"format {fmt} cannot have granularity {grain}")
        method = Calibration(calibration or Calibration.MINMAX) if fmt.is_static else Calibration.NONE
        if how.grid is Grid.CODEBOOK and fmt.is_weight_only:
            raise ValueError(f"format {fmt} has no codebooks: its kernel computes with uniform levels")
        # Eight bits of codebook are all levels there are.
        grid = Grid.UNIFORM if bits == fmt.container_bits else how.grid
        return Choice(fmt, bits, grain, method, rounding=how.rounding, grid=grid, **zeros)

    @property
    def stored_bits(self) -> int:
        """Bits that hold a weight in the deployed file: a codebook's levels are spread over all of int8."""
        return self.format.container_bits if self.grid is Grid.CODEBOOK else self.weight_bits

    @property
    def label(self) -> str:
        """The categorical part: `int8/channel/minmax`, `int8_dynamic/channel`, `fp32`."""
        parts = (self.format, self.granularity, self.calibration)
        return "/".join(part for part in parts if part != "none")

    @staticmethod
    def from_label(
        label: str, *, weight_bits: int | None = None, sparsity: float = 0.0, **methods: str | None
    ) -> Choice:
        """Rebuild a choice from its label and the rest, as `of` takes it.

        Raises:
            ValueError: The label names no format, granularity or calibration method.
        """
        return _from_label(label, weight_bits, sparsity, tuple(methods.items()))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        return {
            "format": str(self.format),
            "weight_bits": self.weight_bits,
            "granularity": str(self.granularity),
            "calibration": str(self.calibration),
            "sparsity": self.sparsity,
            "rounding": str(self.rounding),
            "grid": str(self.grid),
            "pruning": str(self.pruning),
            "pattern": str(self.pattern),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Choice:
        """Inverse of `to_json`."""
        plain = Choice.of(Format.INT8, sparsity=0.5)  # how weights were treated before it was a choice
        is_float, is_dense = Format(data["format"]).is_float, not data["sparsity"]
        return Choice(
            Format(data["format"]),
            int(data["weight_bits"]),
            Granularity(data["granularity"]),
            Calibration(data["calibration"]),
            float(data["sparsity"]),
            Rounding(data.get("rounding", Rounding.NONE if is_float else plain.rounding)),
            Grid(data.get("grid", Grid.NONE if is_float else plain.grid)),
            Pruning(data.get("pruning", Pruning.NONE if is_dense else plain.pruning)),
            Pattern(data.get("pattern", Pattern.NONE if is_dense else plain.pattern)),
        )

    def __str__(self) -> str:
        text = self.label
        if self.weight_bits != self.format.container_bits:
            text += f" w{self.weight_bits}"
        plain = (Rounding.NONE, Rounding.NEAREST, Grid.NONE, Grid.UNIFORM)
        text += "".join(f" {method}" for method in (self.grid, self.rounding) if method not in plain)
        if self.sparsity:
            where = "" if self.pattern is Pattern.UNSTRUCTURED else f" {self.pattern}"
            how = "" if self.pruning is Pruning.MAGNITUDE else f" by {self.pruning}"
            text += f" {self.sparsity:.0%} zero{where}{how}"
        return text


@dataclass(frozen=True, slots=True)
class _Methods:
    """How weights are treated, before it is known whether a choice leaves room for it."""

    rounding: Rounding
    grid: Grid
    pruning: Pruning
    pattern: Pattern

    @staticmethod
    def of(
        *,
        rounding: str | None = None,
        grid: str | None = None,
        pruning: str | None = None,
        pattern: str | None = None,
    ) -> _Methods:
        return _Methods(
            Rounding(rounding or Rounding.NEAREST),
            Grid(grid or Grid.UNIFORM),
            Pruning(pruning or Pruning.MAGNITUDE),
            Pattern(pattern or Pattern.UNSTRUCTURED),
        )


def _zeros(sparsity: float, how: _Methods) -> dict[str, Any]:
    """Fields that say what becomes zero; neutral where nothing does."""
    if sparsity == 0.0:
        return {}
    if how.pattern.n_of_m:
        n, m = how.pattern.n_of_m
        sparsity = 1.0 - n / m
    return {"sparsity": sparsity, "pruning": how.pruning, "pattern": how.pattern}


# A space names the same few hundred choices for every layer, tens of thousands of times.
@lru_cache(maxsize=4096)
def _from_label(
    label: str, weight_bits: int | None, sparsity: float, methods: tuple[tuple[str, str | None], ...]
) -> Choice:
    fmt, *rest = label.split("/")
    return Choice.of(
        fmt,
        weight_bits=weight_bits,
        granularity=rest[0] if rest else None,
        calibration=rest[1] if len(rest) > 1 else None,
        sparsity=sparsity,
        **dict(methods),
    )


FLOAT = Choice()


class Precision(StrEnum):
    """A graph-wide choice: where a weightless op runs."""

    INT8 = "int8"
    FLOAT = "float"


# Units kept of each channel group that is narrower than it was, sorted by the group's name.
Widths = tuple[tuple[str, int], ...]


class Refit(StrEnum):
    """How what reads removed channels makes up for them."""

    NESTED = "nested"  # from the float model's activations: one solution serves all widths of a group
    SEQUENTIAL = "sequential"  # then layer by layer from the narrowed model's own


class Criterion(StrEnum):
    """What says which units of a channel group go first."""

    OBS = "obs"  # what the consumers' outputs lose, after the best refit of the weights that stay
    MAGNITUDE = "magnitude"  # squares of the weights that read it
    ACTIVATION = "activation"  # mean square of its activations
    FISHER = "fisher"  # squared gradients of a loss by a mask on it


@dataclass(frozen=True, slots=True)
class Rewrites:
    """What is made of the whole float model before it is quantised: narrowed, then equalised, then smoothed.

    The last two keep what it computes.
    """

    equalize: bool = False  # cross-layer equalisation
    smooth_alpha: float | None = None  # SmoothQuant's alpha: how much of the outliers weights take over
    widths: Widths = ()
    refit: Refit = Refit.NESTED  # where there are widths
    criterion: Criterion = Criterion.OBS  # where there are widths
    loss: str = ""  # whose gradients Fisher scores are made of, such as "cross entropy of logits"

    @property
    def changes_nothing(self) -> bool:
        """Whether the model stays as it is."""
        return self == Rewrites()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        plain: dict[str, Any] = {"equalize": self.equalize, "smooth_alpha": self.smooth_alpha}
        # What is usual is left out: digests from before there was a choice stay what they were.
        if self.widths:
            plain["widths"] = dict(self.widths)
        if self.refit is not Refit.NESTED:
            plain["refit"] = str(self.refit)
        if self.criterion is not Criterion.OBS:
            plain["criterion"] = str(self.criterion)
        if self.loss:
            plain["loss"] = self.loss
        return plain

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Rewrites:
        """Inverse of `to_json`."""
        alpha = data["smooth_alpha"]
        widths = tuple(sorted((str(group), int(units)) for group, units in data.get("widths", {}).items()))
        return Rewrites(
            bool(data["equalize"]),
            None if alpha is None else float(alpha),
            widths,
            Refit(data.get("refit", Refit.NESTED)),
            Criterion(data.get("criterion", Criterion.OBS)),
            str(data.get("loss", "")),
        )

    def __str__(self) -> str:
        n_narrowed = len(self.widths)
        parts = [f"{n_narrowed} channel group{'s' * (n_narrowed > 1)} narrowed"] if n_narrowed else []
        parts += [] if self.criterion is Criterion.OBS else [f"ordered by {self.criterion}"]
        parts += ["refitted layer by layer"] if self.refit is Refit.SEQUENTIAL else []
        parts += ["equalize"] if self.equalize else []
        parts += [] if self.smooth_alpha is None else [f"smooth {self.smooth_alpha:g}"]
        return " + ".join(parts) or "none"


AS_IT_IS = Rewrites()


@dataclass(frozen=True)
class Candidate:
    """One choice per layer, one precision per weightless op, and rewrites. Its digest is its identity.

    Both tuples are sorted by name; build with `Candidate.of`. A layer or op that is missing is float.
    """

    choices: tuple[tuple[str, Choice], ...]
    graph: tuple[tuple[str, Precision], ...] = ()
    rewrites: Rewrites = AS_IT_IS

    @staticmethod
    def of(
        choices: Mapping[str, Choice],
        graph: Mapping[str, Precision] | None = None,
        rewrites: Rewrites | None = None,
    ) -> Candidate:
        """Build a candidate from mappings of layer name and of weightless-op name."""
        ordered = tuple(sorted(choices.items())), tuple(sorted((graph or {}).items()))
        return Candidate(*ordered, rewrites or AS_IT_IS)

    @cached_property
    def by_layer(self) -> dict[str, Choice]:
        """Choice of each layer by name."""
        return dict(self.choices)

    @cached_property
    def by_op(self) -> dict[str, Precision]:
        """Precision of each weightless op by name."""
        return dict(self.graph)

    @cached_property
    def digest(self) -> str:
        """Content hash over every choice."""
        return digest_json(self.to_json())

    def with_choice(self, layer: str, choice: Choice) -> Candidate:
        """Return a copy with one layer's choice replaced."""
        return replace(self, choices=tuple(sorted({**self.by_layer, layer: choice}.items())))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        return {
            "choices": {name: choice.to_json() for name, choice in self.choices},
            "graph": {name: str(precision) for name, precision in self.graph},
            "rewrites": self.rewrites.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Candidate:
        """Inverse of `to_json`."""
        return Candidate.of(
            {name: Choice.from_json(choice) for name, choice in data["choices"].items()},
            {name: Precision(precision) for name, precision in data["graph"].items()},
            Rewrites.from_json(data["rewrites"]) if "rewrites" in data else AS_IT_IS,
        )
