from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from small_guides import LatencyLaw, chain, choice_option, draw_stitches

from autoq.core.choices import AS_IT_IS, Choice, Rewrites
from autoq.core.choices import FLOAT as FLOAT_CHOICE
from autoq.search.allocation import Allocator
from autoq.search.guide import Floats, Guide, Slot, Stitch
from autoq.search.latency_model import LatencyModel, Timing
from autoq.search.probing import plan_timings

FLOAT, INT8, DYNAMIC = 0, 1, 4  # options of a layer in a chain


def measured(law: LatencyLaw, stitches: list[Stitch], *, noise: float = 0.0, seed: int = 0) -> list[Timing]:
    rng = np.random.default_rng(seed)
    ratios = law(stitches) * np.exp(noise * rng.standard_normal(len(stitches)))
    return [Timing(stitch, float(r), max(noise, 1e-3)) for stitch, r in zip(stitches, ratios, strict=True)]


def uniform(guide: Guide, option: int) -> Stitch:
    return Stitch(AS_IT_IS, (option,) * len(guide.usual))


def with_option(stitch: Stitch, slot: int, option: int) -> Stitch:
    return replace(stitch, options=(*stitch.options[:slot], option, *stitch.options[slot + 1 :]))


def relative_errors(model: LatencyModel, law: LatencyLaw, stitches: list[Stitch]) -> Floats:
    truth = law(stitches)
    return np.abs(model.predict(stitches)[0] / truth - 1.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twenty_noisy_timings_of_a_deep_model_foretell_the_unseen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    guide = chain(24, n_ties=4)
    law = LatencyLaw.drawn(guide, rng)
    stitches = plan_timings(guide, [uniform(guide, FLOAT)], seed=seed, n_probes=20)
    model = LatencyModel(guide, measured(law, stitches, noise=0.01, seed=seed))
    unseen = draw_stitches(guide, 200, rng)
    assert np.median(relative_errors(model, law, unseen)) <= 0.05
    assert spearmanr(model.predict(unseen)[0], law(unseen)).statistic >= 0.95


def test_many_exact_timings_recover_the_law_to_a_percent() -> None:
    rng = np.random.default_rng(0)
    guide = chain(8, group=True)
    law = LatencyLaw.drawn(guide, rng, quantising=0.4)
    model = LatencyModel(guide, measured(law, draw_stitches(guide, 150, rng)))
    assert np.median(relative_errors(model, law, draw_stitches(guide, 100, rng))) <= 0.01


def test_what_conversions_cost_is_told_from_what_kernels_cost() -> None:
    """Alternating kernels convert at every border, two halves at one: a table of layers calls them equal."""
    guide = chain(8, n_ties=1)
    alternating = Stitch(AS_IT_IS, (FLOAT, INT8) * 4)
    halves = Stitch(AS_IT_IS, (FLOAT,) * 4 + (INT8,) * 4)
    for conversions in (0.0, 0.5):
        rng = np.random.default_rng(1)
        law = LatencyLaw.drawn(guide, rng, quantising=conversions, dequantising=conversions)
        stitches = plan_timings(guide, [], seed=0, n_probes=20)
        assert not {alternating, halves} & set(stitches)
        mean, _ = LatencyModel(guide, measured(law, stitches)).predict([alternating, halves])
        difference = float(np.diff(law([halves, alternating]))[0])
        assert mean[0] - mean[1] == pytest.approx(difference, abs=0.03)


def test_quantising_and_dequantising_have_prices_of_their_own() -> None:
    """A border costs one or the other: which, only its direction says."""
    rng = np.random.default_rng(0)
    guide = chain(8, n_ties=1)
    law = LatencyLaw.drawn(guide, rng, quantising=0.4, dequantising=0.05)
    prices = LatencyModel(guide, measured(law, draw_stitches(guide, 60, rng))).prices[AS_IT_IS].borders
    assert prices.shape == (len(guide.borders), 2)
    assert prices.sum(axis=0) == pytest.approx([0.4, 0.05], abs=0.03)


def test_slots_of_one_tie_teach_about_each_other_and_more_than_about_others() -> None:
    guide = chain(6, n_ties=2)
    base = uniform(guide, FLOAT)
    one, of_the_tie, of_another = (with_option(base, slot, DYNAMIC) for slot in (0, 2, 3))
    before, sd_before = LatencyModel(guide).predict([of_the_tie, of_another])
    slow = [Timing(base, 1.0, 1e-3), Timing(one, float(before[0]) + 0.1, 1e-3)]
    after, sd_after = LatencyModel(guide, slow).predict([of_the_tie, of_another])
    assert after[0] - before[0] > after[1] - before[1] + 0.01
    assert after[1] > before[1]  # the kernel itself is slower than thought
    assert (sd_after < sd_before).all()
    assert sd_after[0] < sd_after[1]


def test_a_timing_leaves_little_doubt_where_it_was_taken_and_more_elsewhere() -> None:
    rng = np.random.default_rng(0)
    guide = chain(8)
    law = LatencyLaw.drawn(guide, rng)
    first, second = draw_stitches(guide, 2, rng)
    sd_prior = LatencyModel(guide).predict([first, second])[1]
    mean, sd = LatencyModel(guide, measured(law, [first])).predict([first, second])
    assert sd[0] < 0.5 * sd_prior[0]
    assert sd[0] < sd[1] <= sd_prior[1]
    assert mean[0] == pytest.approx(law([first])[0], rel=0.02)


def test_doubt_covers_the_truth() -> None:
    """Over laws drawn like the priors, nine in ten errors lie within two standard deviations."""
    within = []
    guide = chain(12, n_ties=3)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        ways = rng.uniform(0.0, 0.3, 2)
        law = LatencyLaw.drawn(guide, rng, spread=0.2, quantising=ways[0], dequantising=ways[1])
        stitches = plan_timings(guide, [], seed=seed, n_probes=8)
        unseen = draw_stitches(guide, 40, rng)
        mean, sd = LatencyModel(guide, measured(law, stitches, noise=0.01, seed=seed)).predict(unseen)
        within += list(np.abs(mean - law(unseen)) <= 2.0 * sd)
    assert np.mean(within) >= 0.9


def test_the_misfit_is_what_the_timings_say() -> None:
    """Where models do not add up, what a timing differs by is not learnt as if kernels were to blame."""
    guide, rng = chain(16, n_ties=4), np.random.default_rng(0)
    law = LatencyLaw.drawn(guide, rng)
    stitches, unseen = draw_stitches(guide, 40, rng), draw_stitches(guide, 100, rng)
    exact = LatencyModel(guide, measured(law, stitches))
    crooked = [replace(one, error=1e-3) for one in measured(law, stitches, noise=0.06)]
    told, fooled = LatencyModel(guide, crooked), LatencyModel(guide, crooked, misfit=exact.misfit)
    assert exact.misfit <= 0.01 < 0.03 <= told.misfit
    errors = [np.median(relative_errors(one, law, unseen)) for one in (exact, told, fooled)]
    assert errors[0] < errors[1] < errors[2]
    assert np.mean(np.abs(told.predict(unseen)[0] - law(unseen)) <= 2 * told.predict(unseen)[1]) >= 0.9


def test_without_timings_the_profile_speaks() -> None:
    guide = chain(4)
    profile = {
        slot.name: {"fp32": 0.2, "int8/channel": 0.01 * (at + 1)} for at, slot in enumerate(guide.usual)
    }
    guide = replace(guide, kernel_ratios=profile, borders=())
    mean, sd = LatencyModel(guide).predict([uniform(guide, option) for option in (FLOAT, INT8, DYNAMIC)])
    assert mean[:2] == pytest.approx([1.0, 0.2 + 0.01 * (1 + 2 + 3 + 4)])
    assert mean[1] < mean[2] < mean[0]  # what nobody profiled lies between, as it usually does
    assert (sd > 0.05 * mean).all()


def test_a_kernel_that_was_profiled_in_a_quiet_moment_is_not_taken_for_a_faster_one() -> None:
    """Scales per tensor or per channel: one kernel, of which a profile gives two readings."""
    names = [f"layer{at:02}" for at in range(4)]
    choices = [FLOAT_CHOICE, Choice.of("int8"), Choice.of("int8", granularity="tensor")]
    slot = Slot("", "Conv", tuple(choice_option(choice) for choice in choices))
    slots = tuple(replace(slot, name=name) for name in names)
    readings = {"fp32": 0.25, "int8/channel": 0.12, "int8/tensor": 0.08}
    guide = Guide({AS_IT_IS: slots}, (), dict.fromkeys(names, readings))
    per_channel, per_tensor = (uniform(guide, option) for option in (1, 2))
    assert LatencyModel(guide).predict([per_channel, per_tensor])[0] == pytest.approx([0.4, 0.4])
    only_one = {name: {"fp32": 0.25, "int8/channel": 0.12} for name in names}
    mean, _ = LatencyModel(replace(guide, kernel_ratios=only_one)).predict([per_tensor])
    assert mean == pytest.approx([0.48])


def test_a_slow_integer_add_says_nothing_of_integer_layers() -> None:
    guide = chain(4, group=True)
    integers = Stitch(AS_IT_IS, (INT8,) * 4 + (0,))
    with_add = with_option(integers, 4, 1)
    before = LatencyModel(guide).prices[AS_IT_IS]
    slow = float(LatencyModel(guide).predict([with_add])[0][0]) + 0.2
    known = [Timing(integers, float(LatencyModel(guide).predict([integers])[0][0]), 1e-3)]
    after = LatencyModel(guide, [*known, Timing(with_add, slow, 1e-3)]).prices[AS_IT_IS]
    rise = [after.options[slot][1] - before.options[slot][1] for slot in (0, 4)]
    assert rise[1] > 0.05
    assert rise[0] < 0.1 * rise[1]


def test_a_profile_that_knows_nothing_still_leaves_something_to_learn() -> None:
    rng = np.random.default_rng(0)
    guide = replace(chain(8, n_ties=2), kernel_ratios={})
    assert LatencyModel(guide).predict([uniform(guide, FLOAT)])[0] == pytest.approx([1.0])
    law = LatencyLaw.drawn(guide, rng)
    model = LatencyModel(guide, measured(law, draw_stitches(guide, 30, rng)))
    assert np.median(relative_errors(model, law, draw_stitches(guide, 100, rng))) <= 0.05


def test_a_layer_that_the_profile_misses_is_learnt_as_well() -> None:
    rng = np.random.default_rng(0)
    guide = chain(8, n_ties=8)
    known = {name: kernels for name, kernels in guide.kernel_ratios.items() if name != "layer03"}
    law = LatencyLaw.drawn(guide, rng)
    model = LatencyModel(replace(guide, kernel_ratios=known), measured(law, draw_stitches(guide, 80, rng)))
    base = uniform(guide, FLOAT)
    saved = -np.diff(model.predict([base, with_option(base, 3, INT8)])[0])[0]
    assert saved == pytest.approx(-np.diff(law([base, with_option(base, 3, INT8)]))[0], abs=0.02)


def test_prices_add_up_to_what_is_foretold() -> None:
    rng = np.random.default_rng(0)
    rewrites = (AS_IT_IS, Rewrites(equalize=True))
    guide = chain(6, rewrites=rewrites, group=True)
    law = LatencyLaw.drawn(guide, rng)
    model = LatencyModel(guide, measured(law, draw_stitches(guide, 40, rng), noise=0.01))
    costs = [np.zeros(len(slot.options)) for slot in guide.usual]
    for stitch in draw_stitches(guide, 30, rng):
        allocator = Allocator(guide, stitch.rewrites, costs, model.prices[stitch.rewrites], bundle=True)
        assert allocator.latency_of(stitch) == pytest.approx(float(model.predict([stitch])[0][0]), rel=1e-6)


def test_no_part_has_a_negative_price_and_nothing_takes_no_time() -> None:
    guide = chain(4)
    absurd = [Timing(stitch, 1e-3, 1e-3) for stitch in draw_stitches(guide, 10, np.random.default_rng(0))]
    model = LatencyModel(guide, absurd)
    prices = model.prices[AS_IT_IS]
    assert all((one >= 0.0).all() for one in (*prices.options, prices.borders))
    assert (model.predict([uniform(guide, INT8)])[0] > 0.0).all()


def test_the_same_timings_in_any_order_give_the_same_model() -> None:
    rng = np.random.default_rng(0)
    guide = chain(6)
    law = LatencyLaw.drawn(guide, rng)
    timings = measured(law, draw_stitches(guide, 12, rng), noise=0.02)
    unseen = draw_stitches(guide, 20, rng)
    mean, sd = LatencyModel(guide, timings).predict(unseen)
    again, sd_again = LatencyModel(guide, timings).predict(unseen)
    backwards, sd_backwards = LatencyModel(guide, timings[::-1]).predict(unseen)
    assert mean.tolist() == again.tolist()
    assert sd.tolist() == sd_again.tolist()
    assert backwards == pytest.approx(mean)
    assert sd_backwards == pytest.approx(sd)


def test_a_timing_with_less_noise_counts_for_more() -> None:
    guide = chain(4)
    stitch = uniform(guide, INT8)
    prior = LatencyModel(guide).predict([stitch])[0][0]
    sure, unsure = (
        LatencyModel(guide, [Timing(stitch, 2.0 * prior, error)]).predict([stitch])[0][0]
        for error in (0.01, 0.5)
    )
    assert prior < unsure < sure <= 2.0 * prior


def test_a_guide_without_borders_or_with_one_slot_is_no_special_case() -> None:
    guide = chain(1)
    mean, sd = LatencyModel(guide, [Timing(uniform(guide, INT8), 0.4, 0.01)]).predict([uniform(guide, INT8)])
    assert mean == pytest.approx([0.4], abs=0.02)
    assert np.isfinite(sd).all()
    assert LatencyModel(guide).predict([])[0].shape == (0,)


def test_a_narrower_model_is_priced_by_its_own_profile() -> None:
    narrow = Rewrites(widths=(("layer00", 8),))
    guide = chain(4, rewrites=(AS_IT_IS, narrow))
    half = {
        name: {kernel: share / 2 for kernel, share in kernels.items()}
        for name, kernels in guide.kernel_ratios.items()
    }
    model = LatencyModel(replace(guide, narrowed_ratios={narrow: half}, borders=()))
    options = guide.float_options
    (whole, less), _ = model.predict([Stitch(AS_IT_IS, options), Stitch(narrow, options)])
    taken = sum(kernels["fp32"] for kernels in guide.kernel_ratios.values())
    assert whole - less == pytest.approx(taken / 2)
    for mine, first in zip(model.prices[narrow].options, model.prices[AS_IT_IS].options, strict=True):
        assert mine == pytest.approx(first / 2)


def test_the_rest_is_the_float_models_also_where_no_layer_may_be_float() -> None:
    """Eight tenths of its time are layers; all of them in int8 take three tenths of that, and the rest."""
    options = tuple(choice_option(Choice.of(name)) for name in ("int8", "int8_dynamic"))
    slots = tuple(Slot(f"layer{at}", "Conv", options) for at in range(4))
    profile = {slot.name: {"fp32": 0.2, "int8/channel": 0.06, "int8_dynamic/channel": 0.1} for slot in slots}
    guide = Guide({AS_IT_IS: slots}, (), profile)
    foretold, _ = LatencyModel(guide, []).predict([Stitch(AS_IT_IS, (0,) * 4)])
    assert foretold[0] == pytest.approx(4 * 0.06 + 0.2)
