import gc
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest

from autoq.core.data import Array, Feed
from autoq.core.measurements import Baseline
from autoq.evaluation.statistics import Estimate
from autoq.evaluation.timing import (
    PILOT_ROUNDS,
    BlockTimes,
    Effort,
    LatencyRatio,
    TimingSettings,
    control_of,
    measure_control,
    measure_latency,
    rounds_needed,
)

FEED: Feed = {"x": np.zeros((1, 4), np.float32)}


class Machine:
    """A device whose clock is arithmetic: sessions on it share its slow moments."""

    def __init__(self, *, jitter: float = 0.01, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.jitter = jitter
        self.drift = 0.0
        self.blocks: list[tuple[str, int, float]] = []
        self.was_collecting = False

    def block_s(self, name: str, n_runs: int, run_s: float) -> float:
        self.drift = 0.9 * self.drift + float(self.generator.normal(0.0, self.jitter))
        noise = self.drift + float(self.generator.normal(0.0, self.jitter / 2))
        self.blocks.append((name, n_runs, n_runs * run_s))
        self.was_collecting |= gc.isenabled()
        return n_runs * run_s * float(np.exp(noise))


class FakeSession:
    """A session that takes as long as it is told to."""

    def __init__(self, machine: Machine, name: str, run_s: float) -> None:
        self.machine, self.name, self.seconds = machine, name, run_s
        self.is_closed = False

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("timing runs blocks")

    def time_block(self, n_runs: int, feeds: Sequence[Feed]) -> float:
        return self.machine.block_s(self.name, n_runs, self.seconds)

    def close(self) -> None:
        self.is_closed = True


def timed_blocks(machine: Machine, ratio: LatencyRatio) -> list[tuple[str, int, float]]:
    """The blocks after the warm-up of both sessions."""
    return machine.blocks[-2 * len(ratio.times.candidate_s) :]


def measure(machine: Machine, candidate_s: float, baseline_s: float, effort: Effort) -> LatencyRatio:
    candidate = FakeSession(machine, "A", candidate_s)
    return measure_latency(candidate, FakeSession(machine, "B", baseline_s), [FEED], effort, seed=1)


def test_the_ratio_of_two_models_is_found_through_a_drifting_machine() -> None:
    ratio = measure(Machine(), 0.002, 0.005, Effort(3.0, None))
    found = ratio.log_ratio.exp()
    assert found.low < 0.4 < found.high
    assert found.value == pytest.approx(0.4, rel=0.03)


def test_blocks_come_in_rounds_of_abba_or_baab_and_both_occur() -> None:
    machine = Machine()
    ratio = measure(machine, 0.004, 0.005, Effort(6.0, None))
    names = [name for name, _, _ in timed_blocks(machine, ratio)]
    rounds = {"".join(names[at : at + 4]) for at in range(0, len(names), 4)}
    assert rounds == {"ABBA", "BAAB"}


def test_every_block_of_every_model_lasts_as_long_as_asked_and_not_much_longer() -> None:
    machine = Machine(jitter=0.0)
    ratio = measure(machine, 0.0003, 0.011, Effort(3.0, None, block_s=0.05))
    assert all(0.05 <= seconds <= 0.07 for _, _, seconds in timed_blocks(machine, ratio))


def test_a_slow_model_runs_once_a_block_and_still_gets_a_pilot() -> None:
    machine = Machine()
    ratio = measure(machine, 0.2, 0.8, Effort(1.0, 0.02))
    assert {n_runs for _, n_runs, _ in timed_blocks(machine, ratio)} == {1}
    assert len(ratio.times.candidate_s) == 2 * PILOT_ROUNDS


def test_fixed_effort_spends_the_time_and_a_goal_ends_early() -> None:
    machine = Machine(jitter=0.0001)
    long = measure(machine, 0.002, 0.005, Effort(5.0, None))
    spent = sum(seconds for _, _, seconds in machine.blocks)
    short = measure(Machine(jitter=0.0001), 0.002, 0.005, Effort(5.0, 0.02))
    assert 4.6 < spent <= 5.05
    assert len(short.times.candidate_s) == 2 * PILOT_ROUNDS < len(long.times.candidate_s)


def test_the_goal_decides_by_the_pilot_alone() -> None:
    quiet = BlockTimes(np.array([1.0, 1.01, 0.99, 1.0, 1.005, 0.995]), np.ones(6))
    loud = BlockTimes(np.array([1.0, 1.2, 0.8, 1.1, 0.9, 1.0]), np.ones(6))
    assert rounds_needed(quiet, round_s=0.2, left_s=10.0, half_width=0.02) == 0
    assert 0 < rounds_needed(quiet, round_s=0.2, left_s=10.0, half_width=0.005) < 50
    assert rounds_needed(loud, round_s=0.2, left_s=10.0, half_width=0.005) == 50
    assert rounds_needed(loud, round_s=0.2, left_s=-1.0, half_width=None) == 0


def test_feeds_of_different_shapes_are_timed_in_whole_rounds() -> None:
    machine = Machine()
    feeds: list[Feed] = [{"x": np.zeros((1, n), np.float32)} for n in (3, 5, 9)]
    sessions = [FakeSession(machine, name, 0.004) for name in "AB"]
    measure_latency(*sessions, feeds, Effort(1.0, None), seed=0)
    assert all(n_runs % 3 == 0 for _, n_runs, _ in machine.blocks)


def test_no_garbage_is_collected_while_the_clock_runs_and_again_afterwards() -> None:
    machine = Machine()
    assert gc.isenabled()
    measure(machine, 0.02, 0.03, Effort(0.5, 0.02))
    assert not machine.was_collecting
    assert gc.isenabled()


def test_rows_pair_blocks_that_were_neighbours() -> None:
    machine = Machine(jitter=0.0)
    candidate = FakeSession(machine, "A", 0.06)
    slowing = FakeSession(machine, "B", 0.06)
    original = machine.block_s

    def drifting(name: str, n_runs: int, run_s: float) -> float:
        return original(name, n_runs, run_s) * 1.1 ** len(machine.blocks)

    machine.block_s = drifting  # type: ignore[method-assign]
    ratio = measure_latency(candidate, slowing, [FEED], Effort(0.1, 0.02), seed=1)
    # Neighbours differ by 10 %, once in each direction a round: the median of both is no difference.
    assert np.abs(ratio.times.log_ratios) == pytest.approx(np.log(1.1))
    assert ratio.log_ratio.value == pytest.approx(0.0)


BASELINE = Baseline(0.9, 10.0, (9.9, 10.1), 10.5, 1000, noise_floor=0.0)


def test_milliseconds_are_the_ratio_times_the_baselines_calibrated_median() -> None:
    times = BlockTimes(np.array([1.0, 1.0, 1.0, 1.0, 2.0]), np.full(5, 2.0))
    ratio = LatencyRatio(Estimate(np.log(0.5), np.log(0.4), np.log(0.6)), times)
    latency = ratio.as_latency(BASELINE)
    assert latency.latency_ms == pytest.approx(5.0)
    assert latency.latency_ms_ci == pytest.approx((4.0, 6.0))
    assert latency.speedup == pytest.approx(2.0)
    assert latency.speedup_ci == pytest.approx((1 / 0.6, 1 / 0.4))
    assert latency.p90_ms == pytest.approx(5.0 * 1.6)
    assert latency.n_blocks == 5


def test_the_noise_floor_widens_what_is_told() -> None:
    times = BlockTimes(np.ones(4), np.ones(4))
    ratio = LatencyRatio(Estimate(0.0, -0.01, 0.01), times)
    noisy = Baseline(0.9, 10.0, (9.9, 10.1), 10.5, 1000, noise_floor=0.03)
    low, high = ratio.as_latency(noisy).speedup_ci
    assert np.log(high) == pytest.approx(np.hypot(0.01, 0.03))
    assert np.log(low) == pytest.approx(-np.hypot(0.01, 0.03))


def test_the_control_opens_fresh_sessions_for_every_repeat_and_closes_them() -> None:
    machine, opened = Machine(), []

    def open_session() -> FakeSession:
        opened.append(FakeSession(machine, f"S{len(opened)}", 0.004))
        return opened[-1]

    settings = TimingSettings(search_s=1.0, n_controls=3)
    control = measure_control(open_session, [FEED], settings, seed=0)
    assert len(opened) == 6
    assert all(session.is_closed for session in opened)
    assert len(control.ratios) == 3
    assert control.latency_ms.low < 4.0 < control.latency_ms.high
    assert control.p90_ms > control.latency_ms.value
    assert 0.0 < control.noise_floor < 0.1


def test_twins_that_differ_for_life_show_in_the_noise_floor() -> None:
    times = BlockTimes(np.ones(6), np.ones(6))
    floors = []
    for spread in (0.0, 0.05):
        offsets = spread * np.array([1.0, -1.0, 0.5, -0.5, 1.0])
        parts = [LatencyRatio(Estimate(m, m - 0.005, m + 0.005), times) for m in offsets]
        floors.append(control_of(parts, seed=0).noise_floor)
    assert floors[0] < 0.01 < 0.05 < floors[1]


def test_the_seed_fixes_the_order_of_blocks() -> None:
    orders = []
    for seed in (1, 1, 2, 3):
        machine = Machine()
        sessions = [FakeSession(machine, name, 0.06) for name in "AB"]
        ratio = measure_latency(*sessions, [FEED], Effort(8.0, None), seed=seed)
        orders.append([name for name, _, _ in timed_blocks(machine, ratio)])
    assert orders[0] == orders[1]
    assert any(a != b for a, b in pairwise(orders[1:]))


def test_settings_give_each_kind_of_timing_its_effort() -> None:
    assert TimingSettings().search == Effort(3.0, 0.02, 0.02)
    assert TimingSettings().final == Effort(30.0, 0.01, 0.02)
    assert TimingSettings(fixed_effort=True).final == Effort(30.0, None, 0.02)
