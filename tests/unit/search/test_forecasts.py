from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from small_guides import chain, draw_stitches

from autoq.core.choices import AS_IT_IS, Rewrites
from autoq.core.measurements import Measurement
from autoq.search.forecasts import Forecaster
from autoq.search.guide import Floats, Guide, LatencyProbe, Stitch
from autoq.testing.synthetic import synthetic_baseline, synthetic_measurement

BASELINE = synthetic_baseline()
GUIDE = chain(8)
COSTS: Mapping[Rewrites, Sequence[Floats]] = {
    AS_IT_IS: [np.array([0.0, 0.01, 0.02, 0.04, 0.005, 0.01, 0.03]) for _ in GUIDE.usual]
}


def stitch(*options: int) -> Stitch:
    return Stitch(AS_IT_IS, options)


def measured(of: Stitch, *, divergence: float | None, drop: float = 0.01, ratio: float = 0.5) -> Measurement:
    found = synthetic_measurement(GUIDE.candidate(of))
    return replace(
        found,
        divergence=divergence,
        accuracy=replace(found.accuracy, drop=drop, drop_ci=(drop - 0.005, drop + 0.005)),
        latency=replace(found.latency, latency_ms=ratio, latency_ms_ci=(0.99 * ratio, 1.01 * ratio)),
    )


def forecaster(*trials: tuple[Stitch, Measurement], guide: Guide = GUIDE) -> Forecaster:
    return Forecaster(guide, COSTS, BASELINE, trials)


def test_without_trials_the_divergence_is_the_sum_over_slots() -> None:
    one = stitch(0, 1, 2, 3, 4, 5, 6, 0)
    assert forecaster().divergence([one]) == pytest.approx([0.115])
    assert forecaster().divergence_sum([one]) == pytest.approx([0.115])


def test_a_trial_corrects_what_is_like_it_more_than_what_is_not() -> None:
    tried, near, far = stitch(*[1] * 8), stitch(*[1] * 7, 2), stitch(*[0] * 7, 3)
    plain = forecaster().divergence([tried, near, far])
    told = forecaster((tried, measured(tried, divergence=3 * 0.08))).divergence([tried, near, far])
    factors = told / plain
    assert 2.0 < factors[0] <= 3.0
    assert factors[0] > factors[1] > factors[2] > 1.0
    assert factors[1] > 1.7
    assert factors[2] < 1.25


def test_trials_that_agree_with_the_sum_change_nothing() -> None:
    tried, other = stitch(*[1] * 8), stitch(*[2] * 8)
    told = forecaster((tried, measured(tried, divergence=0.08)))
    assert told.divergence([other]) == pytest.approx([0.16])


@pytest.mark.parametrize("divergence", [None, 0.0])
def test_a_trial_without_a_divergence_corrects_none(divergence: float | None) -> None:
    tried = stitch(*[1] * 8)
    assert forecaster((tried, measured(tried, divergence=divergence))).divergence([tried]) == pytest.approx(
        [0.08]
    )


def test_the_float_model_is_no_reason_to_divide_by_zero() -> None:
    float_model = stitch(*[0] * 8)
    told = forecaster((float_model, measured(float_model, divergence=0.0, drop=0.0, ratio=1.0)))
    forecast = told([float_model, stitch(*[1] * 8)])
    assert forecast.drop[0] == 0.0
    assert forecast.latency[0] == pytest.approx(1.0, abs=0.02)
    for figures in (forecast.drop, forecast.drop_sd, forecast.latency, forecast.latency_sd, forecast.size):
        assert np.isfinite(figures).all()


def test_bytes_are_corrected_by_what_trials_measured() -> None:
    tried = [stitch(*[option] * 8) for option in (1, 2, 3)]
    trials = []
    for one in tried:
        found = measured(one, divergence=0.1)
        n_bytes = 1_700 + int(GUIDE.bytes_of([one], bundle=True)[0])
        trials.append((one, replace(found, size=replace(found.size, bundle_bytes=n_bytes))))
    other = stitch(0, 1, 2, 3, 0, 1, 2, 3)
    expected = 1_700 + GUIDE.bytes_of([other], bundle=True)[0]
    assert forecaster(*trials).bundle([other]) == pytest.approx([expected], rel=0.01)
    assert forecaster(*trials)([other]).bundle == pytest.approx([expected / BASELINE.size_bytes], rel=0.01)


def test_bytes_of_the_smallest_stay_above_nothing_where_large_trials_draw_a_steep_line() -> None:
    trials = []
    for rest, n_bytes in ((0, 32_000), (1, 20_000)):  # the sum alone falls from 32,000 to 26,640 of them
        one = stitch(*[rest] * 2, *[0] * 6)
        found = measured(one, divergence=None)
        trials.append(
            (one, replace(found, size=replace(found.size, bundle_bytes=n_bytes, size_bytes=n_bytes)))
        )
    smallest = stitch(*[3] * 8)
    foretold = forecaster(*trials)([smallest])
    assert foretold.bundle[0] > 0.0
    assert foretold.size[0] > 0.0


def test_timings_come_from_the_guide_and_from_the_trials() -> None:
    tried, other = stitch(*[1] * 8), stitch(*[4] * 8)
    probes = (LatencyProbe(GUIDE.candidate(other), 0.7, 0.01),)
    told = forecaster(
        (tried, measured(tried, divergence=0.1, ratio=0.2)), guide=replace(GUIDE, latency_probes=probes)
    )
    assert told.latency.predict([tried, other])[0] == pytest.approx([0.2, 0.7], rel=0.05)


def test_doubt_of_a_drop_is_at_least_the_noise_of_the_metric() -> None:
    tried = [stitch(*[option] * 8) for option in (0, 1, 2)]
    trials = [(one, measured(one, divergence=0.1 * at, drop=0.01 * at)) for at, one in enumerate(tried)]
    forecast = forecaster(*trials)(draw_stitches(GUIDE, 10, np.random.default_rng(0)))
    assert (forecast.drop_sd >= 0.01 / (2 * 1.96) * 0.99).all()


def test_the_same_trials_foretell_the_same() -> None:
    rng = np.random.default_rng(0)
    trials = [(one, measured(one, divergence=0.1)) for one in draw_stitches(GUIDE, 6, rng)]
    unseen = draw_stitches(GUIDE, 10, rng)
    first, second = forecaster(*trials)(unseen), forecaster(*trials)(unseen)
    assert first.drop.tolist() == second.drop.tolist()
    assert first.latency.tolist() == second.latency.tolist()


def test_nothing_asked_is_nothing_foretold() -> None:
    assert len(forecaster()([])) == 0
