"""Trials that stop early, probes, and models that are not deterministic, in the real runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bench import (
    BROKEN,
    REFUSED,
    WEIGHT,
    RandomAssembler,
    TinyAssembler,
    build_workbench,
    candidate,
    split_of,
)

from autoq.core.choices import Candidate
from autoq.core.errors import TrialError
from autoq.core.measurements import Measurement
from autoq.evaluation.divergence import kl_divergence
from autoq.evaluation.metrics import MetricSpec, builtin_metric
from autoq.evaluation.order import ScoringOrder
from autoq.evaluation.racing import RacingSettings
from autoq.evaluation.workbench import Workbench

N = 1500
ALLOWED = RacingSettings(max_accuracy_drop=0.02)


def ready(**changes: Any) -> Workbench:
    workbench = build_workbench(**{"n_search": N, "batch_size": 1, "n_test": 0, **changes})
    workbench.measure_baseline()
    return workbench


def metric_file(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(
        f"import numpy as np\ndef mine(outputs, reference, labels):\n    {body}\n"
    )
    return f"{folder / 'mine.py'}:mine"


def true_drop(bits: int) -> float:
    return ready().run_trial(candidate(bits)).accuracy.drop


def test_a_candidate_beyond_the_allowed_drop_is_stopped_and_says_what_it_was_stopped_with() -> None:
    accuracy = ready(racing=ALLOWED).run_trial(candidate(2)).accuracy
    assert accuracy.is_estimate
    assert 128 <= accuracy.n_examples < N / 2
    assert accuracy.drop_ci is not None
    low, high = accuracy.drop_ci
    assert 0.02 <= low < true_drop(2) < high
    assert accuracy.drop == pytest.approx((low + high) / 2)
    assert accuracy.value == pytest.approx(0.9 - accuracy.drop)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("name", ["top1", "fidelity", "mine"])
def test_a_candidate_that_is_not_stopped_scores_the_same_bit_by_bit(
    name: str, batch_size: int, tmp_path: Path
) -> None:
    body = "return 1 / (1 + np.abs(outputs['scores'] - reference['scores']).mean(axis=1))"
    mine = MetricSpec("mine", metric_file(tmp_path, body), bounds=(0.0, 1.0))
    metric = mine if name == "mine" else builtin_metric(name)
    plain, raced = (
        ready(metric=metric, batch_size=batch_size, racing=racing).run_trial(candidate(6))
        for racing in (None, RacingSettings(max_accuracy_drop=0.1))
    )
    assert raced.accuracy == plain.accuracy
    assert raced.divergence == pytest.approx(plain.divergence)
    assert not raced.accuracy.is_estimate


def test_where_less_is_better_a_rise_is_raced(tmp_path: Path) -> None:
    reference = metric_file(
        tmp_path, "return np.minimum(np.abs(outputs['scores'] - reference['scores']).mean(axis=1), 4.0)"
    )
    metric = MetricSpec("mine", reference, maximize=False, bounds=(0.0, 4.0))
    workbench = ready(metric=metric, racing=ALLOWED)
    bad, good = (workbench.run_trial(candidate(bits)).accuracy for bits in (2, 8))
    assert bad.is_estimate
    assert bad.value == bad.drop > 0.02
    assert not good.is_estimate


def test_batches_are_drawn_whole() -> None:
    accuracy = ready(batch_size=16, racing=ALLOWED).run_trial(candidate(2)).accuracy
    assert accuracy.is_estimate
    assert accuracy.n_examples % 16 == 0
    assert accuracy.drop_ci is not None
    assert accuracy.drop_ci[0] < true_drop(2) < accuracy.drop_ci[1]


@pytest.mark.parametrize(
    "racing", [RacingSettings(max_latency_ms=1e-6), RacingSettings(max_latency_ratio=1e-6)]
)
def test_a_candidate_over_the_latency_budget_is_scored_on_the_first_examples_alone(
    racing: RacingSettings,
) -> None:
    accuracy = ready(racing=racing).run_trial(candidate(2)).accuracy
    split = split_of(N)
    first = np.concatenate([piece.positions for piece in ScoringOrder.of(split, 1, seed=0).first(128)])
    inputs, labels = split.batches[0].inputs["x"][first], split.batches[0].labels
    assert labels is not None
    weight = np.round(WEIGHT / (step := np.abs(WEIGHT).max() / 2)) * step
    before, after = ((inputs @ w).argmax(axis=1) == labels[first] for w in (WEIGHT, weight))
    assert (accuracy.is_estimate, accuracy.n_examples) == (True, 128)
    assert accuracy.drop == pytest.approx(before.mean() - after.mean())
    assert accuracy.value == pytest.approx(0.9 - accuracy.drop)


def test_a_split_that_is_no_longer_than_the_first_examples_gives_no_estimate() -> None:
    workbench = ready(n_search=100, racing=RacingSettings(max_latency_ms=1e-6))
    accuracy = workbench.run_trial(candidate(2)).accuracy
    assert (accuracy.is_estimate, accuracy.n_examples) == (False, 100)


@pytest.mark.parametrize("racing", [ALLOWED, RacingSettings(max_latency_ms=1e-6)])
def test_a_metric_of_a_set_is_never_stopped(racing: RacingSettings, tmp_path: Path) -> None:
    body = "return (outputs['scores'].argmax(1) == labels) * 1.0"
    metric = MetricSpec("mine", metric_file(tmp_path, body), "set", bounds=(0.0, 1.0))
    measurement = ready(metric=metric, racing=racing).run_trial(candidate(2))
    assert (measurement.accuracy.is_estimate, measurement.accuracy.n_examples) == (False, N)
    assert measurement.divergence is not None


def test_a_metric_without_bounds_is_not_raced(tmp_path: Path) -> None:
    metric = MetricSpec("mine", metric_file(tmp_path, "return (outputs['scores'].argmax(1) == labels) * 1.0"))
    assert not ready(metric=metric, racing=ALLOWED).run_trial(candidate(2)).accuracy.is_estimate


# Latency is an accident here: with bytes alone to compare, every model of the bench costs the same.
BY_SIZE = RacingSettings(axes=("size", "storage"))


def test_without_a_bound_on_the_drop_a_better_candidate_that_costs_no_more_is_the_opponent() -> None:
    workbench = ready(racing=BY_SIZE)
    good, bad = (workbench.run_trial(candidate(bits)).accuracy for bits in (8, 2))
    assert not good.is_estimate
    assert bad.is_estimate
    assert bad.drop_ci is not None
    assert good.drop <= bad.drop_ci[0] < true_drop(2) < bad.drop_ci[1]


def test_a_workbench_that_knows_no_opponent_does_not_race() -> None:
    before = ready(racing=BY_SIZE)
    before.run_trial(candidate(8))
    restarted = build_workbench(n_search=N, batch_size=1, n_test=0, racing=BY_SIZE)
    restarted.restore(before.measure_baseline())
    assert not restarted.run_trial(candidate(2)).accuracy.is_estimate


class SmallerWhenCoarse(TinyAssembler):
    """Coarse candidates take fewer bytes in the bundle."""

    def assemble(self, candidate: Candidate) -> Any:
        bits = candidate.by_layer["fc"].weight_bits
        return replace(super().assemble(candidate), estimate_bundle=lambda: 8 * bits)


def test_whoever_costs_less_on_some_axis_is_not_raced() -> None:
    workbench = ready(racing=BY_SIZE, assembler=SmallerWhenCoarse())
    workbench.run_trial(candidate(8))
    assert not workbench.run_trial(candidate(2)).accuracy.is_estimate


def test_an_estimate_is_no_opponent() -> None:
    workbench = ready(racing=replace(BY_SIZE, max_latency_ms=1e-6))
    assert workbench.run_trial(candidate(8)).accuracy.is_estimate
    workbench = ready(racing=BY_SIZE)
    workbench.run_trial(candidate(8))
    workbench.run_trial(candidate(2))
    assert not workbench.run_trial(candidate(7)).accuracy.is_estimate


def test_the_divergence_is_that_of_the_first_examples_in_the_trial_and_in_the_probe() -> None:
    for racing in (None, ALLOWED):
        workbench = ready(racing=racing)
        split = split_of(N)
        first = np.concatenate([piece.positions for piece in ScoringOrder.of(split, 1, seed=0).first(128)])
        inputs = split.batches[0].inputs["x"][first]
        weight = np.round(WEIGHT / (step := np.abs(WEIGHT).max() / 4)) * step
        expected = float(kl_divergence(inputs @ WEIGHT, inputs @ weight).mean())
        assert workbench.run_trial(candidate(3)).divergence == pytest.approx(expected, rel=1e-4)
        assert workbench.measure_divergence(candidate(3)) == pytest.approx(expected, rel=1e-4)


def test_fewer_bits_diverge_more() -> None:
    workbench = ready()
    found = [workbench.measure_divergence(candidate(bits)) for bits in (8, 5, 3, 2)]
    assert found == sorted(found)
    assert found[0] >= 0


def test_probes_work_on_a_restored_workbench_and_a_short_split() -> None:
    measured = build_workbench()
    baseline = measured.measure_baseline()
    restored = build_workbench()
    restored.restore(baseline)
    assert restored.measure_divergence(candidate(3)) == measured.measure_divergence(candidate(3))
    latency = restored.measure_latency(candidate(3))
    assert latency.latency_ms == pytest.approx(baseline.latency_ms / latency.speedup)


def test_probes_of_candidates_that_fail_raise_and_leave_the_bench_ready() -> None:
    workbench = build_workbench()
    workbench.measure_baseline()
    with pytest.raises(TrialError, match="no tensor for fc"):
        workbench.measure_divergence(REFUSED)
    with pytest.raises(TrialError, match="no tensor for fc"):
        workbench.measure_latency(REFUSED)
    with pytest.raises(TrialError, match="output 'scores' has NaN"):
        workbench.measure_divergence(BROKEN)
    assert workbench.measure_divergence(candidate(8)) < 0.01


# Enough examples, and so much noise, that the two widths cannot change places by chance.
NOISY = {"n_search": N, "n_test": 0, "assembler": RandomAssembler(noise=2.0)}


def width(workbench: Workbench) -> float:
    low, high = workbench.run_trial(candidate(8)).accuracy.drop_ci or (0.0, 0.0)
    return high - low


def test_a_model_that_draws_random_numbers_is_found_out_and_not_raced() -> None:
    workbench = build_workbench(**NOISY, racing=RacingSettings(max_accuracy_drop=1e-9))  # type: ignore[arg-type]
    baseline = workbench.measure_baseline()
    assert not baseline.is_deterministic
    assert 0 <= baseline.accuracy_jitter < 0.2
    assert not workbench.run_trial(candidate(8)).accuracy.is_estimate


@pytest.mark.parametrize("is_restored", [False, True])
def test_intervals_of_a_random_model_are_wider_by_what_two_runs_differ(is_restored: bool) -> None:
    workbench = build_workbench(**NOISY)  # type: ignore[arg-type]
    baseline = workbench.measure_baseline()
    if is_restored:
        workbench = build_workbench(**NOISY)  # type: ignore[arg-type]
        workbench.restore(baseline)
    pretended = build_workbench(**NOISY)  # type: ignore[arg-type]
    pretended.restore(replace(baseline, is_deterministic=True))
    # Two runs differ as a candidate and the float model do: twice the variance.
    assert width(workbench) == pytest.approx(np.sqrt(2) * width(pretended), rel=0.2)


def test_a_model_that_draws_none_is_deterministic() -> None:
    baseline = build_workbench().measure_baseline()
    assert (baseline.is_deterministic, baseline.accuracy_jitter) == (True, 0.0)


def test_a_measurement_survives_json_and_old_ones_are_read() -> None:
    measurement = ready(racing=ALLOWED).run_trial(candidate(2))
    data = measurement.to_json()
    data["accuracy"]["drop_ci"] = list(data["accuracy"]["drop_ci"])
    assert Measurement.from_json(data) == measurement
    del data["divergence"], data["accuracy"]["is_estimate"]
    old = Measurement.from_json(data)
    assert old.divergence is None
    assert not old.accuracy.is_estimate
