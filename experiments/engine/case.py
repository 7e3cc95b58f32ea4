"""One bench model with everything that building and scoring candidates by hand takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.assembly.assemble import Stitchers, build_model
from autoq.calibrating import open_stitchers
from autoq.core.choices import AS_IT_IS, FLOAT, Candidate, Choice, Precision, Rewrites
from autoq.evaluation.accuracy import SplitScorer
from autoq.evaluation.batches import run_split
from autoq.evaluation.ports import Session
from autoq.evaluation.statistics import mean_drop_estimate
from autoq.exporting import Silent
from autoq.graph.blocks import find_blocks
from autoq.home import Home
from autoq.preparation import Preparation, keys_of, prepare, prepare_sources, workbench_factory
from autoq.spec.loading import load_spec

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """A calibrated model."""

    ready: Preparation
    home: Home
    stitchers: Stitchers
    workbench: Any  # factory: settings and timing feeds are its own

    @staticmethod
    def open(bench: Path, name: str, home: Path, *, space: dict[str, Any] | None = None) -> Case:
        """Prepare a bench model as a search would."""
        overrides: dict[str, Any] = {} if space is None else {"space": space}
        opened = Home.open(home)
        ready = prepare(load_spec(bench / f"{name}.yaml", overrides), opened, Silent())
        sources = prepare_sources(ready, opened, Silent())
        keys = keys_of(sources)
        return Case(
            ready,
            opened,
            open_stitchers(opened, keys, ready.target),
            workbench_factory(ready, keys, opened),
        )

    @property
    def layers(self) -> list[str]:
        """Names in graph order."""
        return [layer.name for layer in self.ready.model.summary.layers]

    def candidate(
        self, choices: Mapping[str, Choice], *, graph: Precision, rewrites: Rewrites | None = None
    ) -> Candidate:
        """Build a candidate; layers that are not named stay float."""
        ops = {op.name: graph for op in self.ready.model.summary.ops}
        return Candidate.of({**dict.fromkeys(self.layers, FLOAT), **choices}, ops, rewrites)

    def open_session(self, candidate: Candidate) -> Session:
        """Assemble and load."""
        return self.ready.target.open(self.stitchers.assemble(candidate).artifact)

    def open_uncorrected(self, candidate: Candidate) -> Session:
        """Assemble and load without the bias corrections, which no search does."""
        stitcher, model = self.stitchers.of(AS_IT_IS), self.ready.model
        nothing = np.zeros(0, np.float32)
        variants = {
            name: replace(variant, correction=nothing)
            for name, variant in stitcher.variants(candidate).items()
        }
        blocks = find_blocks(model.graph)
        return self.ready.target.open(build_model(model, blocks, stitcher.plan(candidate), variants))

    def outputs(self, session: Session) -> Floats:
        """Run the search split; (examples, ...) of the scored output."""
        chunks = run_split(session, self.ready.data.search, self.workbench.settings.feeding)
        rows = [chunk.outputs[self.ready.output] for chunk in chunks]
        return np.concatenate(rows).astype(np.float64)

    def agreement(self, session: Session) -> float:
        """Score the spec's own metric."""
        settings = self.workbench.settings
        split = self.ready.data.search
        scorer = SplitScorer(split, settings.metric, settings.feeding, output=settings.output)
        scorer.score_baseline(self.ready.target.open(self.ready.model.artifact))
        return float(scorer.accuracy(session).value)

    @cached_property
    def float_outputs(self) -> Floats:
        """Of the float model."""
        return self.outputs(self.ready.target.open(self.ready.model.artifact))


def kl(reference: Floats, outputs: Floats) -> Floats:
    """KL(float ‖ quantised) of the class probabilities, one value an example, in nats."""
    p, q = _log_softmax(reference), _log_softmax(outputs)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def top1_drop(case: Case, outputs: Floats) -> dict[str, Any]:
    """Accuracy, and its drop against float with a paired 95 % interval."""
    labels = case.ready.data.search.labels
    hits = (outputs.argmax(axis=1) == labels).astype(np.float64)
    float_hits = (case.float_outputs.argmax(axis=1) == labels).astype(np.float64)
    drop = mean_drop_estimate(float_hits - hits, span=1.0)
    assert drop is not None
    return {"accuracy": hits.mean(), "drop": drop.value, "drop_ci": [drop.low, drop.high]}
