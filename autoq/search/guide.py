"""What the guided strategy knows of a model before the first trial: slots, options, and their prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from autoq.core.choices import FLOAT, Candidate, Choice, Format, Precision, Rewrites

Floats = npt.NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Option:
    """One thing a slot may be, with all that is known of it without running a model."""

    what: Choice | Precision
    kernel: str  # what decides its speed: `int8/channel`, `fp32`; bits and calibration do not
    weight_error: float = 0.0  # of the layer's output, as a share of its energy
    activation_error: float = 0.0
    bundle_bytes: int = 0
    size_bytes: int = 0

    @property
    def is_float(self) -> bool:
        """Whether it leaves the slot as the float model has it."""
        return self.what in (FLOAT, Precision.FLOAT)

    @property
    def format(self) -> str:
        """What it computes in, whatever its granularity; weightless ops have kernels of their own."""
        return str(self.what.format) if isinstance(self.what, Choice) else f"op {self.what}"

    @property
    def error_kind(self) -> str:
        """How activations are rounded: options of one kind err alike."""
        if isinstance(self.what, Precision):
            return "op"
        fmt = self.what.format
        if fmt.is_static:
            return "static"
        if fmt.keeps_outliers:
            return "outlier"
        if fmt.is_weight_only and self.activation_error > 0.0:
            return "block"
        return "dynamic" if fmt is Format.INT8_DYNAMIC else "weight"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        what = str(self.what) if isinstance(self.what, Precision) else self.what.to_json()
        figures = [self.weight_error, self.activation_error, self.bundle_bytes, self.size_bytes]
        return {"what": what, "kernel": self.kernel, "figures": figures}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Option:
        """Inverse of `to_json`."""
        what = data["what"]
        read = Precision(what) if isinstance(what, str) else Choice.from_json(what)
        return Option(read, data["kernel"], *data["figures"])


@dataclass(frozen=True)
class Slot:
    """Something to decide: a layer, or a group of weightless ops that are decided together."""

    name: str  # of the layer, or of the group: `graph/add`
    tie: str  # what its cost depends on: op and shape; slots with one tie cost alike
    options: tuple[Option, ...]
    ops: tuple[str, ...] = ()  # of a group

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer."""
        return not self.ops

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        options = [option.to_json() for option in self.options]
        return {"name": self.name, "tie": self.tie, "options": options, "ops": list(self.ops)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Slot:
        """Inverse of `to_json`."""
        options = tuple(map(Option.from_json, data["options"]))
        return Slot(data["name"], data["tie"], options, tuple(data["ops"]))


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor between two slots that is converted where one computes on integers and the other does not."""

    writer: str
    reader: str
    elements: float  # of one example


@dataclass(frozen=True, slots=True)
class ErrorProbe:
    """The measured divergence of a model in which only some slots are compressed."""

    rewrites: Rewrites
    chosen: Mapping[str, int]  # slot -> option; all others are as in the float model
    divergence: float


@dataclass(frozen=True, slots=True)
class LatencyProbe:
    """The measured latency of a whole model."""

    candidate: Candidate
    ratio: float  # of the float model's latency
    error: float  # standard error of its logarithm


@dataclass(frozen=True)
class Stitch:
    """A candidate by numbers: the rewrites, and the option of each slot."""

    rewrites: Rewrites
    options: tuple[int, ...]

    @cached_property
    def row(self) -> npt.NDArray[np.int64]:
        """The options as an array, (slots,)."""
        return np.array(self.options, np.int64)


class PerOption(Generic[Scalar]):
    """Figures of every option of every slot, to be looked up for many stitches at once."""

    def __init__(self, figures: Sequence[npt.NDArray[Scalar]]) -> None:
        """Take for each slot an array (options, ...)."""
        self._figures = np.concatenate(figures)
        self._starts = np.cumsum([0, *(len(one) for one in figures[:-1])])

    def of(self, options: npt.NDArray[np.int64]) -> npt.NDArray[Scalar]:
        """Return the figures of the options of stitches, (n, slots); (n, slots, ...)."""
        found: npt.NDArray[Scalar] = self._figures[options + self._starts]
        return found


@dataclass(frozen=True)
class Guide:
    """Everything the guided strategy starts from. Pure data, made once a search and kept by digest."""

    slots: Mapping[
        Rewrites, tuple[Slot, ...]
    ]  # the same slots and options, with the errors of each float model
    borders: tuple[Border, ...]
    kernel_ratios: Mapping[
        str, Mapping[str, float]
    ]  # slot -> kernel -> share of the float model's time, profiled
    fixed_ops: Mapping[str, Precision] = field(default_factory=dict)  # weightless ops that no slot decides
    float_bundle_bytes: int = 0  # of what no slot decides
    float_size_bytes: int = 0
    error_probes: tuple[ErrorProbe, ...] = ()
    latency_probes: tuple[LatencyProbe, ...] = ()
    # `kernel_ratios` of float models that are narrower: other shapes take other times.
    narrowed_ratios: Mapping[Rewrites, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def rewrites(self) -> tuple[Rewrites, ...]:
        """Float models that candidates are made of, the usual one first."""
        return tuple(self.slots)

    @cached_property
    def usual(self) -> tuple[Slot, ...]:
        """Slots of the usual float model: names, ties and options are those of all."""
        return next(iter(self.slots.values()))

    @cached_property
    def float_options(self) -> tuple[int, ...]:
        """For each slot the option that leaves it alone, or the one with the least error if there is none."""
        return tuple(_float_option(slot.options) for slot in self.usual)

    @cached_property
    def integer(self) -> tuple[npt.NDArray[np.bool_], ...]:
        """For each slot, which options compute on integers that neighbours can hand over."""
        return tuple(
            np.array([_hands_integers(slot, option) for option in slot.options], np.bool_)
            for slot in self.usual
        )

    def candidate(self, stitch: Stitch) -> Candidate:
        """Write a stitch out."""
        choices: dict[str, Choice] = {}
        graph = dict(self.fixed_ops)
        for slot, index in zip(self.usual, stitch.options, strict=True):
            what = slot.options[index].what
            if isinstance(what, Precision):
                graph.update(dict.fromkeys(slot.ops, what))
            else:
                choices[slot.name] = what
        return Candidate.of(choices, graph, stitch.rewrites)

    def stitch(self, candidate: Candidate) -> Stitch | None:
        """Inverse of `candidate`; None for one outside the space."""
        if candidate.digest not in self._stitches:
            self._stitches[candidate.digest] = self._stitch(candidate)
        return self._stitches[candidate.digest]

    @cached_property
    def _stitches(self) -> dict[str, Stitch | None]:
        """What candidates were asked for, by digest: those of trials and probes are, at every proposal."""
        return {}

    def _stitch(self, candidate: Candidate) -> Stitch | None:
        if candidate.rewrites not in self.slots:
            return None
        found = []
        for slot, known in zip(self.usual, self._positions, strict=True):
            whats: set[Choice | Precision] = (
                {candidate.by_layer.get(slot.name, FLOAT)}
                if slot.is_layer
                else {candidate.by_op.get(op, Precision.FLOAT) for op in slot.ops}
            )
            index = known.get(whats.pop()) if len(whats) == 1 else None
            if index is None:
                return None
            found.append(index)
        stitch = Stitch(candidate.rewrites, tuple(found))
        return stitch if self.candidate(stitch).digest == candidate.digest else None

    def bytes_of(self, stitches: Sequence[Stitch], *, bundle: bool) -> Floats:
        """Bytes of each stitch's bundle, or of its deployed file; (n,)."""
        totals = np.full(len(stitches), float(self.float_bundle_bytes if bundle else self.float_size_bytes))
        for rewrites, tables in self._bytes.items():
            rows = [row for row, stitch in enumerate(stitches) if stitch.rewrites == rewrites]
            if rows:
                options = np.array([stitches[row].row for row in rows])
                totals[rows] += tables.of(options)[:, :, int(bundle)].sum(axis=1)
        return totals

    @cached_property
    def _bytes(self) -> dict[Rewrites, PerOption[np.float64]]:
        """Bytes of the file and of the bundle."""
        return {
            rewrites: PerOption(
                [
                    np.array([[one.size_bytes, one.bundle_bytes] for one in slot.options], np.float64)
                    for slot in slots
                ]
            )
            for rewrites, slots in self.slots.items()
        }

    @cached_property
    def _positions(self) -> list[dict[Choice | Precision, int]]:
        return [{option.what: index for index, option in enumerate(slot.options)} for slot in self.usual]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        return {
            "slots": [
                [rewrites.to_json(), [slot.to_json() for slot in slots]]
                for rewrites, slots in self.slots.items()
            ],
            "borders": [[one.writer, one.reader, one.elements] for one in self.borders],
            "kernel_ratios": {slot: dict(ratios) for slot, ratios in self.kernel_ratios.items()},
            "fixed_ops": {name: str(precision) for name, precision in self.fixed_ops.items()},
            "float_bundle_bytes": self.float_bundle_bytes,
            "float_size_bytes": self.float_size_bytes,
            "error_probes": [
                [one.rewrites.to_json(), dict(one.chosen), one.divergence] for one in self.error_probes
            ],
            "latency_probes": [
                [one.candidate.to_json(), one.ratio, one.error] for one in self.latency_probes
            ],
            "narrowed_ratios": [
                [rewrites.to_json(), {slot: dict(ratios) for slot, ratios in by_slot.items()}]
                for rewrites, by_slot in self.narrowed_ratios.items()
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Guide:
        """Inverse of `to_json`."""
        return Guide(
            slots={
                Rewrites.from_json(rewrites): tuple(map(Slot.from_json, slots))
                for rewrites, slots in data["slots"]
            },
            borders=tuple(Border(*one) for one in data["borders"]),
            kernel_ratios=data["kernel_ratios"],
            fixed_ops={name: Precision(value) for name, value in data["fixed_ops"].items()},
            float_bundle_bytes=data["float_bundle_bytes"],
            float_size_bytes=data["float_size_bytes"],
            error_probes=tuple(
                ErrorProbe(Rewrites.from_json(rewrites), chosen, divergence)
                for rewrites, chosen, divergence in data["error_probes"]
            ),
            latency_probes=tuple(
                LatencyProbe(Candidate.from_json(candidate), ratio, error)
                for candidate, ratio, error in data["latency_probes"]
            ),
            narrowed_ratios={
                Rewrites.from_json(rewrites): by_slot for rewrites, by_slot in data.get("narrowed_ratios", [])
            },
        )


def _float_option(options: Iterable[Option]) -> int:
    ranked = [
        (not one.is_float, one.weight_error + one.activation_error, index)
        for index, one in enumerate(options)
    ]
    return min(ranked)[-1]


def _hands_integers(slot: Slot, option: Option) -> bool:
    """A static MatMul reads integers and writes floats, whatever is around it."""
    if isinstance(option.what, Precision):
        return option.what is Precision.INT8
    return option.what.format.is_static and not slot.tie.startswith("MatMul")
