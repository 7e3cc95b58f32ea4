from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from small_guides import chain, layer_slot

from autoq.core.choices import AS_IT_IS, FLOAT, Choice, Format, Rewrites
from autoq.search.guide import ErrorProbe, Guide, Option, Slot
from autoq.search.sensitivity import (
    MAX_PROBES,
    least_squares_above_zero,
    offsets,
    plan_probes,
    sensitivities,
    static_everywhere,
)

KINDS = ("weight", "static", "dynamic")
EQUALIZED = Rewrites(equalize=True)
Factors = dict[str, dict[str, float]]  # layer -> kind of error -> divergence per local error


def local_error(slot: Slot, index: int, factors: dict[str, float]) -> float:
    option = slot.options[index]
    return option.weight_error * factors["weight"] + option.activation_error * factors.get(
        option.error_kind, 0.0
    )


def drawn_factors(guide: Guide, seed: int = 0) -> Factors:
    rng = np.random.default_rng(seed)
    return {
        slot.name: {kind: float(10.0 ** rng.uniform(-1, 1)) for kind in KINDS}
        for slot in guide.usual
        if slot.is_layer
    }


def probed(guide: Guide, factors: Factors, *, op_cost: float = 0.0) -> Guide:
    """Answer every planned probe by the law that the module supposes."""
    probes = []
    for plan in plan_probes(guide):
        total = 0.0
        for slot in guide.usual:
            if slot.name in plan.chosen:
                at = plan.chosen[slot.name]
                total += local_error(slot, at, factors[slot.name]) if slot.is_layer else op_cost
        probes.append(ErrorProbe(plan.rewrites, plan.chosen, total))
    return replace(guide, error_probes=tuple(probes))


def test_known_factors_come_back_from_the_probes() -> None:
    guide = chain(8)
    factors = drawn_factors(guide)
    costs = sensitivities(probed(guide, factors))[AS_IT_IS]
    for slot, found in zip(guide.usual, costs, strict=True):
        truth = [local_error(slot, at, factors[slot.name]) for at in range(len(slot.options))]
        assert found == pytest.approx(truth, rel=0.1, abs=1e-9)


@pytest.mark.parametrize("factor", [1e-3, 1e-2, 1e2, 1e3])
def test_a_layer_unlike_all_others_keeps_its_factor(factor: float) -> None:
    guide = chain(8)
    factors = {slot.name: dict.fromkeys(KINDS, 1.0) for slot in guide.usual}
    factors["layer03"] = dict.fromkeys(KINDS, factor)
    costs = sensitivities(probed(guide, factors))[AS_IT_IS]
    assert costs[3][1:] == pytest.approx(factor * costs[4][1:], rel=0.1)


def test_a_layer_that_costs_nothing_is_not_given_the_factor_of_others() -> None:
    guide = chain(8)
    factors = {slot.name: dict.fromkeys(KINDS, 1.0) for slot in guide.usual}
    factors["layer03"] = dict.fromkeys(KINDS, 0.0)
    costs = sensitivities(probed(guide, factors))[AS_IT_IS]
    assert costs[3].max() < 1e-3 * costs[4].max()


def test_layers_are_ranked_by_what_they_cost_and_not_by_their_local_errors() -> None:
    guide = chain(6)  # all layers err alike
    factors = {
        slot.name: dict.fromkeys(("weight", "static", "dynamic"), 2.0**at)
        for at, slot in enumerate(guide.usual)
    }
    costs = sensitivities(probed(guide, factors))[AS_IT_IS]
    last = [float(one[-1]) for one in costs]
    assert last == sorted(last)
    assert last[-1] > 20 * last[0]


def test_float_costs_nothing() -> None:
    guide = chain(4, group=True)
    costs = sensitivities(probed(guide, drawn_factors(guide), op_cost=0.3))[AS_IT_IS]
    assert [one[0] for one in costs] == [0.0] * 5


def test_without_probes_local_errors_stand_in() -> None:
    guide = chain(3, group=True)
    costs = sensitivities(guide)[AS_IT_IS]
    for slot, found in zip(guide.usual[:-1], costs, strict=False):
        assert found == pytest.approx([one.weight_error + one.activation_error for one in slot.options])
    assert costs[-1].tolist() == [0.0, 0.0]


