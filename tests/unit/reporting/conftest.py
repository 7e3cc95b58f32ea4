"""A search with known figures: a front of three, one point over the budget, and its float model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autoq.core.choices import Candidate, Choice
from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement, Size
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.outcome import Outcome, build_outcome
from autoq.search.records import (
    FinalMeasurement,
    SearchRecord,
    SearchState,
    TestAccuracy,
    TrialRecord,
    TrialState,
)

MakeTrial = Callable[..., TrialRecord]
MakeOutcome = Callable[..., Outcome]


@pytest.fixture
def goals() -> Goals:
    bounds = Constraints(max_latency_ms=5.0, max_accuracy_drop=0.02)
    return Goals((Objective.ACCURACY, Objective.LATENCY, Objective.STORAGE), bounds)


@pytest.fixture
def record() -> SearchRecord:
    return SearchRecord(
        name="digits",
        spec={
            "version": 1,
            "name": "digits",
            "model": {"path": "/home/somebody/secret/digits.onnx"},
            "metric": "top1",
            "objectives": ["accuracy", "latency", "storage"],
            "constraints": {"max_latency_ms": 5.0, "max_accuracy_drop": 0.02, "max_size_bytes": None},
            "search": {"strategy": "tpe", "trials": 5, "seed": 7},
        },
        spec_digest="5ec",
        state=SearchState.FINISHED,
        created_at=1_700_000_000.25,
        model_digest="m0de1",
        environment={
            "runtime": "onnxruntime",
            "runtime_version": "1.31",
            "threads": 1,
            "batch_size": 4,
            "cpu": {"model": "Xeon", "instruction_sets": ["avx2", "avx512_vnni"]},
        },
        baseline=Baseline(0.9, 10.0, (9.9, 10.1), 10.6, 4_000_000, 0.013, test_accuracy=0.89),
        preparation_s={"statistics": 2.5},
    )


@pytest.fixture
def make_trial() -> MakeTrial:
    def make(
        number: int,
        *,
        drop: float = 0.003,
        latency_ms: float = 2.5,
        origin: str = "tpe",
        interval: bool = True,
        choices: dict[str, Choice] | None = None,
        seconds: dict[str, float] | None = None,
    ) -> TrialRecord:
        # The sparsity makes each trial's candidate another one.
        kinds = choices or {"conv": Choice.of("int8"), "fc": Choice.of("fp32", sparsity=number / 1000)}
        return TrialRecord(
            number=number,
            origin=origin,
            params={},
            candidate=Candidate.of(kinds),
            state=TrialState.COMPLETE,
            measurement=Measurement(
                Accuracy(0.9 - drop, drop, (drop - 0.004, drop + 0.006) if interval else None, 500),
                Latency(
                    latency_ms,
                    (0.97 * latency_ms, 1.03 * latency_ms),
                    1.1 * latency_ms,
                    10.0 / latency_ms,
                    (9.7 / latency_ms, 10.3 / latency_ms),
                    24,
                ),
                Size(1_000_000 + number, 500_000 + number),
                storage_only=("conv",),
            ),
            seconds=seconds or {"suggest": 0.1, "build": 0.2, "total": 0.4},
        )

    return make


@pytest.fixture
def trials(make_trial: MakeTrial) -> list[TrialRecord]:
    """Two anchors and three searched points; 0, 2 and 3 trade drop for latency, 4 breaks the budget."""
    return [
        make_trial(0, drop=0.010, latency_ms=2.0, origin="anchor int8/channel/minmax"),
        make_trial(1, drop=0.012, latency_ms=2.4, origin="anchor int8/channel/entropy"),
        make_trial(2, drop=0.004, latency_ms=3.0),
        make_trial(3, drop=0.001, latency_ms=4.0),
        make_trial(4, drop=0.002, latency_ms=6.0),
    ]


@pytest.fixture
def make_outcome(record: SearchRecord, goals: Goals, trials: list[TrialRecord]) -> MakeOutcome:
    """Build an outcome; what is given replaces its parts or fields of the record."""

    def make(
        given: list[TrialRecord] | None = None, *, of: Goals = goals, holds: str | None = None, **fields: Any
    ) -> Outcome:
        measured = trials if given is None else given
        finals = [final_of(trial, holds) for trial in measured] if holds else []
        return build_outcome(record.but(**fields), of, measured, finals)

    return make


def final_of(trial: TrialRecord, holds: str) -> FinalMeasurement:
    assert trial.measurement is not None
    test = Accuracy(0.87, 0.02, (0.01, 0.03), 300)
    return FinalMeasurement(trial.digest, trial.measurement.latency, TestAccuracy(test, holds))


@pytest.fixture
def outcome(make_outcome: MakeOutcome) -> Outcome:
    return make_outcome()
