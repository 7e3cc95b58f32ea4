"""The timing protocol: how fast a candidate is beside its baseline, and how sure that is.

Two sessions in one process take turns in blocks, in the order ABBA or BAAB drawn anew for every four:
whatever slows the machine down slows both, and a drift within the four cancels. The statistic is the
median of the logarithms of candidate over baseline, block by adjacent block. A pilot of a few rounds
decides how many there will be; nobody looks again before the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from autoq.core.data import Feed
from autoq.core.measurements import Baseline, Latency
from autoq.evaluation.clock import collector_paused
from autoq.evaluation.ports import Session
from autoq.evaluation.statistics import (
    Estimate,
    Values,
    count_for,
    median_estimate,
    quantile_over_median,
    systematic_half_width,
)

# Long enough for the timer, short enough for many blocks: beside other work 20 ms gave intervals a third as
# wide as 50 ms in the same time, and smaller errors (`experiments/search/run.py BENCH --only blocks`).
BLOCK_S = 0.02
PILOT_ROUNDS = 3  # of four blocks; also the fewest there are, however slow the model
_AIM = 1.1  # blocks are aimed at so much more than asked: a machine that warms up gets faster


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a timing may take and how narrow its interval should get."""

    seconds: float
    half_width: float | None  # of the 95 % interval, as a fraction; None spends all the time
    block_s: float = BLOCK_S


@dataclass(frozen=True, slots=True)
class TimingSettings:
    """Effort of every kind of timing."""

    search_s: float = 3.0
    search_half_width: float = 0.02
    final_s: float = 30.0
    final_half_width: float = 0.01
    block_s: float = BLOCK_S
    n_controls: int = 5  # repeats of the A/A control
    fixed_effort: bool = False  # spend all the time, whatever the pilot says: for comparing costs
    probe_s: float = 1.0
    probe_half_width: float = 0.02

    @property
    def search(self) -> Effort:
        """Effort of a trial."""
        return Effort(self.search_s, None if self.fixed_effort else self.search_half_width, self.block_s)

    @property
    def probe(self) -> Effort:
        """Effort of a measurement that only informs the search."""
        return Effort(self.probe_s, self.probe_half_width, self.block_s)

    @property
    def final(self) -> Effort:
        """Effort of the final round."""
        return Effort(self.final_s, None if self.fixed_effort else self.final_half_width, self.block_s)


