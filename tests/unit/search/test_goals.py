from __future__ import annotations

from dataclasses import replace

import pytest

from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement, Size
from autoq.search.goals import Constraints, Goals, Objective
from autoq.testing.synthetic import synthetic_baseline

BASELINE: Baseline = replace(synthetic_baseline(), latency_ms=2.0)
MEASURED = Measurement(
    Accuracy(0.89, 0.9 - 0.89, (0.0, 0.02), 1000),
    Latency(1.0, (0.9, 1.1), 1.2, 2.0, (1.9, 2.1), 10),
    Size(1_000, 800),
)


def test_values_are_natural_and_costs_are_minimised_in_the_specs_order() -> None:
    goals = Goals((Objective.STORAGE, Objective.ACCURACY, Objective.LATENCY, Objective.SIZE))
    assert goals.values(MEASURED) == [800.0, 0.89, 1.0, 1_000.0]
    assert goals.costs(MEASURED) == [800.0, MEASURED.accuracy.drop, 1.0, 1_000.0]
    assert goals.directions == ["minimize", "maximize", "minimize", "minimize"]


def test_a_metric_where_lower_is_better_is_minimised() -> None:
    assert Goals((Objective.ACCURACY,), maximize=False).directions == ["minimize"]


@pytest.mark.parametrize(
    ("bound", "excess"),
    [
        ({"max_latency_ms": 1.0}, 0.0),
        ({"max_latency_ms": 0.8}, 0.25),
        ({"max_latency_ratio": 0.4}, 0.25),
        ({"max_latency_ratio": 0.5}, 0.0),
        ({"max_size_bytes": 2_000}, -0.5),
        ({"max_bundle_bytes": 640}, 0.25),
        ({"max_accuracy_drop": 0.002}, 0.008),
    ],
)
def test_a_bound_is_broken_by_what_exceeds_it(bound: dict[str, float], excess: float) -> None:
    goals = Goals((Objective.LATENCY,), Constraints(**bound))  # type: ignore[arg-type]
    found = goals.constraints.violations(MEASURED, BASELINE)
    assert found == {next(iter(bound)): pytest.approx(excess, abs=1e-8)}
    assert goals.feasible(MEASURED, BASELINE) is (excess <= 0)


def test_a_drop_of_exactly_the_bound_keeps_it_in_spite_of_rounding() -> None:
    assert MEASURED.accuracy.drop > 0.01  # 0.9 - 0.89 in floats
    assert Goals((), Constraints(max_accuracy_drop=0.01)).feasible(MEASURED, BASELINE)


def test_without_bounds_everything_is_feasible() -> None:
    assert Constraints().violations(MEASURED, BASELINE) == {}
    assert Goals((Objective.LATENCY,)).feasible(MEASURED, BASELINE)


def test_an_estimate_is_never_feasible() -> None:
    estimate = replace(MEASURED, accuracy=replace(MEASURED.accuracy, is_estimate=True))
    assert not Goals((Objective.LATENCY,)).feasible(estimate, BASELINE)


def test_only_a_bound_on_the_drop_counts_as_only_drop() -> None:
    assert Constraints(max_accuracy_drop=0.0).only_drop
    assert not Constraints(max_accuracy_drop=0.01, max_bundle_bytes=1).only_drop
    assert not Constraints().only_drop