def test_a_layer_whose_probe_failed_has_the_factor_that_is_common() -> None:
    guide = chain(5)
    whole = probed(
        guide, {slot.name: dict.fromkeys(("weight", "static", "dynamic"), 7.0) for slot in guide.usual}
    )
    left = tuple(probe for probe in whole.error_probes if "layer02" not in probe.chosen)
    assert len(left) < len(whole.error_probes)
    costs = sensitivities(replace(whole, error_probes=left))[AS_IT_IS]
    assert costs[2] == pytest.approx(costs[1], rel=0.05)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=7, max_size=7), st.booleans())
def test_fewer_bits_never_look_better(errors: list[int], has_probes: bool) -> None:
    """Whatever the local errors say: a solver would take a gain that only noise promises."""
    bits = (8, 7, 6, 5, 4, 3, 2)
    options = [
        Option(Choice.of(Format.INT8, weight_bits=n), "int8/channel", error / 1000)
        for n, error in zip(bits, errors, strict=True)
    ]
    slot = Slot("layer", "Conv", tuple(options))
    guide = Guide({AS_IT_IS: (slot,)}, (), {})
    if has_probes:
        guide = replace(guide, error_probes=(ErrorProbe(AS_IT_IS, {"layer": 3}, 0.5),))
    (costs,) = sensitivities(guide)[AS_IT_IS]
    assert (np.diff(costs) >= 0.0).all()
    assert (costs >= 0.0).all()


def test_options_that_differ_in_more_than_bits_are_not_compared() -> None:
    guide = chain(1)
    (costs,) = sensitivities(probed(guide, {"layer00": {"weight": 1.0, "static": 100.0, "dynamic": 0.01}}))[
        AS_IT_IS
    ]
    by_label = {str(one.what): cost for one, cost in zip(guide.usual[0].options, costs, strict=True)}
    assert by_label["int8/channel/minmax"] > by_label["int8_dynamic/channel w6"]


def test_a_format_that_cannot_hold_the_weights_is_as_bad_as_losing_the_layer() -> None:
    slot = layer_slot("layer")
    hopeless = replace(slot.options[2], weight_error=float("inf"), activation_error=float("nan"))
    slot = replace(slot, options=(*slot.options[:2], hopeless, *slot.options[3:]))
    (costs,) = sensitivities(Guide({AS_IT_IS: (slot,)}, (), {}))[AS_IT_IS]
    assert np.isfinite(costs).all()
    assert costs[2] >= 1.0


def test_a_model_whose_outputs_are_not_finite_shuns_what_was_compressed() -> None:
    guide = probed(chain(4, group=True), drawn_factors(chain(4)), op_cost=0.1)
    broken = tuple(
        replace(probe, divergence=float("inf"))
        if probe.chosen.keys() == {"layer01"} or "graph/add" in probe.chosen
        else probe
        for probe in guide.error_probes
    )
    costs = sensitivities(replace(guide, error_probes=broken))[AS_IT_IS]
    assert all(np.isfinite(one).all() for one in costs)
    others = max(one.max() for at, one in enumerate(costs) if at not in (1, 4))
    assert costs[1][-1] > others
    assert costs[4][1] > 1.0


def test_each_kind_of_error_of_each_layer_is_probed_alone_in_a_small_model() -> None:
    guide = chain(4)
    plans = plan_probes(guide)
    assert all(len(plan.chosen) == 1 for plan in plans)
    told = Counter(name for plan in plans for name in plan.chosen)
    assert told == {slot.name: 3 for slot in guide.usual}  # weights, static inputs, dynamic inputs
    for plan in plans:
        ((name, index),) = plan.chosen.items()
        slot = next(one for one in guide.usual if one.name == name)
        assert not slot.options[index].is_float


@pytest.mark.parametrize("n_layers", [60, 300])
def test_the_number_of_probes_does_not_grow_with_the_layers(n_layers: int) -> None:
    guide = chain(n_layers, group=True)
    plans = plan_probes(guide)
    assert (
        len(plans) <= MAX_PROBES + 3 + 2
    )  # a share of each kind is rounded; a group, and what it is told from
    single = [plan for plan in plans if len(plan.chosen) == 1]
    assert len(single) >= MAX_PROBES // 2
    told = Counter(name for plan in plans for name in plan.chosen if len(plan.chosen) < n_layers)
    assert told == {slot.name: 3 for slot in guide.usual if slot.is_layer}


