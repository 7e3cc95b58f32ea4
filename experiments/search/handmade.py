"""MiniLM: points of the guided searches beside what was made by hand, rebuilt and timed in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from quality import time_afresh
from searches import SharingApp, runs_of

from autoq.calibrating import open_stitchers
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Candidate, Choice, Rewrites
from autoq.core.fronts import front_rows
from autoq.evaluation.accuracy import SplitScorer
from autoq.exporting import Silent
from autoq.preparation import keys_of, prepare, prepare_sources, workbench_factory
from autoq.search.guide import Guide
from autoq.search.sensitivity import sensitivities
from autoq.spec.loading import load_spec

MODEL = "minilm"
EQUAL = 0.002  # of agreement: so much less counts as equal
MIN_SPEED = 1.1
AS_GIVEN = "float, as given"
STRETCH = ((0.95, 1.7), (0.92, 2.0))  # agreement, speed-up
DYNAMIC = Choice.of("int8_dynamic", rounding="gptq")
WEIGHT_ONLY = Choice.of("int8_weight", granularity="block128", rounding="gptq")


def handmade(app: SharingApp, bench: Path) -> dict[str, Any]:
    """Score and time the rows of the issue, then hold guided's points against each."""
    spec = load_spec(bench / f"{MODEL}.yaml", {"data.test": None})
    ready = prepare(spec, app.home, Silent())
    sources = prepare_sources(ready, app.home, Silent())
    keys = keys_of(sources)
    stitchers = open_stitchers(app.home, keys, ready.target)
    settings = workbench_factory(ready, keys, app.home).settings
    scorer = SplitScorer(ready.data.search, settings.metric, settings.feeding, output=settings.output)
    scorer.score_baseline(ready.target.open(ready.model.artifact))
    rows = by_hand(app, [layer.name for layer in ready.model.summary.layers if layer.is_matmul])
    found = guided_points(app)
    agreement = {}
    for name, candidate in {**rows, **found}.items():
        session = ready.target.open(stitchers.assemble(candidate).artifact)
        agreement[name] = float(scorer.score(session).accuracy.value)
        session.close()
    # The float model too is one that canonicalisation has made faster.
    given = {AS_GIVEN: Candidate.of({})}
    by_hand_alone = dict.fromkeys((*rows, *given), with_joint_norms)
    ratios = time_afresh(app, spec, {**given, **rows, **found}, by_hand_alone)
    points = [(agreement[digest], 1 / ratios[digest], digest) for digest in found]
    table = []
    for name in rows:
        rivals = [point for point in points if point[0] >= agreement[name] - EQUAL]
        best = max(rivals, key=lambda point: point[1], default=None)
        table.append(
            {
                "row": name,
                "agreement": agreement[name],
                "speedup": 1 / ratios[name],
                "best_agreement": best[0] if best else None,
                "best_speedup": best[1] if best else None,
                "gain": best[1] * ratios[name] if best else None,
            }
        )
        print(f"  {name}: {agreement[name]:.4f} at {1 / ratios[name]:.2f}x; guided {best}", flush=True)
    print(f"  {AS_GIVEN}: {1 / ratios[AS_GIVEN]:.3f}x", flush=True)
    return {
        "rows": table,
        "speedup_as_given": 1 / ratios[AS_GIVEN],
        "points": [{"agreement": a, "speedup": s} for a, s, _ in sorted(points)],
        "bars": _bars(table, points),
    }


def _bars(table: list[dict[str, Any]], points: list[tuple[float, float, str]]) -> list[dict[str, Any]]:
    gains = [row["gain"] or 0.0 for row in table]
    bars = [
        {
            "what": f"guided over `{row['row']}` at equal agreement, x",
            "figure": gain,
            "bar": f">= {MIN_SPEED}",
            "met": gain >= MIN_SPEED,
        }
        for row, gain in zip(table, gains, strict=True)
    ]
    for agreement, speed in STRETCH:
        best = max((point[1] for point in points if point[0] >= agreement), default=0.0)
        bars.append(
            {
                "what": f"stretch: speed-up at agreement >= {agreement}",
                "figure": best,
                "bar": f">= {speed}",
                "met": best >= speed,
            }
        )
    return bars


def with_joint_norms(artifact: ModelArtifact) -> ModelArtifact:
    """Undo what canonicalisation does for norms: whoever works by hand lets the runtime join them."""
    assert artifact.content is not None
    model = onnx.load_from_string(artifact.content)
    normed = {node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization"}
    for node in model.graph.node:
        if node.op_type == "Sum" and node.output[0] in normed:
            node.op_type = "Add"
    return ModelArtifact.from_bytes(model.SerializeToString())


def by_hand(app: SharingApp, matmuls: list[str]) -> dict[str, Candidate]:
    """The rows: uniform formats, and the k layers that mind dynamic int8 most kept weight-only."""

    def candidate(choices: Mapping[str, Choice], rewrites: Rewrites | None = None) -> Candidate:
        return Candidate.of(choices, {}, rewrites)

    ranked = _most_sensitive(app, matmuls)
    rows = {
        "dynamic int8": candidate(dict.fromkeys(matmuls, DYNAMIC)),
        "weight-only int8": candidate(dict.fromkeys(matmuls, WEIGHT_ONLY)),
        "static int8": candidate(
            dict.fromkeys(matmuls, Choice.of("int8", calibration="mse", rounding="gptq"))
        ),
        "SmoothQuant + dynamic": candidate(dict.fromkeys(matmuls, DYNAMIC), Rewrites(smooth_alpha=0.6)),
    }
    for k in (4, 8):
        kept = dict.fromkeys(ranked[:k], WEIGHT_ONLY)
        rows[f"{k} weight-only, rest dynamic"] = candidate({**dict.fromkeys(matmuls, DYNAMIC), **kept})
    return rows


def _most_sensitive(app: SharingApp, matmuls: list[str]) -> list[str]:
    for path in sorted((app.home.cache / "guides").glob("*.json")):
        guide = Guide.from_json(json.loads(path.read_text()))
        names = [slot.name for slot in guide.usual]
        if set(matmuls) <= set(names):
            costs = sensitivities(guide)[guide.rewrites[0]]
            of_dynamic = {
                slot.name: float(
                    cost[[at for at, one in enumerate(slot.options) if one.error_kind == "dynamic"]].min()
                )
                for slot, cost in zip(guide.usual, costs, strict=True)
                if slot.name in matmuls
            }
            return sorted(matmuls, key=lambda name: -of_dynamic[name])
    raise SystemExit("no guide of MiniLM: run its searches first")


def guided_points(app: SharingApp) -> dict[str, Candidate]:
    """Candidates on the front of agreement and speed of each guided search."""
    found: dict[str, Candidate] = {}
    for run in (run for run in runs_of(app, MODEL) if run.strategy == "guided"):
        trials = [trial for trial in app.trials(run.name) if trial.measurement is not None]
        costs = [
            [trial.measurement.accuracy.drop, trial.measurement.latency.latency_ms]
            for trial in trials
            if trial.measurement is not None
        ]
        for row in front_rows(np.array(costs)):
            found[trials[row].digest] = trials[row].candidate
    return found
