import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.evaluation.statistics import (
    Estimate,
    Values,
    Z,
    bootstrap_block_length,
    count_for,
    mean_drop_estimate,
    median_estimate,
    quantile_over_median,
    student_t,
    systematic_half_width,
)


def block_log_times(generator: np.random.Generator, n: int) -> Values:
    """A machine's slowness over n blocks: drift that remembers itself, jitter, and now and then a hiccup."""
    drift, state = np.empty(n), 0.0
    for index in range(n):
        state = 0.9 * state + generator.normal(0.0, 0.02)
        drift[index] = state
    hiccups = (generator.random(n) < 0.03) * generator.exponential(0.3, n)
    return np.asarray(drift + generator.normal(0.0, 0.005, n) + hiccups)


def aa_log_ratios(generator: np.random.Generator, n_rounds: int) -> Values:
    """Log-ratios of a model timed against itself in rounds of ABBA or BAAB."""
    blocks = block_log_times(generator, 4 * n_rounds).reshape(n_rounds, 4)
    sign = np.where(generator.random(n_rounds) < 0.5, 1.0, -1.0)
    pairs = np.stack([blocks[:, 0] - blocks[:, 1], blocks[:, 3] - blocks[:, 2]], axis=1)
    return np.asarray((pairs * sign[:, None]).reshape(-1))