def test_models_after_the_first_are_probed_less_as_they_start_from_its_factors() -> None:
    guide = chain(300)
    both = replace(guide, slots={AS_IT_IS: guide.usual, EQUALIZED: guide.usual})
    plans = plan_probes(both)
    first, second = ([plan for plan in plans if plan.rewrites == one] for one in (AS_IT_IS, EQUALIZED))
    assert [plan.chosen for plan in first] == [plan.chosen for plan in plan_probes(guide)]
    assert MAX_PROBES // 5 <= len(second) <= MAX_PROBES // 4 + 2
    told = Counter(name for plan in second for name in plan.chosen)
    assert told == {slot.name: 2 for slot in guide.usual}  # static and dynamic inputs: weights are as before


def test_shared_probes_still_tell_parts_of_a_deep_model_apart() -> None:
    guide = chain(300)
    factors = {
        slot.name: dict.fromkeys(KINDS, 10.0 if at < 100 else 0.1) for at, slot in enumerate(guide.usual)
    }
    costs = sensitivities(probed(guide, factors))[AS_IT_IS]
    first, last = (np.array([one[-1] for one in costs[part]]) for part in (slice(0, 90), slice(110, 300)))
    assert first.min() > 5 * np.median(last)


def test_a_group_is_probed_beside_static_layers_and_costs_the_difference() -> None:
    guide = chain(4, group=True)
    plans = plan_probes(guide)
    static = static_everywhere(guide.usual)
    assert static == dict.fromkeys([slot.name for slot in guide.usual if slot.is_layer], 1)
    assert [dict(plan.chosen) for plan in plans[-2:]] == [static, {**static, "graph/add": 1}]
    costs = sensitivities(probed(guide, drawn_factors(guide), op_cost=0.3))[AS_IT_IS]
    assert costs[-1] == pytest.approx([0.0, 0.3])


def test_a_group_that_seems_to_help_costs_nothing() -> None:
    guide = chain(4, group=True)
    costs = sensitivities(probed(guide, drawn_factors(guide), op_cost=-1e-4))[AS_IT_IS]
    assert costs[-1].tolist() == [0.0, 0.0]


def test_another_float_model_learns_weights_from_the_first_and_activations_from_its_own_probes() -> None:
    guide = chain(3, rewrites=(AS_IT_IS, EQUALIZED))
    plans = plan_probes(guide)
    of_rewritten = [plan for plan in plans if plan.rewrites == EQUALIZED]
    assert len(of_rewritten) == 2 * 3
    usual = {slot.name: {"weight": 4.0, "static": 2.0, "dynamic": 2.0} for slot in guide.usual}
    tamed = {slot.name: {"weight": 4.0, "static": 0.1, "dynamic": 2.0} for slot in guide.usual}
    first, second = (probed(guide, one).error_probes for one in (usual, tamed))
    mixed = [a if a.rewrites == AS_IT_IS else b for a, b in zip(first, second, strict=True)]
    costs = sensitivities(replace(guide, error_probes=tuple(mixed)))
    for before, after in zip(costs[AS_IT_IS], costs[EQUALIZED], strict=True):
        assert after[1] < 0.3 * before[1]  # static
        assert after[-1] == pytest.approx(before[-1], rel=0.25)  # dynamic, four bits: weights


NARROW = Rewrites(widths=(("layer00", 8),))


def test_a_narrower_model_is_probed_as_it_is_and_with_all_layers_static_and_no_more() -> None:
    guide = chain(12, rewrites=(AS_IT_IS, NARROW))
    plans = [plan.chosen for plan in plan_probes(guide) if plan.rewrites == NARROW]
    assert plans == [{}, static_everywhere(guide.usual)]


def test_a_narrower_model_has_the_first_ones_sensitivities_times_one_number() -> None:
    guide = chain(4, rewrites=(AS_IT_IS, NARROW))
    known = probed(guide, drawn_factors(guide))
    whole = sum(
        sensitivities(known)[AS_IT_IS][at][static_everywhere(guide.usual)[slot.name]]
        for at, slot in enumerate(guide.usual)
    )
    others = [probe for probe in known.error_probes if probe.rewrites == AS_IT_IS]
    static = static_everywhere(guide.usual)
    told = (ErrorProbe(NARROW, {}, 0.01), ErrorProbe(NARROW, static, 0.01 + 2.0 * whole))
    costs = sensitivities(replace(known, error_probes=(*others, *told)))
    for mine, first in zip(costs[NARROW], costs[AS_IT_IS], strict=True):
        assert mine == pytest.approx(2.0 * first, rel=1e-6)


