"""The searches that are compared: strategies by seeds, over one home, each candidate measured once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.app import App
from autoq.calibrating import SourceKeys
from autoq.core.choices import Candidate, Rewrites
from autoq.core.errors import StoreError
from autoq.core.measurements import Measurement
from autoq.execution.runner import ChildTrialRunner
from autoq.execution.worker import ChildProcess
from autoq.exporting import Silent
from autoq.preparation import Preparation
from autoq.search.outcome import Outcome
from autoq.search.records import TrialRecord, TrialState
from autoq.spec.loading import load_spec

N_SENTENCES = 500  # of MiniLM's search split; points that are told are scored on all of it
AS_THEY_STAND = "AUTOQ_SEARCHES_AS_THEY_STAND"  # set: read what is there, and run nothing
TIMING_S = 1.0  # of each trial; who is how good is decided on timings made afresh at the end


@dataclass(frozen=True)
class Run:
    """One search of the comparison."""

    model: str
    strategy: str
    seed: int
    trials: int  # anchors included

    @property
    def name(self) -> str:
        return f"{self.model}-{self.strategy}-{self.seed}"


RUNS = [
    *(Run("mobilenetv2", "guided", seed, 25) for seed in range(3)),
    *(Run("mobilenetv2", name, seed, 100) for name in ("tpe", "nsga2", "gp", "random") for seed in range(3)),
    *(Run("resnet18", "guided", seed, 25) for seed in range(3)),
    *(Run("resnet18", "tpe", seed, 60) for seed in range(2)),
    Run("resnet18", "random", 0, 60),
    *(Run("minilm", "guided", seed, 25) for seed in range(3)),
    *(Run("minilm", "tpe", seed, 60) for seed in range(2)),
    Run("minilm", "random", 0, 60),
]


def runs_of(app: App, model: str) -> list[Run]:
    """The runs of a model; where nothing is to be run, those that are there."""
    known = {record.name for record in app.searches()}
    return [
        run for run in RUNS if run.model == model and (run.name in known or AS_THEY_STAND not in os.environ)
    ]


class SharingApp(App):
    """An app whose searches of one model share what they measured, by the candidate's digest."""

    def open_runner(
        self, ready: Preparation, sources: Mapping[Rewrites, SourceKeys], child: ChildProcess[Any]
    ) -> ChildTrialRunner:
        runner = super().open_runner(ready, sources, child)
        known = measured_before(self, ready.content_digest)
        measure = runner.run_trial

        def run_trial(candidate: Candidate) -> Measurement:
            found = known.get(candidate.digest)
            return measure(candidate) if found is None else found

        runner.run_trial = run_trial  # type: ignore[method-assign]
        return runner

    def write_artifacts(self, outcome: Outcome, on_note: Callable[[str], None]) -> dict[str, Path]:
        """Leave plots and recipes out: nobody looks at them here."""
        return {}


def measured_before(app: App, model_digest: str) -> dict[str, Measurement]:
    """Whole measurements, not estimates, of every search of the same model, data and metric."""
    return {
        trial.digest: trial.measurement
        for record in app.searches()
        if record.model_digest == model_digest
        for trial in app.trials(record.name)
        if trial.measurement is not None and not trial.measurement.accuracy.is_estimate
    }


def fewer_examples(app: App, bench: Path, model: str) -> dict[str, Any]:
    """Cut MiniLM's search split, which is scored whole and sentence by sentence in every trial."""
    if model != "minilm":
        return {}
    path = app.home.root / "sentences.npz"
    if not path.exists():
        with np.load(bench / "sentences.npz") as arrays:
            np.savez(path, **{name: arrays[name][:N_SENTENCES] for name in ("search_ids", "search_mask")})
    inputs = {"input_ids": "search_ids", "attention_mask": "search_mask"}
    return {"data.search": {"npz": str(path), "inputs": inputs}}


class Printing(Silent):
    """A line a trial."""

    def on_phase(self, name: str, detail: str) -> None:
        print(f"  {name}: {detail}", flush=True)

    def on_trial_end(self, trial: TrialRecord, progress: Any) -> None:
        if trial.measurement is None or trial.state is TrialState.REPEATED:
            return
        one = trial.measurement
        print(
            f"  {trial.number:3d} {trial.origin[:30]:30s} drop {one.accuracy.drop:+.4f} "
            f"{one.latency.speedup:.2f}x {one.size.bundle_bytes:,} bytes"
            f"{' (estimate)' if one.accuracy.is_estimate else ''}",
            flush=True,
        )


def run_search(app: App, bench: Path, run: Run) -> Outcome:
    """Run a search, or go on with it; a finished one is only read."""
    overrides: dict[str, Any] = {
        **fewer_examples(app, bench, run.model),
        "name": run.name,
        "search.strategy": run.strategy,
        "search.seed": run.seed,
        "search.trials": run.trials,
        "timing.search_s": TIMING_S,
        "timing.final_s": TIMING_S,
        "data.test": None,  # the comparison is of fronts; nothing is shipped
    }
    spec = load_spec(bench / f"{run.model}.yaml", overrides)
    print(run.name, flush=True)
    if AS_THEY_STAND in os.environ:
        return app.outcome(run.name)
    try:
        return app.search(spec, Printing(), resume=True)
    except StoreError as error:
        raise SystemExit(f"{run.name}: {error}; delete the search to run it again") from error