def slow_standard_error(values: Values, *, seed: int, n_resamples: int) -> float:
    """The same ring of blocks, one value at a time."""
    n, length = len(values), bootstrap_block_length(len(values))
    starts = np.random.default_rng(seed).integers(0, n, size=(n_resamples, -(-n // length)))
    medians = []
    for row in starts:
        resample: list[float] = []
        for start in row:
            resample += [values[(start + offset) % n] for offset in range(length)]
        medians.append(float(np.median(resample[:n])))
    return float(np.std(medians))


@pytest.mark.parametrize("n_rounds", [3, 15])
def test_of_a_hundred_aa_intervals_at_least_ninety_contain_no_difference(n_rounds: int) -> None:
    generator = np.random.default_rng(7)
    estimates = [median_estimate(aa_log_ratios(generator, n_rounds), seed=k) for k in range(100)]
    assert sum(e.low <= 0.0 <= e.high for e in estimates) >= 90


def test_stopping_where_the_pilot_says_keeps_the_coverage() -> None:
    generator = np.random.default_rng(8)
    hits, counts = 0, []
    for seed in range(100):
        series = aa_log_ratios(generator, 15)
        n = min(len(series), max(6, count_for(series[:6], 0.02)))
        estimate = median_estimate(series[:n], seed=seed)
        hits += estimate.low <= 0.0 <= estimate.high
        counts.append(n)
    assert hits >= 90
    assert min(counts) < max(counts)


def test_a_real_difference_is_seen() -> None:
    series = aa_log_ratios(np.random.default_rng(9), 15) + math.log(1.1)
    estimate = median_estimate(series, seed=0).exp()
    assert 1.0 < estimate.low < 1.1 < estimate.high < 1.2


@pytest.mark.parametrize("n", [4, 6, 31])
def test_the_bootstrap_agrees_with_resampling_one_value_at_a_time(n: int) -> None:
    values = np.random.default_rng(1).normal(size=n)
    estimate = median_estimate(values, seed=5, n_resamples=50)
    error = slow_standard_error(values, seed=5, n_resamples=50)
    degrees = n // bootstrap_block_length(n) - 1
    assert estimate.value == np.median(values)
    assert estimate.half_width == pytest.approx(student_t(degrees) * error)


def test_the_same_times_and_seed_give_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=20)
    assert median_estimate(values, seed=3) == median_estimate(values, seed=3)
    assert median_estimate(values, seed=3) != median_estimate(values, seed=4)


def test_widening_adds_in_quadrature_and_never_moves_the_value() -> None:
    wider = Estimate(0.1, 0.07, 0.14).widened(0.03)
    assert wider.value == 0.1
    assert wider.low == pytest.approx(0.1 - math.hypot(0.03, 0.03))
    assert wider.high == pytest.approx(0.1 + 0.05)
    assert Estimate(0.1, 0.07, 0.14).widened(0.0).high == pytest.approx(0.14)


def test_a_noisier_pilot_asks_for_more_and_a_wider_goal_for_less() -> None:
    pilot = np.array([0.01, -0.02, 0.03, -0.01, 0.0, 0.02])
    assert count_for(3 * pilot, 0.02) == pytest.approx(9 * count_for(pilot, 0.02), rel=0.1)
    assert count_for(pilot, 0.04) < count_for(pilot, 0.02)


def test_the_pilots_value_does_not_decide_how_long_to_measure() -> None:
    pilot = np.array([0.01, -0.02, 0.03, -0.01, 0.0, 0.02])
    assert count_for(pilot + 0.5, 0.02) == count_for(pilot, 0.02)


def test_sessions_that_differ_for_life_raise_the_noise_floor_and_quiet_repeats_hardly_do() -> None:
    def repeat(offset: float) -> Estimate:
        return Estimate(offset, offset - 0.01, offset + 0.01, standard_error=0.01 / Z)

    apart = systematic_half_width([repeat(x) for x in (0.05, -0.04, 0.06, -0.05, 0.03)])
    alike = systematic_half_width([repeat(x) for x in (0.001, -0.002, 0.0, 0.002, -0.001)])
    assert apart > 0.09
    assert alike == pytest.approx(student_t(5) * 0.01 / Z / math.sqrt(5))


def test_widened_by_the_floor_intervals_cover_offsets_that_no_block_averages_out() -> None:
    generator = np.random.default_rng(11)

    def repeat(seed: int) -> Estimate:
        offset = generator.normal(0.0, 0.03)  # memory layout: one draw a session
        return median_estimate(aa_log_ratios(generator, 8) + offset, seed=seed)

    hits = 0
    for seed in range(100):
        floor = systematic_half_width([repeat(seed) for _ in range(5)])
        estimate = repeat(seed).widened(floor)
        hits += estimate.low <= 0.0 <= estimate.high
    assert hits >= 90


def bonett_price(n: int, lost: int, won: int) -> tuple[float, float]:
    """Adjusted Wald interval for a difference of paired proportions, as published."""
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    difference = p_lost - p_won
    error = math.sqrt((p_lost + p_won - difference**2) / (n + 2))
    return difference - Z * error, difference + Z * error


@pytest.mark.parametrize(("n", "lost", "won"), [(100, 3, 1), (1000, 0, 0), (50, 0, 7), (400, 20, 20)])
def test_right_and_wrong_examples_get_the_interval_of_bonett_and_price(n: int, lost: int, won: int) -> None:
    differences = np.array([1.0] * lost + [-1.0] * won + [0.0] * (n - lost - won))
    estimate = mean_drop_estimate(differences, span=1.0)
    assert estimate is not None
    assert estimate.value == pytest.approx((lost - won) / n)
    assert (estimate.low, estimate.high) == pytest.approx(bonett_price(n, lost, won))


def test_no_difference_among_n_examples_is_not_certainty() -> None:
    few, many = (mean_drop_estimate(np.zeros(n), span=1.0) for n in (100, 1000))
    assert few is not None
    assert many is not None
    assert 2 / 100 < few.high < 4 / 100
    assert 2 / 1000 < many.high < 4 / 1000
    assert few.low == -few.high


def test_without_bounds_equal_outputs_say_nothing_of_the_interval() -> None:
    assert mean_drop_estimate(np.zeros(10), span=None) is None


def test_intervals_of_rare_disagreements_keep_their_coverage() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        draws = generator.random(300)
        differences = np.where(draws < 0.015, 1.0, np.where(draws < 0.02, -1.0, 0.0))
        estimate = mean_drop_estimate(differences, span=1.0)
        assert estimate is not None
        hits += estimate.low <= 0.01 <= estimate.high
    assert hits >= 0.93 * 400


def test_smooth_differences_get_the_ordinary_interval() -> None:
    differences = np.random.default_rng(4).normal(0.002, 0.001, 2000)
    estimate = mean_drop_estimate(differences, span=2.0)
    assert estimate is not None
    assert estimate.half_width == pytest.approx(Z * differences.std() / math.sqrt(2000), rel=0.05)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1, 1, allow_subnormal=False)))
def test_the_interval_contains_the_drop_and_mirrors_with_it(differences: Values) -> None:
    estimate, mirrored = (mean_drop_estimate(sign * differences, span=1.0) for sign in (1, -1))
    assert estimate is not None
    assert mirrored is not None
    assert -1.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.high > estimate.low
    assert (mirrored.low, mirrored.high) == pytest.approx((-estimate.high, -estimate.low))


def test_a_quantile_is_told_relative_to_the_median() -> None:
    assert quantile_over_median(np.arange(1.0, 12.0), 0.9) == pytest.approx(10 / 6)
