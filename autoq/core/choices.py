"""How a model is compressed: one choice a layer, graph-wide choices, and the candidate they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from autoq.core.digests import digest_json

FLOAT_BITS = 32


class Format(StrEnum):
    """What a layer computes in, and how its weights are stored."""

    FP32 = "fp32"
    INT8 = "int8"  # static: u8 activations x s8 weights
    INT8_S8 = "int8_s8"  # static: s8 activations x s8 weights
    INT8_DYNAMIC = "int8_dynamic"  # activations quantised at run time, one scale a batch
    INT8_WEIGHT = "int8_weight"  # weight-only, blocks
    INT4_WEIGHT = "int4_weight"  # weight-only, blocks

    @property
    def is_static(self) -> bool:
        """Whether activations are quantised with ranges fixed by calibration."""
        return self in (Format.INT8, Format.INT8_S8)

    @property
    def is_weight_only(self) -> bool:
        """Whether the layer keeps float inputs and outputs and unpacks blocks of weights."""
        return self in (Format.INT8_WEIGHT, Format.INT4_WEIGHT)

    @property
    def container_bits(self) -> int:
        """Bits of the integer type the weights are computed in; the widest grid that fits."""
        if self is Format.FP32:
            return FLOAT_BITS
        return 4 if self is Format.INT4_WEIGHT else 8


class Granularity(StrEnum):
    """How many weights share a scale."""

    NONE = "none"  # fp32
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

    @staticmethod
    def of(
        format: Format | str,
        *,
        weight_bits: int | None = None,
        granularity: Granularity | str | None = None,
        calibration: Calibration | str | None = None,
        sparsity: float = 0.0,
    ) -> Choice:
        """Build a normalised choice; omitted fields take the format's usual value.

        Raises:
            ValueError: A value is out of range for the format.
        """
        fmt = Format(format)
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity {sparsity} is outside [0, 1)")
        sparsity = round(sparsity, 6)
        if fmt is Format.FP32:
            return Choice(sparsity=sparsity)
        bits = fmt.container_bits if weight_bits is None else weight_bits
        if not 2 <= bits <= 8:
            raise ValueError(f"{bits} weight bits are outside 2..8")
        bits = min(bits, fmt.container_bits)
        default = Granularity.BLOCK32 if fmt.is_weight_only else Granularity.CHANNEL
        grain = Granularity(granularity or default)
        if (grain.block_size is not None) != fmt.is_weight_only or grain is Granularity.NONE:
            raise ValueError(f"format {fmt} cannot have granularity {grain}")
        method = Calibration(calibration or Calibration.MINMAX) if fmt.is_static else Calibration.NONE
        return Choice(fmt, bits, grain, method, sparsity)

    @property
    def label(self) -> str:
        """The categorical part: `int8/channel/minmax`, `int8_dynamic/channel`, `fp32`."""
        parts = (self.format, self.granularity, self.calibration)
        return "/".join(part for part in parts if part != "none")

    @staticmethod
    def from_label(label: str, *, weight_bits: int | None = None, sparsity: float = 0.0) -> Choice:
        """Rebuild a choice from its label, bits and sparsity.

        Raises:
            ValueError: The label names no format, granularity or calibration method.
        """
        fmt, *rest = label.split("/")
        granularity = rest[0] if rest else None
        calibration = rest[1] if len(rest) > 1 else None
        return Choice.of(
            fmt,
            weight_bits=weight_bits,
            granularity=granularity,
            calibration=calibration,
            sparsity=sparsity,
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        return {
            "format": str(self.format),
            "weight_bits": self.weight_bits,
            "granularity": str(self.granularity),
            "calibration": str(self.calibration),
            "sparsity": self.sparsity,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Choice:
        """Inverse of `to_json`."""
        return Choice(
            Format(data["format"]),
            int(data["weight_bits"]),
            Granularity(data["granularity"]),
            Calibration(data["calibration"]),
            float(data["sparsity"]),
        )

    def __str__(self) -> str:
        text = self.label
        if self.format is not Format.FP32 and self.weight_bits != self.format.container_bits:
            text += f" w{self.weight_bits}"
        if self.sparsity:
            text += f" {self.sparsity:.0%} zero"
        return text


FLOAT = Choice()


class Precision(StrEnum):
    """A graph-wide choice: where a weightless op runs."""

    INT8 = "int8"
    FLOAT = "float"


@dataclass(frozen=True)
class Candidate:
    """One choice per layer and one precision per weightless op. Its digest is its identity.

    Both tuples are sorted by name; build with `Candidate.of`. A layer or op that is missing is float.
    """

    choices: tuple[tuple[str, Choice], ...]
    graph: tuple[tuple[str, Precision], ...] = ()

    @staticmethod
    def of(choices: Mapping[str, Choice], graph: Mapping[str, Precision] | None = None) -> Candidate:
        """Build a candidate from mappings of layer name and of weightless-op name."""
        return Candidate(tuple(sorted(choices.items())), tuple(sorted((graph or {}).items())))

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
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Candidate:
        """Inverse of `to_json`."""
        return Candidate.of(
            {name: Choice.from_json(choice) for name, choice in data["choices"].items()},
            {name: Precision(precision) for name, precision in data["graph"].items()},
        )
