"""A home that holds searches, written by the real store, and the command line over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from autoq.cli.main import app
from autoq.core.choices import Candidate, Choice
from autoq.search.outcome import Outcome, build_outcome
from autoq.search.records import (
    FinalMeasurement,
    SearchRecord,
    SearchState,
    TestAccuracy,
    TrialRecord,
    TrialState,
)
from autoq.spec.loading import load_spec, spec_digest
from autoq.spec.schema import SearchSpec
from autoq.storage.ledger import SqlLedger
from autoq.testing.synthetic import synthetic_baseline, synthetic_measurement

Autoq = Callable[..., Result]
MakeOutcome = Callable[..., Outcome]

SPEC = """\
version: 1
name: demo
model: {path: m.onnx}
data:
  calibration: {npz: d.npz, inputs: {x: a}}
  search: {npz: d.npz, inputs: {x: a}, labels: y}
constraints: {max_accuracy_drop: 0.05}
space: {version: 1, layers: {"*": {format: [fp32, int8]}}}
"""


@pytest.fixture
def autoq() -> Autoq:
    """Run a command line in this process."""

    def run(*arguments: object, **keywords: Any) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], **keywords)

    return run


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def spec(spec_file: Path) -> SearchSpec:
    return load_spec(spec_file)


def choice_of(number: int) -> Candidate:
    """Trial 0 is all float, and each further one has one more layer in int8."""
    kinds = ["int8" if layer < number else "fp32" for layer in range(3)]
    return Candidate.of({f"layer{layer}": Choice.of(kind) for layer, kind in enumerate(kinds)})


@pytest.fixture
def trials() -> list[TrialRecord]:
    """Four measured trials, one that repeats the second, one that failed."""
    measured = [
        TrialRecord(
            number,
            "anchor float" if number == 0 else "tpe",
            {"layer0.format": "int8"},
            choice_of(number),
            TrialState.COMPLETE,
            synthetic_measurement(choice_of(number)),
            seconds={"build": 0.25, "total": 1.5},
        )
        for number in range(4)
    ]
    broken = choice_of(1).with_choice("layer1", Choice.of("int8", weight_bits=3))
    return [
        *measured,
        replace(measured[1], number=4, state=TrialState.REPEATED),
        TrialRecord(5, "tpe", {}, broken, TrialState.FAILED, reason="TrialTimeout: ran for 120 s"),
    ]


@pytest.fixture
def make_outcome(spec: SearchSpec, trials: list[TrialRecord]) -> MakeOutcome:
    """Build the outcome of the trials above; what is given replaces fields of its parts."""

    def make(holds: str | None = None, max_accuracy_drop: float = 0.05, **record: Any) -> Outcome:
        content = spec.to_json()
        content["constraints"]["max_accuracy_drop"] = max_accuracy_drop
        fields = {"state": SearchState.FINISHED, "baseline": synthetic_baseline(), **record}
        searched = SearchRecord("demo", content, "5ec", **fields)
        bounds = replace(spec.goals.constraints, max_accuracy_drop=max_accuracy_drop)
        finals = [final_of(trial, holds) for trial in trials if trial.measurement] if holds else []
        return build_outcome(searched, replace(spec.goals, constraints=bounds), trials, finals)

    return make


def final_of(trial: TrialRecord, holds: str) -> FinalMeasurement:
    assert trial.measurement is not None
    test = replace(trial.measurement.accuracy, value=0.8765, drop=0.0432, drop_ci=(0.0321, 0.0543))
    return FinalMeasurement(trial.digest, trial.measurement.latency, TestAccuracy(test, holds))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def stored(home: Path, spec: SearchSpec, trials: list[TrialRecord]) -> Callable[..., Path]:
    """Put a search and its trials into the home; what is given replaces fields of the record."""

    def put(spec: SearchSpec = spec, **fields: Any) -> Path:
        defaults = {
            "state": SearchState.FINISHED,
            "created_at": 1_700_000_000.0,
            "environment": {"runtime": "onnxruntime", "cpu": {"instruction_sets": ["avx2"]}},
            "baseline": synthetic_baseline(),
            "preparation_s": {"statistics": 2.5},
        }
        record = SearchRecord(spec.name, spec.to_json(), spec_digest(spec), **(defaults | fields))
        ledger = SqlLedger(f"sqlite:///{home / 'autoq.db'}")
        ledger.create_search(record)
        for trial in trials:
            ledger.add_trial(spec.name, trial)
        ledger.close()
        return home

    return put
