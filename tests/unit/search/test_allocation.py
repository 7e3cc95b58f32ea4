from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_guides import chain, layer_slot

from autoq.core.choices import AS_IT_IS
from autoq.search.allocation import Allocator, Budget, worth_having
from autoq.search.guide import Border, Guide, Stitch
from autoq.search.latency_model import Prices

SEEDS = st.integers(0, 10_000)


class Instance:
    """A small allocation with every answer written down."""

    def __init__(self, seed: int, *, n_layers: int = 4, border: float = 0.1) -> None:
        rng = np.random.default_rng(seed)
        slots = tuple(layer_slot(f"layer{at}", bits=(8, 4)) for at in range(n_layers))
        ends = [(0, 1), (1, 2), (0, 3), (2, 3)] if border else []
        borders = tuple(Border(f"layer{one}", f"layer{two}", 1.0) for one, two in ends)
        self.guide = Guide({AS_IT_IS: slots}, borders, {}, float_bundle_bytes=500, float_size_bytes=900)
        # Latency is the kernel's; divergence and bytes are the option's own.
        kernels = {name: rng.uniform(0.05, 0.3) for name in ("fp32", "int8/channel", "int8_dynamic/channel")}
        latency = [
            np.array([kernels[one.kernel] * (1 + at / 4) for one in slot.options])
            for at, slot in enumerate(slots)
        ]
        self.costs = [np.array([0.0, *np.sort(rng.exponential(1.0, 4))]) for _ in slots]
        self.prices = Prices(0.1, tuple(latency), border * rng.uniform(0.2, 1.0, (len(borders), 2)))
        self.allocator = Allocator(self.guide, AS_IT_IS, self.costs, self.prices, bundle=True)
        combined = itertools.product(*(range(len(slot.options)) for slot in slots))
        self.all = [Stitch(AS_IT_IS, options) for options in combined]
        self.cost_of_all = np.array([self.cost(one) for one in self.all])
        self.latency_of_all = np.array([self.allocator.latency_of(one) for one in self.all])
        self.bytes_of_all = self.guide.bytes_of(self.all, bundle=True)

    def cost(self, stitch: Stitch) -> float:
        return sum(float(one[at]) for one, at in zip(self.costs, stitch.options, strict=True))

    def latency(self, stitch: Stitch) -> float:
        """The sum by hand: options, and the borders where integers end or begin."""
        total = self.prices.fixed
        total += sum(float(one[at]) for one, at in zip(self.prices.options, stitch.options, strict=True))
        chosen = zip(self.guide.usual, stitch.options, strict=True)
        integer = {slot.name: slot.options[at].kernel == "int8/channel" for slot, at in chosen}
        for border, price in zip(self.guide.borders, self.prices.borders, strict=True):
            if integer[border.writer] != integer[border.reader]:
                total += float(price[1 if integer[border.writer] else 0])
        return total

    @property
    def one_slot(self) -> tuple[float, float]:
        """The most that one slot, with its borders, may change latency and divergence by."""
        spans = [float(np.ptp(one)) for one in self.prices.options]
        return max(spans) + float(self.prices.borders.sum()), max(float(np.ptp(one)) for one in self.costs)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_the_latency_of_a_stitch_counts_its_options_and_its_borders(seed: int) -> None:
    instance = Instance(seed)
    by_hand = [instance.latency(one) for one in instance.all]
    assert instance.latency_of_all == pytest.approx(np.array(by_hand))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.1]), st.floats(0.0, 1.0))
def test_within_a_latency_budget_it_is_one_slot_from_the_best_of_all(
    seed: int, border: float, position: float
) -> None:
    instance = Instance(seed, border=border)
    budget = float(np.quantile(instance.latency_of_all, position)) + 1e-9
    best = instance.cost_of_all[instance.latency_of_all <= budget].min()
    found = instance.allocator.solve(Budget(latency=budget))
    assert found is not None
    over, worse = instance.one_slot
    assert instance.latency(found) <= budget + over
    assert instance.cost(found) <= best + worse + 1e-6


