"""A bench model that can be narrowed, quantised, scored and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.assembly.assemble import Stitcher, layer_weights
from autoq.assembly.narrowing import Narrower, build_narrower, open_narrower
from autoq.assembly.output_correction import OutputCorrector
from autoq.assembly.sequential_refit import SequentialRefitter
from autoq.calibrating import Calibrator
from autoq.calibration.collect import collect_statistics
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.statistics import Statistics
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Candidate, Choice, Criterion, Precision
from autoq.core.data import Feed, Split
from autoq.evaluation.batches import feeding_for, run_split, timing_feeds
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.ports import Session
from autoq.evaluation.timing import Effort, measure_latency
from autoq.exporting import Silent
from autoq.graph.blocks import find_blocks, quantizable_values
from autoq.graph.float_model import FloatModel
from autoq.home import Home
from autoq.preparation import Preparation, prepare
from autoq.pruning.fisher import MaskGradients
from autoq.pruning.snapshot_store import SnapshotStore, snapshots_key
from autoq.spec.loading import load_spec
from autoq.targets.cpu import this_cpu
from autoq.variants.build import LayerBuilder
from autoq.variants.store import VariantStore

Floats = npt.NDArray[np.float64]
Widths = Mapping[str, int]

TIMING_S = 3.0
MULTIPLE = 16  # channels: one register of int32 sums with AVX512


class Finish(StrEnum):
    """What a narrowed model goes through after its snapshots."""

    NOTHING = "nothing"
    CORRECTION = "correction"
    REFIT = "sequential refit"


@dataclass(frozen=True)
class Subject:
    """A calibrated float model with snapshots of its channel groups."""

    ready: Preparation
    home: Home
    statistics: Statistics
    moments: MomentStore
    narrower: Narrower
    snapshots_s: float
    ops: Precision  # what weightless operations of an int8 model run in

    @staticmethod
    def open(bench: Path, name: str, home: Path, ops: Precision = Precision.INT8) -> Subject:
        """Prepare a bench model as a search would, then find and refit its channel groups."""
        opened = Home.open(home)
        ready = prepare(load_spec(bench / f"{name}.yaml"), opened, Silent())
        calibrator = Calibrator(opened, ready.data.calibration, ready.target.environment(), Silent())
        statistics = calibrator(ready.model)
        key = calibrator.key(ready.model)
        moments = MomentStore.beside(opened.statistics(key))
        start = time.perf_counter()
        store = SnapshotStore(opened.root / "snapshots" / snapshots_key(key, {"multiples": [MULTIPLE]}))
        narrower = open_narrower(ready.model, store)
        if narrower is None:
            narrower = build_narrower(ready.model, moments.get, multiples=[MULTIPLE])
            store.save(narrower.snapshots)
        return Subject(ready, opened, statistics, moments, narrower, time.perf_counter() - start, ops)

    @cached_property
    def corrector(self) -> OutputCorrector:
        """Corrects the outputs of narrowed models."""
        return OutputCorrector(self.ready.model, self.ready.data.calibration)

    @cached_property
    def refitter(self) -> SequentialRefitter:
        """Refits narrowed models on their own activations."""
        return SequentialRefitter(self.ready.model, self.ready.data.calibration)

    def example(self) -> Feed:
        """One calibration example."""
        return next(self.ready.data.calibration.feeds(1))

    def by_criterion(self, criterion: Criterion, gradients: MaskGradients | None = None) -> Narrower:
        """Order units by something else; Fisher scores need gradients."""
        return build_narrower(
            self.ready.model,
            self.moments.get,
            multiples=[MULTIPLE],
            criterion=criterion,
            gradients=gradients,
        )

    def int8(self, model: FloatModel, statistics: Statistics | None = None) -> ModelArtifact:
        """Quantise every layer statically that can be: u8 activations, s8 weights per channel, min-max.

        Args:
            model: A float model; narrowed ones have layers and ops of the same names.
            statistics: Of the model; collected anew by default.
        """
        if statistics is None:
            values = quantizable_values(find_blocks(model.graph))
            statistics = collect_statistics(model, values, self.ready.data.calibration)
        weights = layer_weights(model)
        layers = {layer.name: layer for layer in model.summary.layers}
        builders = {name: LayerBuilder(layer, weights[name]) for name, layer in layers.items()}
        folder = self.home.root / "narrowed" / model.summary.digest
        stitcher = Stitcher(model, statistics, VariantStore(folder, builders), lambda layer, choice: True)
        ops = {op.name: self.ops for op in model.summary.ops}
        int8 = Choice.of("int8")
        legal = [name for name, layer in layers.items() if self.ready.target.judge(layer, int8).legal]
        candidate = Candidate.of(dict.fromkeys(legal, int8), ops)
        return stitcher.assemble(candidate).artifact

    def outputs(self, artifact: ModelArtifact, split: Split) -> Floats:
        """Run a split; (examples, classes)."""
        feeding = feeding_for(self.ready.model.summary.inputs, 1, n_cores=this_cpu().n_cores)
        session = self.ready.target.open(artifact)
        chunks = run_split(session, split, feeding, output=self.ready.output)
        rows = [chunk.outputs[self.ready.output] for chunk in chunks]
        session.close()
        return np.concatenate(rows).astype(np.float64)

    def top1(self, artifact: ModelArtifact) -> float:
        """Accuracy on the search split."""
        split = self.ready.data.search
        return float((self.outputs(artifact, split).argmax(axis=1) == split.labels).mean())

    @cached_property
    def rivals(self) -> dict[str, Session]:
        """What narrowed int8 models are timed against: the float model and the int8 one, unpruned."""
        whole = self.ready.model
        artifacts = {"float": whole.artifact, "int8": self.int8(whole, self.statistics)}
        return {name: self.ready.target.open(artifact) for name, artifact in artifacts.items()}

    def speedups(self, artifact: ModelArtifact, *, seconds: float = TIMING_S) -> dict[str, Any]:
        """Time a model against each rival in one process; factor and 95 % interval."""
        inputs = self.ready.model.summary.inputs
        feeds = timing_feeds(self.ready.data.calibration, inputs, feeding_for(inputs, 1))
        session, found = self.ready.target.open(artifact), {}
        with machine_clock():
            for name, rival in self.rivals.items():
                effort = Effort(seconds, half_width=0.01)
                ratio = measure_latency(session, rival, feeds, effort, seed=0).log_ratio.exp()
                found[name] = {"factor": 1 / ratio.value, "ci": [1 / ratio.high, 1 / ratio.low]}
        session.close()
        return found

    def narrowed(self, widths: Widths, finish: Finish = Finish.NOTHING) -> FloatModel:
        """Narrow, and finish."""
        model, kept = self.narrower.narrow(widths), self.narrower.kept_outputs(widths)
        if finish is Finish.CORRECTION:
            return self.corrector.correct(model, kept)
        return self.refitter.refit(model, kept) if finish is Finish.REFIT else model

    def scores(self, widths: Widths, finish: Finish = Finish.NOTHING) -> tuple[dict[str, Any], ModelArtifact]:
        """Narrow, finish and score in float and in int8; return the figures and the int8 model."""
        start = time.perf_counter()
        model = self.narrowed(widths, finish)
        seconds = time.perf_counter() - start
        deployed = self.int8(model)
        row = {
            "widths": dict(widths),
            "finish": finish,
            "seconds": seconds,
            "float_top1": self.top1(model.artifact),
            "int8_top1": self.top1(deployed),
            "size_mb": deployed.size_bytes / 1e6,
        }
        print(
            f"    {finish}: top-1 float {row['float_top1']:.4f}, int8 {row['int8_top1']:.4f}; "
            f"{row['size_mb']:.2f} MB; made in {seconds:.1f} s",
            flush=True,
        )
        return row, deployed

    def judge(self, widths: Widths) -> dict[str, Any]:
        """Narrow and score, and time the int8 model."""
        row, deployed = self.scores(widths)
        row["over"] = self.speedups(deployed)
        parts = (f"{one['factor']:.2f}x over {name}" for name, one in row["over"].items())
        print(f"    {', '.join(parts)}", flush=True)
        return row
