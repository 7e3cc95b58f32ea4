"""Allocation: the option of every slot that loses least within a budget of latency and of bytes.

A multiple-choice knapsack with conversion costs between slots (HAWQ-V3, Yao 2021, has the like for bit
widths alone):

    min Σ sensitivity·x   s.t.   Σ latency·x + Σ border·y ≤ T,   Σ bytes·x ≤ B,   one option a slot,
    y ≥ ±(z_writer − z_reader) for either way,   z = whether the slot computes on integers

Its linear relaxation is solved, and rounded: with two budgets it leaves a few slots undecided (Sinha &
Zoltners 1979), each takes the option it has most of. What comes out may be over its budget by a part of
one slot, which is nothing to a search that asks for dozens of budgets, and comes out in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoq.core.choices import Rewrites
from autoq.search.guide import Floats, Guide, Stitch
from autoq.search.latency_model import Prices
from autoq.search.relaxation import Entries, Relaxation

_THRIFT = 1e-3  # of latency and bytes against sensitivity: what costs nothing to save is saved
_MAX_PER_KERNEL = 12


@dataclass(frozen=True, slots=True)
class Budget:
    """What a stitch may take: None is no bound."""

    latency: float | None = None  # ratio to the float model
    n_bytes: float | None = None


class Allocator:
    """Solves for one float model, with fixed prices and sensitivities."""

    def __init__(
        self, guide: Guide, rewrites: Rewrites, costs: Sequence[Floats], prices: Prices, *, bundle: bool
    ) -> None:
        """Lay the program out.

        Args:
            guide: Slots, options and borders.
            rewrites: Which float model.
            costs: For each slot the divergence of every option.
            prices: What the latency model says each option takes.
            bundle: Whether bytes are those of the bundle, else of the deployed file.
        """
        self._guide, self._rewrites, self._prices = guide, rewrites, prices
        self._fixed_bytes = float(guide.float_bundle_bytes if bundle else guide.float_size_bytes)
        slots = guide.slots[rewrites]
        self._n_slots = len(slots)
        self._kept: list[tuple[int, int]] = []  # (slot, option) of every variable
        self._bytes, self._latency, self._cost = [], [], []
        # By goal, what was solved for: limits, what the optimum takes, and the stitch.
        self._optima: dict[bytes, list[tuple[Floats, Floats, Stitch | None]]] = {}
        for position, slot in enumerate(slots):
            n_bytes = np.array(
                [one.bundle_bytes if bundle else one.size_bytes for one in slot.options], np.float64
            )
            kernels = [one.kernel for one in slot.options]
            for option in worth_having(kernels, costs[position], n_bytes):
                self._kept.append((position, option))
                self._bytes.append(n_bytes[option])
                self._latency.append(prices.options[position][option])
                self._cost.append(costs[position][option])

    @property
    def _border_prices(self) -> Floats:
        return self._prices.borders.reshape(-1)

    @cached_property
    def _relaxation(self) -> Relaxation:
        """One option a slot, conversions of either way, and in the last two rows latency and bytes."""
        n, names = len(self._kept), {slot.name: at for at, slot in enumerate(self._guide.usual)}
        integer: list[list[int]] = [[] for _ in range(self._n_slots)]
        entries = Entries()
        for column, (slot, option) in enumerate(self._kept):
            entries.add(slot, column, 1.0)
            if self._guide.integer[slot][option]:
                integer[slot].append(column)
        row = self._n_slots
        for border in self._guide.borders:
            for sign in (-1.0, 1.0):  # quantised, dequantised
                entries.add(row, n + row - self._n_slots, -1.0)
                for slot, direction in ((names[border.writer], sign), (names[border.reader], -sign)):
                    for column in integer[slot]:
                        entries.add(row, column, direction)
                row += 1
        for column, value in enumerate((*self._latency, *self._border_prices)):
            entries.add(row, column, value)
        for column, value in enumerate(self._bytes):
            entries.add(row + 1, column, value / self._byte_unit)
        n_conversions = row - self._n_slots
        lower = np.concatenate((np.ones(self._n_slots), np.full(n_conversions + 2, -np.inf)))
        upper = np.concatenate((np.ones(self._n_slots), np.zeros(n_conversions), np.full(2, np.inf)))
        return Relaxation(entries, lower, upper, n + n_conversions)

    @cached_property
    def _byte_unit(self) -> float:
        """What bytes are counted in, so that all rows are of like size."""
        return max(float(np.mean(self._bytes)) * self._n_slots, 1.0)

    def solve(self, budget: Budget, weights: Mapping[int, float] | None = None) -> Stitch | None:
        """Find the options that lose least within a budget; None where there are none.

        Args:
            budget: Latency and bytes.
            weights: Factor on the sensitivity of some slots.
        """
        cost = np.array(self._cost)
        if weights:
            cost = cost * np.array([weights.get(slot, 1.0) for slot, _ in self._kept])
        scale = max(float(np.median([c for c in cost if c > 0] or [1.0])), 1e-12)
        latency, n_bytes = np.array(self._latency), np.array(self._bytes)
        thrift = latency + n_bytes / self._byte_unit
        goal = np.concatenate((cost / scale + _THRIFT * thrift, _THRIFT * self._border_prices))
        return self._solved(goal, budget)

    def latency_of(self, stitch: Stitch) -> float:
        """Latency of a stitch by the prices, as a ratio to the float model."""
        picked = zip(self._prices.options, stitch.options, strict=True)
        total = self._prices.fixed + sum(float(prices[option]) for prices, option in picked)
        names = {slot.name: at for at, slot in enumerate(self._guide.usual)}
        for border, price in zip(self._guide.borders, self._prices.borders, strict=True):
            ends = (names[border.writer], names[border.reader])
            writes, reads = (self._guide.integer[at][stitch.options[at]] for at in ends)
            total += float(price[int(writes)]) if writes != reads else 0.0
        return total

    def fastest(self) -> Stitch | None:
        """The options with the lowest latency."""
        total = max(sum(self._bytes), 1.0)  # bytes only break ties
        latency = np.array(self._latency) + 1e-6 * np.array(self._bytes) / total
        goal = np.concatenate((latency, self._border_prices))
        return self._solved(goal, Budget())

    def smallest(self) -> Stitch | None:
        """The options with the fewest bytes."""
        total = max(sum(self._bytes), 1.0)
        goal = np.concatenate(
            (np.array(self._bytes) / total + 1e-6 * np.array(self._latency), self._border_prices * 1e-6)
        )
        return self._solved(goal, Budget())

    def _solved(self, goal: Floats, budget: Budget) -> Stitch | None:
        """Reuse what was found within a looser budget if it keeps to this one; solve otherwise."""
        limits = self._limits(budget)
        known = self._optima.setdefault(goal.tobytes(), [])
        for looser, use, stitch in known:
            keeps = stitch is None or (use <= limits).all() or np.array_equal(looser, limits)
            if keeps and (looser >= limits).all():
                return stitch
        use, stitch = self._solve(goal, limits)
        known.append((limits, use, stitch))
        return stitch

    def _limits(self, budget: Budget) -> Floats:
        """Bounds of the last two rows; (2,)."""
        latency = math.inf if budget.latency is None else budget.latency - self._prices.fixed
        n_bytes = math.inf if budget.n_bytes is None else budget.n_bytes - self._fixed_bytes
        return np.array([latency, n_bytes / self._byte_unit])

    def _solve(self, goal: Floats, limits: Floats) -> tuple[Floats, Stitch | None]:
        """Solve the relaxation, and round it; return what it takes of latency and bytes too."""
        found = self._relaxation.solve(goal, limits)
        if found is None:
            return np.zeros(2), None
        options = [0] * self._n_slots
        best = np.full(self._n_slots, -1.0)
        for value, (slot, option) in zip(found, self._kept, strict=False):  # borders come after them
            if value > best[slot]:
                best[slot], options[slot] = value, option
        latency = found @ np.concatenate((self._latency, self._border_prices))
        n_bytes = found[: len(self._kept)] @ np.array(self._bytes) / self._byte_unit
        return np.array([latency, n_bytes]), Stitch(self._rewrites, tuple(options))


def worth_having(kernels: Sequence[str], costs: Floats, n_bytes: Floats) -> list[int]:
    """Options that no other of their kernel beats in both divergence and bytes, thinned out evenly."""
    kept: list[int] = []
    for kernel in dict.fromkeys(kernels):
        mine = [index for index, one in enumerate(kernels) if one == kernel]
        mine.sort(key=lambda index: (n_bytes[index], costs[index], index))
        front: list[int] = []
        for index in mine:
            if not front or costs[index] < costs[front[-1]]:
                front.append(index)
        if len(front) > _MAX_PER_KERNEL:
            front = [front[at] for at in np.linspace(0, len(front) - 1, _MAX_PER_KERNEL).round().astype(int)]
        kept += front
    return sorted(kept)
