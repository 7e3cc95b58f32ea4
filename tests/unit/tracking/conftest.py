from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autoq.core.choices import Candidate, Choice, Precision
from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement, Size
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.records import SearchRecord, SearchState, TrialRecord, TrialState
from autoq.tracking.connection import talking_to
from autoq.tracking.sqlite_store import create_sqlite_store, sqlite_uri

MakeTrial = Callable[..., TrialRecord]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once: its migrations take over a second."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with talking_to(sqlite_uri(path)):
        create_sqlite_store(path)
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def goals() -> Goals:
    bounds = Constraints(max_latency_ms=5.0, max_accuracy_drop=0.02)
    return Goals((Objective.ACCURACY, Objective.LATENCY), bounds)


@pytest.fixture
def record() -> SearchRecord:
    return SearchRecord(
        name="digits",
        spec={
            "version": 1,
            "name": "digits",
            "model": {"path": "/models/digits-cnn.onnx"},
            "metric": "top1",
            "objectives": ["accuracy", "latency"],
            "constraints": {"max_latency_ms": 5.0, "max_accuracy_drop": 0.02, "max_size_bytes": None},
            "search": {"strategy": "tpe", "trials": 5, "seed": 0},
        },
        spec_digest="5ec",
        state=SearchState.RUNNING,
        created_at=1_700_000_000.25,
        model_digest="m0de1",
        environment={"cpu": {"model": "Xeon", "instruction_sets": ["avx2", "vnni"]}, "threads": 1},
        baseline=Baseline(0.9, 10.0, (9.9, 10.1), 10.6, 4_000_000, 0.01),
        preparation_s={"statistics": 2.5},
    )


@pytest.fixture
def make_trial() -> MakeTrial:
    def make(
        number: int,
        *,
        drop: float = 0.003,
        latency_ms: float = 2.5,
        n_layers: int = 3,
        origin: str = "tpe",
        interval: bool = True,
        size_bytes: int = 1_000_000,
    ) -> TrialRecord:
        # The sparsity makes each trial's candidate another one.
        choices = {f"layer{i}.conv": Choice.of("int8") for i in range(n_layers)}
        choices["fc"] = Choice.of("fp32", sparsity=number / 1000)
        return TrialRecord(
            number=number,
            origin=origin,
            params={"fc.sparsity": number / 1000},
            candidate=Candidate.of(choices, {"add1": Precision.INT8}),
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
                Size(size_bytes, size_bytes // 2),
                storage_only=("layer0.conv",),
                seconds={"latency": 1.5},
            ),
            started_at=1_700_000_100.0 + number,
            seconds={"suggest": 0.01, "build": 0.2},
        )

    return make
