from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.evaluation.racing import MISS, Race, RacingSettings, confidence_interval
from autoq.evaluation.statistics import Values


def population(n: int, mean: float, *, noise: float, seed: int) -> Values:
    """Losses and gains of an example each, as flips of a classifier give, whose mean is exact."""
    lost = round(n * (noise + mean))
    values = np.zeros(n)
    values[:lost] = 1.0
    values[lost : lost + round(n * noise)] = -1.0
    return np.random.default_rng(seed).permutation(values)


def slow_race(draws: Values, n: int, allowed: float, alpha: float) -> tuple[int | None, float]:
    """The rule word by word; returns the draw at which the claim is lost, and the last capital."""
    capital = 0.0
    for i in range(1, len(draws) + 1):
        past = draws[: i - 1]
        m = (n * allowed - past.sum()) / (n - i + 1)
        if m < -1.0:
            return i, math.inf
        bet = 0.0
        if len(past):
            mean, variance = past.mean(), past.var()
            if (scale := variance + (mean - allowed) ** 2) > 0:
                bet = min(max((mean - allowed) / scale, 0.0), 0.5 / (1 + abs(m)))
        capital += math.log1p(bet * (draws[i - 1] - m))
        if capital > math.log(1 / alpha):
            return i, capital
    return None, capital


def slow_survivors(draws: Values, n: int, means: Values, alpha: float) -> list[float]:
    """Means whose two-sided game never ruled them out."""
    kept = []
    for claimed in means:
        capital, worst = 0.0, -math.inf
        possible = abs(n * claimed - draws.sum()) <= n - len(draws) + 1e-9
        for i in range(1, len(draws) + 1):
            past = draws[: i - 1]
            m = (n * claimed - past.sum()) / (n - i + 1)
            possible &= abs(m) <= 1.0 + 1e-9
            bet = 0.0
            if len(past) and (scale := past.var() + (past.mean() - claimed) ** 2) > 0:
                limit = 0.5 / (1 + abs(m))
                bet = min(max((past.mean() - claimed) / scale, -limit), limit)
            capital += math.log1p(bet * (draws[i - 1] - m))
            worst = max(worst, capital)
        if possible and worst <= math.log(1 / alpha):
            kept.append(float(claimed))
    return kept


DRAWS = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.25, 1.0]), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(DRAWS, st.integers(0, 40), st.sampled_from([0.0, 0.01, 0.2]), st.lists(st.integers(1, 20), min_size=1))
def test_chunks_of_any_size_give_what_the_rule_says_word_by_word(
    draws: list[float], n_left: int, allowed: float, sizes: list[int]
) -> None:
    array, n = np.array(draws), len(draws) + n_left
    race, start, lost_in = Race(n, allowed), 0, None
    for index in range(len(draws)):
        size = sizes[index % len(sizes)]
        if race.feed(array[start : start + size]) and lost_in is None:
            lost_in = (start, start + size)
        start += size
    lost_at, capital = slow_race(array, n, allowed, 0.01)
    assert race.is_lost == (lost_at is not None)
    if lost_at is not None and lost_in is not None:
        assert lost_in[0] < lost_at <= lost_in[1]
    assert race.log_capital == pytest.approx(capital, abs=1e-9)


def test_a_candidate_that_always_loses_is_stopped_soon_and_one_that_loses_nothing_never() -> None:
    race = Race(5000, 0.01)
    assert race.feed(np.ones(20))
    assert not Race(5000, 0.01).feed(np.zeros(5000))


def test_nothing_left_that_could_save_a_claim_loses_it_without_a_bet() -> None:
    race = Race(10, -0.9)
    assert race.feed(np.array([1.0, 1.0]))  # the other eight would have to be below -1
    assert race.log_capital == math.inf


def test_a_lost_race_stays_lost() -> None:
    race = Race(5000, 0.01)
    race.feed(np.ones(20))
    assert race.feed(-np.ones(20))


def test_at_the_boundary_no_more_are_stopped_than_alpha_and_chance_explain() -> None:
    n, alpha, allowed, n_runs = 1000, 0.05, 0.02, 400
    values = population(n, allowed, noise=0.05, seed=0)
    generator = np.random.default_rng(1)
    stopped = sum(Race(n, allowed, alpha=alpha).feed(generator.permutation(values)) for _ in range(n_runs))
    assert stopped / n_runs <= alpha + 2 * math.sqrt(alpha * (1 - alpha) / n_runs)


@pytest.mark.parametrize(("drop", "most"), [(0.05, 0.2), (0.1, 0.06)])
def test_truly_bad_candidates_use_a_small_share_of_the_split(drop: float, most: float) -> None:
    n, used = 5000, []
    for seed in range(20):
        draws, race, start = population(n, drop, noise=0.02, seed=seed), Race(n, 0.01), 0
        while start < n and not race.feed(draws[start : start + 64]):
            start += 64
        used.append(min(start + 64, n) / n)
    assert np.mean(used) < most


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.25, 1.0]), min_size=1, max_size=25), st.integers(0, 40))
def test_the_interval_encloses_what_the_slow_game_leaves(draws: list[float], n_left: int) -> None:
    array, n = np.array(draws), len(draws) + n_left
    low, high = confidence_interval(array, n)
    kept = slow_survivors(array, n, np.linspace(-1, 1, 41), MISS)
    assert all(low - 1e-9 <= mean <= high + 1e-9 for mean in kept)
    if kept:  # and not much more: a step of either grid
        step = 2 / 40 + 2 / 256
        assert min(kept) - low <= step
        assert high - max(kept) <= step


def test_intervals_hold_at_all_times_at_once_as_often_as_they_say() -> None:
    values, generator, n_runs = population(300, 0.1, noise=0.1, seed=3), np.random.default_rng(4), 60
    missed = 0
    for _ in range(n_runs):
        draws = generator.permutation(values)
        intervals = [confidence_interval(draws[:k], 300) for k in (10, 40, 100, 200)]
        missed += not all(low <= values.mean() <= high for low, high in intervals)
    assert missed / n_runs <= MISS + 2 * math.sqrt(MISS * (1 - MISS) / n_runs)


def test_intervals_of_one_sequence_get_narrower_down_to_the_mean_itself() -> None:
    draws = population(2000, 0.05, noise=0.03, seed=5)
    intervals = [confidence_interval(draws[:k], 2000) for k in (1, 64, 256, 1000, 2000)]
    widths = [high - low for low, high in intervals]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < 0.2
    assert intervals[-1] == pytest.approx((draws.mean(), draws.mean()), abs=1e-9)


def test_an_alpha_that_leaves_nothing_to_the_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is 0\.05"):
        RacingSettings(alpha=0.05)
