import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import tiny_bench
from tiny_bench import BROKEN, build_workbench, candidate

from autoq.core.errors import TrialCrashed, TrialError, TrialTimeout, UserError
from autoq.core.measurements import Baseline
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.timing import TimingSettings
from autoq.evaluation.workbench import Workbench
from autoq.execution.runner import ChildTrialRunner, TrialLimits
from autoq.execution.worker import ChildProcess

LIMITS = TrialLimits(timeout_s=30.0, final_timeout_s=30.0, memory_mb=4096.0)

# A metric of the user's that dies, or hangs, on the second model it is shown after the float one.
DEADLY = """
import os, pathlib, time
import numpy as np

def mine(outputs, reference, labels):
    if not np.array_equal(outputs["scores"], reference["scores"]):
        if (marker := pathlib.Path(__file__).with_name("marker")).exists():
            marker.unlink()
            {deed}
    return (outputs["scores"].argmax(1) == labels) * 1.0
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ChildTrialRunner]]:
    """Start runners that are closed in the end."""
    started: list[ChildTrialRunner] = []

    def start(
        factory: Callable[[], Workbench] = build_workbench,
        limits: TrialLimits = LIMITS,
        *,
        max_drop: float | None = None,
    ) -> ChildTrialRunner:
        runner = ChildTrialRunner(
            factory, limits, max_accuracy_drop=max_drop, clock_path=tmp_path / "clock.lock"
        )
        started.append(runner)
        return runner

    yield start
    for runner in started:
        runner.close()


def with_metric(folder: Path, deed: str) -> tuple[Callable[[], Workbench], Path]:
    """A workbench with the deadly metric, and the marker that arms it."""
    (folder / "deadly.py").write_text(DEADLY.format(deed=deed))
    metric = MetricSpec("mine", f"{folder / 'deadly.py'}:mine", bounds=(0.0, 1.0))
    return partial(tiny_bench.build_workbench, metric=metric), folder / "marker"


def test_a_candidate_goes_through_baseline_trial_and_final(start: Callable[..., ChildTrialRunner]) -> None:
    runner = start(max_drop=0.5)
    baseline = runner.measure_baseline()
    trial = runner.run_trial(candidate(2))
    final = runner.run_final(candidate(2))
    assert baseline.accuracy == 0.9
    assert trial.accuracy.drop == pytest.approx(0.9 - trial.accuracy.value)
    assert final.digest == candidate(2).digest
    assert final.test is not None
    assert final.test.accuracy.n_examples == 80
    assert final.test.holds == "yes"


def test_candidates_are_probed_in_the_child(start: Callable[..., ChildTrialRunner]) -> None:
    runner = start()
    baseline = runner.measure_baseline()
    assert runner.measure_divergence(candidate(8)) < runner.measure_divergence(candidate(2))
    latency = runner.measure_latency(candidate(2))
    assert latency.latency_ms == pytest.approx(baseline.latency_ms / latency.speedup)
    with pytest.raises(TrialError, match="has NaN"):
        runner.measure_divergence(BROKEN)


def test_a_candidate_that_fails_is_followed_by_the_next(start: Callable[..., ChildTrialRunner]) -> None:
    runner = start()
    runner.measure_baseline()
    with pytest.raises(TrialError, match="has NaN"):
        runner.run_trial(BROKEN)
    assert runner.run_trial(candidate(8)).accuracy.value > 0.8


def test_after_a_crash_the_measured_baseline_is_still_there(
    start: Callable[..., ChildTrialRunner], tmp_path: Path
) -> None:
    factory, marker = with_metric(tmp_path, "os._exit(5)")
    runner = start(factory)
    baseline = runner.measure_baseline()
    before = runner.run_trial(candidate(2))
    marker.touch()
    with pytest.raises(TrialCrashed, match="code 5"):
        runner.run_trial(candidate(2))
    after = runner.run_trial(candidate(2))
    assert after.accuracy == before.accuracy
    assert after.latency.latency_ms == pytest.approx(baseline.latency_ms / after.latency.speedup)


def test_a_trial_that_hangs_ends_at_its_limit_and_the_next_one_runs(
    start: Callable[..., ChildTrialRunner], tmp_path: Path
) -> None:
    factory, marker = with_metric(tmp_path, "time.sleep(600)")
    runner = start(factory, TrialLimits(timeout_s=3.0, memory_mb=4096.0))
    runner.measure_baseline()
    marker.touch()
    with pytest.raises(TrialTimeout, match="limit of 3 s"):
        runner.run_trial(candidate(2))
    assert runner.run_trial(candidate(2)).accuracy.n_examples == 120


def test_a_baseline_of_an_earlier_session_is_taken_up(start: Callable[..., ChildTrialRunner]) -> None:
    runner = start()
    runner.restore(Baseline(0.9, 2.0, (1.9, 2.1), 2.2, 100, noise_floor=0.0, test_accuracy=0.9))
    latency = runner.run_trial(candidate(8)).latency
    assert latency.latency_ms == pytest.approx(2.0 / latency.speedup)


def test_a_child_that_got_ready_ahead_takes_up_the_baseline_it_is_given_last(
    start: Callable[..., ChildTrialRunner],
) -> None:
    runner = start()
    for latency_ms in (1.0, 50.0):
        runner.restore(Baseline(0.9, latency_ms, (latency_ms, latency_ms), latency_ms, 100, noise_floor=0.01))
        runner.begin()
    latency = runner.run_trial(candidate(8)).latency
    assert latency.latency_ms == pytest.approx(50.0 / latency.speedup)


def test_nothing_gets_ready_ahead_while_somebody_measures(tmp_path: Path) -> None:
    child: ChildProcess[Workbench] = ChildProcess()
    runner = ChildTrialRunner(build_workbench, LIMITS, child=child, clock_path=tmp_path / "clock.lock")
    with machine_clock(tmp_path / "clock.lock"):
        runner.begin()
        assert not child.is_begun
    runner.begin()
    assert child.is_begun
    runner.close()


def test_a_float_model_that_does_not_fit_into_memory_is_said_to_be_the_one(
    start: Callable[..., ChildTrialRunner],
) -> None:
    # Long enough for a look at the memory, of which any Python process has more.
    timing = TimingSettings(search_s=0.5, block_s=0.05, fixed_effort=True)
    runner = start(partial(build_workbench, timing=timing), TrialLimits(memory_mb=5.0))
    with pytest.raises(UserError, match=r"the float model alone: .* limit is 5 MiB \(raise search.trial_mem"):
        runner.measure_baseline()


def test_waiting_for_another_search_is_no_part_of_a_trial(tmp_path: Path) -> None:
    path = tmp_path / "clock.lock"
    hold = f"""
import pathlib, time
from autoq.evaluation.clock import machine_clock
with machine_clock(pathlib.Path({str(path)!r})):
    print("held", flush=True)
    time.sleep(3.5)
"""
    with ChildTrialRunner(
        build_workbench, TrialLimits(timeout_s=3.0, memory_mb=4096.0), clock_path=path
    ) as runner:
        runner.measure_baseline()
        with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            assert runner.run_trial(candidate(8)).accuracy.value > 0.8