def test_over_many_budgets_hardly_anything_is_lost_to_the_best_of_all() -> None:
    """At the latency that it has, what is found costs next to nothing more than the best there is."""
    lost, over = [], []
    for seed in range(20):
        instance = Instance(seed)
        for position in (0.05, 0.2, 0.4, 0.7):
            budget = float(np.quantile(instance.latency_of_all, position))
            found = instance.allocator.solve(Budget(latency=budget))
            assert found is not None
            latency = instance.latency(found)
            best = instance.cost_of_all[instance.latency_of_all <= latency + 1e-9].min()
            lost.append((instance.cost(found) - best) / np.ptp(instance.cost_of_all))
            over.append(latency / budget - 1.0)
    assert np.mean(lost) <= 0.02
    assert np.median(over) <= 0.02


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.0, 1.0))
def test_within_a_budget_of_bytes_it_is_one_slot_from_the_best_of_all(seed: int, position: float) -> None:
    instance = Instance(seed)
    budget = float(np.quantile(instance.bytes_of_all, position)) + 1.0
    best = instance.cost_of_all[instance.bytes_of_all <= budget].min()
    found = instance.allocator.solve(Budget(n_bytes=budget))
    assert found is not None
    assert instance.cost(found) <= best + instance.one_slot[1] + 1e-6
    assert instance.guide.bytes_of([found], bundle=True)[0] <= budget + 4_000


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_the_fastest_and_the_smallest_are_those_of_all(seed: int) -> None:
    instance = Instance(seed)
    fastest, smallest = instance.allocator.fastest(), instance.allocator.smallest()
    assert fastest is not None
    assert smallest is not None
    assert instance.latency(fastest) == pytest.approx(instance.latency_of_all.min(), abs=1e-6)
    assert instance.guide.bytes_of([smallest], bundle=True)[0] == instance.bytes_of_all.min()


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_without_a_budget_nothing_is_lost(seed: int) -> None:
    instance = Instance(seed)
    found = instance.allocator.solve(Budget())
    assert found is not None
    assert instance.cost(found) == pytest.approx(0.0, abs=0.05 * float(np.median(instance.cost_of_all)))


def test_conversions_are_worth_avoiding() -> None:
    """One layer alone in int8 gains less than its borders cost; all together gain."""
    guide = chain(4, n_ties=1)
    latency = tuple(np.array([0.2, *([0.15] * 3), *([0.2] * 3)]) for _ in guide.usual)
    # Not all alike: of equal layers the relaxation may take a quarter each.
    costs = [np.array([0.0, *([1.0 + at / 10] * 3), *([9.0] * 3)]) for at in (2, 0, 3, 1)]
    free = Allocator(guide, AS_IT_IS, costs, Prices(0.0, latency, np.zeros((3, 2))), bundle=True)
    dear = Allocator(guide, AS_IT_IS, costs, Prices(0.0, latency, np.full((3, 2), 0.5)), bundle=True)
    budget = Budget(latency=0.6 + 1e-6)
    for allocator in (free, dear):
        found = allocator.solve(budget)
        assert found is not None
        assert {guide.usual[at].options[one].kernel for at, one in enumerate(found.options)} == {
            "int8/channel"
        }
    loose = free.solve(Budget(latency=0.75 + 1e-6))
    assert loose is not None
    assert [option != 0 for option in loose.options] == [False, True, False, False]


def test_a_budget_that_nothing_keeps_has_no_solution() -> None:
    instance = Instance(0)
    assert instance.allocator.solve(Budget(latency=0.01)) is None
    assert instance.allocator.solve(Budget(n_bytes=100)) is None


def test_slots_that_count_for_more_are_spared() -> None:
    guide = chain(6, n_ties=1)
    latency = tuple(np.array([0.15, *([0.05] * 6)]) for _ in guide.usual)
    costs = [np.array([0.0, *([1.0] * 6)]) for _ in guide.usual]
    allocator = Allocator(guide, AS_IT_IS, costs, Prices(0.0, latency, np.zeros((5, 2))), bundle=True)
    for spared in (0, 5):
        found = allocator.solve(Budget(latency=0.4 + 1e-6), {spared: 5.0})
        assert found is not None
        assert [at for at, option in enumerate(found.options) if option == 0] == [spared]


def test_a_hundred_and_fifty_layers_are_solved_in_a_fraction_of_a_second() -> None:
    rng = np.random.default_rng(0)
    guide = chain(150)
    prices = Prices(
        0.1,
        tuple(rng.uniform(0.2, 1.0, 7) / 150 for _ in guide.usual),
        rng.uniform(0.0, 0.2, (149, 2)) / 150,
    )
    costs = [np.array([0.0, *rng.exponential(1.0, 6)]) for _ in guide.usual]
    allocator = Allocator(guide, AS_IT_IS, costs, prices, bundle=True)
    found = allocator.solve(Budget(latency=0.5, n_bytes=300_000))
    assert found is not None
    assert allocator.latency_of(found) <= 0.5 * 1.03
    assert guide.bytes_of([found], bundle=True)[0] <= 300_000 * 1.03


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 60))
def test_no_option_that_is_dropped_beats_all_that_are_kept(seed: int, n_options: int) -> None:
    rng = np.random.default_rng(seed)
    kernels = [str(rng.integers(2)) for _ in range(n_options)]
    costs, n_bytes = rng.integers(0, 9, n_options) / 4.0, rng.integers(0, 9, n_options) * 100.0
    kept = worth_having(kernels, costs, n_bytes)
    assert kept == sorted(set(kept))
    for at in range(n_options):
        alike = [one for one in kept if kernels[one] == kernels[at]]
        assert any(costs[one] <= costs[at] and n_bytes[one] <= n_bytes[at] for one in alike)


