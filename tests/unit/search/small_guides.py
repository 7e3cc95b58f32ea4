"""Small guides written by hand, and latencies that follow a law of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.choices import AS_IT_IS, FLOAT, Choice, Format, Precision, Rewrites
from autoq.search.guide import Border, Floats, Guide, Option, Slot, Stitch

FORMATS = (Format.INT8, Format.INT8_DYNAMIC)
SPEED = {"fp32": 1.0, "int8/channel": 0.3, "int8_dynamic/channel": 0.45, "float": 1.0, "int8": 0.6}


def choice_option(choice: Choice, *, error: float = 1.0, n_bytes: int = 4_000) -> Option:
    """An option whose weights err four times as much with each bit less, and its input by its kind."""
    if choice == FLOAT:
        return Option(choice, "fp32", bundle_bytes=n_bytes, size_bytes=n_bytes)
    kernel = f"{choice.format}/{choice.granularity}"
    share = choice.weight_bits / 32
    return Option(
        choice,
        kernel,
        weight_error=error * 1e-5 * 4.0 ** (8 - choice.weight_bits),
        activation_error=error * (3e-4 if choice.format.is_static else 1e-4),
        bundle_bytes=int(0.8 * share * n_bytes),
        size_bytes=int(share * n_bytes),
    )


def layer_slot(
    name: str, *, tie: str = "Conv", formats: Sequence[Format] = FORMATS, bits: Sequence[int] = (8, 6, 4)
) -> Slot:
    choices = [FLOAT, *(Choice.of(fmt, weight_bits=n) for fmt in formats for n in bits)]
    return Slot(name, tie, tuple(choice_option(choice) for choice in choices))


def group_slot(name: str = "graph/add", ops: Sequence[str] = ("add0", "add1")) -> Slot:
    options = tuple(Option(precision, str(precision)) for precision in (Precision.FLOAT, Precision.INT8))
    return Slot(name, name, options, tuple(ops))


def chain(
    n_layers: int = 6, *, n_ties: int = 2, rewrites: Sequence[Rewrites] = (AS_IT_IS,), group: bool = False
) -> Guide:
    """A chain of layers of equal length in time, ties taking turns; a group may stand at its end."""
    slots = [layer_slot(f"layer{at:02}", tie=f"Conv {at % n_ties}") for at in range(n_layers)]
    slots += [group_slot()] if group else []
    borders = tuple(
        Border(one.name, two.name, 100.0 * (1 + at % 3))
        for at, (one, two) in enumerate(itertools.pairwise(slots))
    )
    profile = {slot.name: {"fp32" if slot.is_layer else "float": 0.9 / len(slots)} for slot in slots}
    return Guide(dict.fromkeys(rewrites, tuple(slots)), borders, profile)


def draw_stitches(guide: Guide, n_stitches: int, rng: np.random.Generator) -> list[Stitch]:
    """Any option for any slot, with runs of one kernel as often as mixes."""
    found = []
    for _ in range(n_stitches):
        rewrites = guide.rewrites[int(rng.integers(len(guide.rewrites)))]
        switch, favoured, options = rng.choice([0.1, 0.5, 1.0]), 0, []
        for slot in guide.usual:
            if rng.random() < switch or favoured >= len(slot.options):
                favoured = int(rng.integers(len(slot.options)))
            options.append(favoured)
        found.append(Stitch(rewrites, tuple(options)))
    return found


@dataclass(frozen=True)
class LatencyLaw:
    """Slots add up, and every tensor that is converted costs; kernels are faster or slower by the tie."""

    guide: Guide
    factors: dict[tuple[str, str], float]  # (kernel, tie) -> of what the profile lets expect
    rest: float = 0.1
    quantising: float = 0.25  # of every tensor
    dequantising: float = 0.15

    @staticmethod
    def drawn(guide: Guide, rng: np.random.Generator, *, spread: float = 0.25, **law: float) -> LatencyLaw:
        pairs = {(option.kernel, slot.tie) for slot in guide.usual for option in slot.options}
        factors = {
            pair: 1.0 if pair[0] in ("fp32", "float") else float(np.exp(spread * rng.standard_normal()))
            for pair in sorted(pairs)
        }
        return LatencyLaw(guide, factors, **law)

    def __call__(self, stitches: Sequence[Stitch]) -> Floats:
        return np.array([self._one(stitch) for stitch in stitches])

    def _one(self, stitch: Stitch) -> float:
        total, integer = self.rest, {}
        for slot, index, flags in zip(self.guide.usual, stitch.options, self.guide.integer, strict=True):
            kernel = slot.options[index].kernel
            total += 0.9 / len(self.guide.usual) * SPEED[kernel] * self.factors[kernel, slot.tie]
            integer[slot.name] = bool(flags[index])
        whole = sum(border.elements for border in self.guide.borders)
        for border in self.guide.borders:
            if integer[border.writer] != integer[border.reader]:
                price = self.dequantising if integer[border.writer] else self.quantising
                total += price * border.elements / whole
        return total
