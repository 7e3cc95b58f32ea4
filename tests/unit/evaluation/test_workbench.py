from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_bench
from tiny_bench import BROKEN, QUICK, REFUSED, RandomAssembler, TinyAssembler, build_workbench, candidate

from autoq.core.artifacts import AssembledModel, ModelArtifact
from autoq.core.choices import Candidate
from autoq.core.data import Array
from autoq.core.errors import TrialError, UserError
from autoq.core.measurements import Baseline
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.output_files import OutputFiles
from autoq.evaluation.timing import PILOT_ROUNDS, TimingSettings
from autoq.targets.onnxruntime_cpu import OnnxRuntimeSession, OnnxRuntimeTarget


def test_the_baseline_is_scored_on_both_splits_and_timed_against_itself() -> None:
    baseline = build_workbench().measure_baseline()
    assert baseline.accuracy == 0.9
    assert baseline.test_accuracy == 0.9
    assert baseline.latency_ms_ci[0] <= baseline.latency_ms <= baseline.latency_ms_ci[1]
    assert baseline.latency_p90_ms > 0
    assert baseline.noise_floor > 0
    assert baseline.size_bytes == len(tiny_bench.TinyAssembler().float_model().content or b"")


def test_a_trial_measures_everything_and_says_where_its_time_went() -> None:
    workbench = build_workbench()
    baseline = workbench.measure_baseline()
    fine, coarse = (workbench.run_trial(candidate(bits)) for bits in (8, 2))
    assert coarse.accuracy.value < fine.accuracy.value <= baseline.accuracy + 0.02
    assert coarse.accuracy.drop == pytest.approx(baseline.accuracy - coarse.accuracy.value)
    assert fine.accuracy.n_examples == 120
    assert fine.latency.latency_ms == pytest.approx(baseline.latency_ms / fine.latency.speedup)
    assert fine.latency.n_blocks >= 2 * PILOT_ROUNDS
    assert fine.size.bundle_bytes == 64
    assert fine.storage_only == ("fc",)
    assert set(fine.seconds) == {"build", "load", "latency", "accuracy", "inference"}
    assert 0 < fine.seconds["inference"] <= fine.seconds["latency"] + fine.seconds["accuracy"]


def test_against_itself_the_float_model_drops_nothing_without_a_doubt() -> None:
    workbench = build_workbench()
    workbench.measure_baseline()
    itself, fine = workbench.run_trial(Candidate.of({})), workbench.run_trial(candidate(8))
    assert (itself.accuracy.drop, itself.accuracy.drop_ci) == (0.0, (0.0, 0.0))
    assert (test := workbench.run_final(Candidate.of({})).test) is not None
    assert test.drop_ci == (0.0, 0.0)
    assert fine.accuracy.drop_ci is not None
    assert fine.accuracy.drop_ci[0] < fine.accuracy.drop < fine.accuracy.drop_ci[1]


def test_a_model_that_changes_from_run_to_run_is_in_doubt_even_of_itself() -> None:
    workbench = build_workbench(assembler=RandomAssembler())
    workbench.measure_baseline()
    drop_ci = workbench.run_trial(Candidate.of({})).accuracy.drop_ci
    assert drop_ci is not None
    assert drop_ci[0] < 0.0 < drop_ci[1]


def test_the_latency_interval_is_at_least_the_noise_floor() -> None:
    workbench = build_workbench()
    workbench.restore(Baseline(0.9, 2.0, (1.9, 2.1), 2.2, 100, noise_floor=0.5))
    low, high = workbench.run_trial(candidate(8)).latency.speedup_ci
    assert high / low >= 2.7  # exp(2 x 0.5)


def test_a_restored_baseline_serves_as_a_measured_one() -> None:
    measured, restored = build_workbench(), build_workbench()
    restored.restore(measured.measure_baseline())
    trials = [workbench.run_trial(candidate(3)) for workbench in (measured, restored)]
    assert trials[0].accuracy == trials[1].accuracy
    assert restored.run_final(candidate(3)).test is not None


def test_the_final_measurement_takes_longer_and_scores_the_test_split() -> None:
    workbench = build_workbench(timing=TimingSettings(0.02, 0.02, 0.5, 0.0001, 0.002, 2))
    workbench.measure_baseline()
    trial, final = workbench.run_trial(candidate(2)), workbench.run_final(candidate(2))
    assert final.latency.n_blocks > trial.latency.n_blocks
    assert final.test is not None
    assert final.test.n_examples == 80
    assert final.test.drop > 0


def test_without_a_test_split_there_is_no_test_accuracy() -> None:
    workbench = build_workbench(n_test=0)
    assert workbench.measure_baseline().test_accuracy is None
    assert workbench.run_final(candidate(8)).test is None