def test_a_long_front_of_one_kernel_is_thinned_out_and_keeps_its_ends() -> None:
    costs, n_bytes = np.arange(50.0)[::-1], np.arange(50.0)
    kept = worth_having(["int8"] * 50, costs, n_bytes)
    assert len(kept) == 12
    assert (kept[0], kept[-1]) == (0, 49)


def test_budgets_of_the_bundle_and_of_the_file_are_told_apart() -> None:
    instance = Instance(3)
    of_file = Allocator(instance.guide, AS_IT_IS, instance.costs, instance.prices, bundle=False)
    budget = float(np.median(instance.guide.bytes_of(instance.all, bundle=False)))
    found = of_file.solve(Budget(n_bytes=budget))
    as_bundle = instance.allocator.solve(Budget(n_bytes=budget))
    assert found is not None
    assert as_bundle is not None
    assert instance.cost(as_bundle) < instance.cost(found)  # the same number of bytes holds more of a bundle


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.1]))
def test_what_is_reused_for_a_tighter_budget_is_as_good_as_solving_for_it(seed: int, border: float) -> None:
    instance = Instance(seed, border=border)
    latencies = [None, *np.quantile(instance.latency_of_all, [0.9, 0.5, 0.2, 0.0])]
    n_bytes = [None, *np.quantile(instance.bytes_of_all, [0.9, 0.5, 0.2, 0.0])]
    budgets = [Budget(*pair) for pair in itertools.product(latencies, n_bytes)]
    n_solved = 0
    solve = instance.allocator._solve

    def counted(*arguments: Any) -> Any:
        nonlocal n_solved
        n_solved += 1
        return solve(*arguments)

    instance.allocator._solve = counted  # type: ignore[method-assign]
    reused = [instance.allocator.solve(budget) for budget in budgets]
    alone = [Instance(seed, border=border).allocator.solve(budget) for budget in budgets]
    over, worse = instance.one_slot
    for budget, one, other in zip(budgets, reused, alone, strict=True):
        assert (one is None) == (other is None)
        if one is None or other is None:
            continue
        # Of several optima either may be found, and each is rounded in up to two slots.
        assert instance.latency(one) <= (np.inf if budget.latency is None else budget.latency) + 2 * over
        assert instance.cost(one) <= instance.cost(other) + 2 * worse + 1e-6
    assert n_solved < len(budgets)
    assert [instance.allocator.solve(budget) for budget in budgets] == reused


def test_weighted_slots_are_solved_for_on_their_own() -> None:
    n_moved = 0
    for seed in range(10):
        instance, fresh = Instance(seed), Instance(seed)
        budget = Budget(float(np.quantile(instance.latency_of_all, 0.3)), None)
        plain = instance.allocator.solve(budget)
        weighted = instance.allocator.solve(budget, {0: 100.0, 3: 0.01})
        assert weighted == fresh.allocator.solve(budget, {0: 100.0, 3: 0.01})
        assert instance.allocator.solve(budget) == plain
        n_moved += weighted != plain
    assert n_moved


def test_bytes_break_ties_between_the_fastest_and_decide_nothing_else() -> None:
    """Of a layer of many bytes as of one of few."""
    instance = Instance(3, border=0.0)
    slots = tuple(
        replace(
            slot,
            options=tuple(replace(one, bundle_bytes=10**9 * one.bundle_bytes) for one in slot.options),
        )
        for slot in instance.guide.usual
    )
    guide = Guide({AS_IT_IS: slots}, (), {}, float_bundle_bytes=500, float_size_bytes=900)
    fastest = Allocator(guide, AS_IT_IS, instance.costs, instance.prices, bundle=True).fastest()
    assert fastest is not None
    assert instance.latency(fastest) == pytest.approx(instance.latency_of_all.min(), abs=1e-5)