def test_a_narrower_model_starts_from_its_own_divergence_and_one_that_failed_counts_as_lost() -> None:
    guide = chain(3, rewrites=(AS_IT_IS, NARROW))
    known = replace(guide, error_probes=(ErrorProbe(NARROW, {}, 0.25),))
    assert offsets(known) == {AS_IT_IS: 0.0, NARROW: 0.25}
    assert offsets(guide)[NARROW] > 1.0


def test_a_group_costs_in_every_float_model_what_it_was_measured_to_cost_in_the_usual_one() -> None:
    guide = chain(3, rewrites=(AS_IT_IS, EQUALIZED), group=True)
    costs = sensitivities(probed(guide, drawn_factors(guide), op_cost=0.7))
    assert costs[AS_IT_IS][-1] == pytest.approx([0.0, 0.7])
    assert costs[EQUALIZED][-1].tolist() == costs[AS_IT_IS][-1].tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5))
def test_few_unknowns_are_fitted_as_a_library_does_it(seed: int, n_measured: int) -> None:
    rng = np.random.default_rng(seed)
    measured = rng.exponential(size=(n_measured, 5)) * (rng.random((n_measured, 5)) < 0.6)
    scales = 10.0 ** rng.uniform(-6, 6, 5)  # errors of other kinds differ by orders of magnitude
    rows = np.concatenate((0.1 * np.eye(5), measured)) * scales
    goals = rng.normal(1.0, 1.0, 5 + n_measured)
    found, expected = least_squares_above_zero(rows, goals), nnls(rows, goals)[0]
    assert (found >= 0.0).all()
    np.testing.assert_allclose(found * scales, expected * scales, atol=1e-7)


def test_unknowns_that_nothing_tells_apart_are_fitted_together() -> None:
    rows = np.array([[1e-9, 0.0], [0.0, 1e-9], [2.0, 1.0]])
    found = least_squares_above_zero(rows, np.array([1e-9, 1e-9, 3.0]))
    assert rows[2] @ found == pytest.approx(3.0)


def test_a_layer_that_does_not_move_the_output_costs_nothing() -> None:
    static = Choice.of("int8")
    slots = tuple(
        Slot(name, name, (Option(FLOAT, "fp32"), Option(static, "int8/channel", 2e-2, 1e-2)))
        for name in ("first", "second", "third")
    )
    probes = tuple(
        ErrorProbe(AS_IT_IS, {slot.name: 1}, divergence)
        for slot, divergence in zip(slots, (0.3, 0.5, 0.0), strict=True)
    )
    guide = Guide({AS_IT_IS: slots}, (), {}, error_probes=probes)
    costs = sensitivities(guide)[AS_IT_IS]
    assert [cost[1] for cost in costs] == pytest.approx([0.3, 0.5, 0.0], abs=0.02)


@pytest.mark.parametrize(
    ("fmt", "activation_error", "kind"),
    [
        ("int8", 0.1, "static"),
        ("int8_outlier", 0.1, "outlier"),
        ("int8_dynamic", 0.1, "dynamic"),
        ("int8_weight", 0.1, "block"),
        ("int8_weight", 0.0, "weight"),  # as in an embedding, whose kernel rounds no inputs
        ("fp16", 0.0, "weight"),
    ],
)
def test_options_err_by_how_their_kernel_rounds_inputs(fmt: str, activation_error: float, kind: str) -> None:
    assert Option(Choice.of(fmt), fmt, 0.1, activation_error).error_kind == kind


def test_a_way_of_rounding_inputs_is_told_by_a_probe_of_its_own() -> None:
    """Two formats with equal local errors cost what each was measured to cost."""
    options = (
        Option(FLOAT, "fp32"),
        Option(Choice.of("int8"), "int8/channel", 1e-4, 1e-2),
        Option(Choice.of("int8_outlier"), "int8_outlier/channel", 1e-4, 1e-2),
        Option(Choice.of("int8_weight"), "int8_weight/block32", 1e-4, 1e-2),
    )
    slots = (Slot("fc", "fc", options),)
    truth = {1: 0.5, 2: 0.02, 3: 0.001}
    plans = plan_probes(Guide({AS_IT_IS: slots}, (), {}))
    assert {plan.chosen["fc"] for plan in plans if plan.chosen} == set(truth)
    probes = tuple(ErrorProbe(AS_IT_IS, {"fc": at}, divergence) for at, divergence in truth.items())
    [cost] = sensitivities(Guide({AS_IT_IS: slots}, (), {}, error_probes=probes))[AS_IT_IS]
    assert [cost[at] for at in truth] == pytest.approx(list(truth.values()), rel=0.1)