def test_a_candidate_that_fails_leaves_the_bench_ready_for_the_next() -> None:
    workbench = build_workbench()
    workbench.measure_baseline()
    with pytest.raises(TrialError, match="no tensor for fc"):
        workbench.run_trial(REFUSED)
    with pytest.raises(TrialError, match="output 'scores' has NaN"):
        workbench.run_trial(BROKEN)
    assert workbench.run_trial(candidate(8)).accuracy.value > 0.8


class Unweighable(TinyAssembler):
    """Candidates of which nobody can say what their bundle takes."""

    def assemble(self, candidate: Candidate) -> AssembledModel:
        def refuse() -> int:
            raise TrialError("it does not fit a bundle")

        return replace(super().assemble(candidate), estimate_bundle=refuse)


def test_a_candidate_that_cannot_be_weighed_fails_whether_it_loads_or_not() -> None:
    workbench = build_workbench(assembler=Unweighable())
    workbench.measure_baseline()
    n_threads = threading.active_count()
    for _ in range(2):
        with pytest.raises(TrialError, match="does not fit a bundle"):
            workbench.run_trial(candidate(8))
        assert threading.active_count() == n_threads


def test_a_metric_that_cannot_be_loaded_is_the_users_error_before_anything_runs() -> None:
    with pytest.raises(UserError, match="no such file"):
        build_workbench(metric=MetricSpec("mine", "nowhere.py:mine"))


def test_a_closed_bench_opens_the_float_model_again() -> None:
    workbench = build_workbench(timing=QUICK)
    workbench.measure_baseline()
    workbench.close()
    assert workbench.run_trial(candidate(8)).accuracy.value > 0.8


class CountingSession(OnnxRuntimeSession):
    """A real session that counts its batches."""

    n_batches = 0

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self.n_batches += 1
        return super().run(feed)


class CountingTarget(OnnxRuntimeTarget):
    """The real runtime; remembers its sessions, the float model's first."""

    def __init__(self, *, threads: int = 1) -> None:
        super().__init__(threads=threads, batch_size=16)
        self.sessions: list[CountingSession] = []

    def open(self, model: ModelArtifact, *, optimize: bool = True) -> OnnxRuntimeSession:
        self.sessions.append(CountingSession(self._create(model, optimize=optimize)))
        return self.sessions[-1]


class OlderRuntime(CountingTarget):
    """The same runtime under another version."""

    def environment(self) -> dict[str, Any]:
        return {**super().environment(), "runtime_version": "1.0"}


N_SEARCH, N_TEST = 8, 5  # batches of 16 in 120 and in 80 examples
N_TWICE = 2  # runs of one batch, which show whether they give the same


def test_a_second_search_scores_the_float_model_from_the_file(tmp_path: Path) -> None:
    plain = build_workbench().measure_baseline()
    for n_run in (N_TWICE + N_SEARCH + N_TEST, N_TWICE):
        target = CountingTarget()
        baseline = build_workbench(target=target, outputs=OutputFiles(tmp_path)).measure_baseline()
        assert target.sessions[0].n_batches == n_run
        assert (baseline.accuracy, baseline.test_accuracy) == (plain.accuracy, plain.test_accuracy)


def test_a_restored_workbench_scores_from_the_file_and_finds_the_same(tmp_path: Path) -> None:
    plain = build_workbench()
    baseline = plain.measure_baseline()
    build_workbench(outputs=OutputFiles(tmp_path)).measure_baseline()
    target = CountingTarget()
    restored = build_workbench(target=target, outputs=OutputFiles(tmp_path))
    restored.restore(baseline)
    assert target.sessions[0].n_batches == 0
    trials = [workbench.run_trial(candidate(3)) for workbench in (plain, restored)]
    assert trials[0].accuracy == trials[1].accuracy
    finals = [workbench.run_final(candidate(3)).test for workbench in (plain, restored)]
    assert finals[0] == finals[1]


def test_another_runtime_or_number_of_threads_is_run_for_itself(tmp_path: Path) -> None:
    targets: list[CountingTarget] = [CountingTarget(), OlderRuntime(), CountingTarget(threads=2)]
    for target in targets:
        build_workbench(target=target, outputs=OutputFiles(tmp_path)).measure_baseline()
    assert [target.sessions[0].n_batches for target in targets] == [N_TWICE + N_SEARCH + N_TEST] * 3


def test_doubts_about_a_model_that_changes_reach_the_test_split() -> None:
    """A restored baseline is asked for what two runs differ by when the test split is first scored."""
    # So many examples that the doubts are the same within a tenth in every run.
    noisy = {"assembler": RandomAssembler(noise=2.0), "n_test": 600}
    workbench, restored, deceived = (build_workbench(**noisy) for _ in range(3))
    baseline = workbench.measure_baseline()
    restored.restore(baseline)
    deceived.restore(replace(baseline, is_deterministic=True))
    widths = []
    for one in (workbench, restored, deceived):
        test = one.run_final(Candidate.of({})).test
        assert test is not None
        assert test.drop_ci is not None
        widths.append(test.drop_ci[1] - test.drop_ci[0])
    assert min(widths[:2]) > 1.1 * widths[2]