@dataclass(frozen=True, eq=False)
class BlockTimes:
    """Seconds of one run, averaged over each block; row i of both was measured side by side."""

    candidate_s: Values  # (n,)
    baseline_s: Values  # (n,)

    @property
    def log_ratios(self) -> Values:
        """Logarithm of candidate over baseline, in the order measured."""
        return np.asarray(np.log(self.candidate_s / self.baseline_s), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class LatencyRatio:
    """Candidate time over baseline time."""

    log_ratio: Estimate
    times: BlockTimes

    def as_latency(self, baseline: Baseline) -> Latency:
        """Turn the ratio into milliseconds by the baseline's calibrated median.

        The interval is that of the ratio, widened by what the A/A control showed; the calibration's own
        error is common to all candidates and stands with the baseline. p90 is that of blocks: where a
        block is many runs, it shows the machine's slow moments, not single slow runs.
        """
        ratio = self.log_ratio.widened(baseline.noise_floor).exp()
        latency_ms = baseline.latency_ms * ratio.value
        return Latency(
            latency_ms=latency_ms,
            latency_ms_ci=(baseline.latency_ms * ratio.low, baseline.latency_ms * ratio.high),
            p90_ms=latency_ms * quantile_over_median(self.times.candidate_s, 0.9),
            speedup=1 / ratio.value,
            speedup_ci=(1 / ratio.high, 1 / ratio.low),
            n_blocks=len(self.times.candidate_s),
        )


@dataclass(frozen=True, slots=True)
class Control:
    """What timing the baseline against itself says."""

    latency_ms: Estimate  # of the baseline
    p90_ms: float
    noise_floor: float  # half-width, as a fraction, of what two sessions of one model differ by
    ratios: tuple[Estimate, ...]  # of every repeat; 1 but for noise


def measure_latency(
    candidate: Session, baseline: Session, feeds: Sequence[Feed], effort: Effort, *, seed: int
) -> LatencyRatio:
    """Time a candidate against its baseline. The caller holds the machine's clock.

    Args:
        candidate: Session to be judged.
        baseline: Session to compare with, in the same process.
        feeds: Inputs of real shape, taken in turn; never empty.
        effort: Time and width to aim at.
        seed: Of the order of blocks and of the bootstrap.
    """
    with collector_paused():
        times = _take_turns(candidate, baseline, feeds, effort, seed)
    return LatencyRatio(median_estimate(times.log_ratios, seed=seed), times)


def measure_control(
    open_session: Callable[[], Session], feeds: Sequence[Feed], settings: TimingSettings, *, seed: int
) -> Control:
    """Time a model against itself, through the very protocol that candidates go through.

    Every repeat opens two sessions of its own, since what the floor has to show is what a session keeps
    for life, such as the luck of its memory layout: more blocks do not average it out.
    """
    parts = []
    for repeat in range(settings.n_controls):
        first, second = open_session(), open_session()
        try:
            parts.append(measure_latency(first, second, feeds, settings.search, seed=seed + repeat))
        finally:
            first.close()
            second.close()
    return control_of(parts, seed=seed)


def control_of(parts: Sequence[LatencyRatio], *, seed: int) -> Control:
    """Derive the control from its repeats."""
    blocks = [np.column_stack((part.times.candidate_s, part.times.baseline_s)) for part in parts]
    run_s: Values = np.concatenate(blocks).reshape(-1)  # in the order measured, but for swaps within a pair
    latency = median_estimate(np.log(run_s * 1e3), seed=seed).exp()
    return Control(
        latency_ms=latency,
        p90_ms=latency.value * quantile_over_median(run_s, 0.9),
        noise_floor=systematic_half_width([part.log_ratio for part in parts]),
        ratios=tuple(part.log_ratio.exp() for part in parts),
    )


def rounds_needed(pilot: BlockTimes, round_s: float, left_s: float, half_width: float | None) -> int:
    """Rounds of four blocks to run after the pilot.

    Args:
        pilot: Blocks of the pilot, two rows a round.
        round_s: Seconds that a round takes.
        left_s: Seconds left.
        half_width: Half-width wanted, or None to spend all that is left.
    """
    affordable = max(0, math.floor(left_s / round_s))
    if half_width is None:
        return affordable
    wanted = math.ceil(count_for(pilot.log_ratios, half_width) / 2) - len(pilot.candidate_s) // 2
    return min(affordable, max(0, wanted))


class _Side:
    """A session with the number of runs that make a block of it, once warm."""

    def __init__(self, session: Session, feeds: Sequence[Feed], block_s: float) -> None:
        self._session, self._feeds = session, feeds
        self._n_runs = _step(feeds)
        self.spent_s = 0.0  # as the device counts, warm-up included
        self._calibrate(block_s)

    def run_s(self) -> float:
        """Run a block and return the seconds of one run."""
        took_s = self._session.time_block(self._n_runs, self._feeds)
        self.spent_s += took_s
        return took_s / self._n_runs

    def _calibrate(self, block_s: float) -> None:
        step = self._n_runs
        self.run_s()  # the first run allocates
        took_s = self.run_s() * self._n_runs
        while took_s < block_s:
            # Short blocks overestimate the time of a run: grow by at most tenfold, then look again.
            growth = min(10.0, _AIM * block_s / max(took_s, 1e-9))
            wanted = math.ceil(self._n_runs * growth / step) * step
            self._n_runs = max(self._n_runs + step, wanted)
            took_s = self.run_s() * self._n_runs


def _take_turns(
    candidate: Session, baseline: Session, feeds: Sequence[Feed], effort: Effort, seed: int
) -> BlockTimes:
    sides = [_Side(session, feeds, effort.block_s) for session in (candidate, baseline)]
    generator = np.random.default_rng(seed)
    warm_s = sum(side.spent_s for side in sides)
    rows = [row for _ in range(PILOT_ROUNDS) for row in _run_round(sides, generator)]
    spent_s = sum(side.spent_s for side in sides)
    n_more = rounds_needed(
        _block_times(rows),
        round_s=(spent_s - warm_s) / PILOT_ROUNDS,
        left_s=effort.seconds - spent_s,
        half_width=effort.half_width,
    )
    rows += [row for _ in range(n_more) for row in _run_round(sides, generator)]
    return _block_times(rows)


def _run_round(sides: Sequence[_Side], generator: np.random.Generator) -> list[list[float]]:
    """Run ABBA or BAAB; return two rows of (candidate, baseline), each of neighbours in time."""
    first = int(generator.integers(2))
    order = (first, 1 - first, 1 - first, first)
    run_s = [sides[side].run_s() for side in order]
    rows = []
    for at in (0, 2):
        row = [0.0, 0.0]
        row[order[at]], row[order[at + 1]] = run_s[at], run_s[at + 1]
        rows.append(row)
    return rows


def _block_times(rows: Sequence[Sequence[float]]) -> BlockTimes:
    table = np.array(rows, dtype=np.float64)
    return BlockTimes(table[:, 0], table[:, 1])


def _step(feeds: Sequence[Feed]) -> int:
    """Runs of which a block is a multiple: all feeds if their shapes differ, so that blocks compare."""
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    return 1 if all(a == b for a, b in pairwise(shapes)) else len(feeds)
