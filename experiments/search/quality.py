"""How good the fronts are that each run found, on timings made afresh in one go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from searches import Run, SharingApp, run_search, runs_of

from autoq.calibrating import open_stitchers
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Candidate
from autoq.core.fronts import front_rows
from autoq.core.hypervolume import hypervolume
from autoq.core.measurements import Measurement
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.timing import Effort, measure_latency
from autoq.exporting import Silent
from autoq.preparation import keys_of, prepare, prepare_sources, workbench_factory
from autoq.search.records import TrialRecord
from autoq.spec.loading import spec_from_json
from autoq.spec.schema import SearchSpec

EFFORT = Effort(seconds=1.0, half_width=0.005)
N_PASSES = 3  # over all candidates, each in another order
N_EARLY = 12  # trials beyond the anchors
SHARE_EARLY = 0.9
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What one run measured, and who of that may be on its front."""

    run: Run
    trials: Sequence[TrialRecord]
    n_anchors: int
    suggest_s: Sequence[float]

    def until(self, n_trials: int | None) -> list[TrialRecord]:
        counted = [trial for trial in self.trials if trial.measurement is not None]
        return counted if n_trials is None else [trial for trial in counted if trial.number < n_trials]


def quality(app: SharingApp, bench: Path, model: str) -> dict[str, Any]:
    """Run every search of a model, time all fronts afresh, and compare the gaps they close."""
    found = [_found(app, bench, run) for run in runs_of(app, model)]
    spec = spec_from_json(app.record(found[0].run.name).spec)
    size_bytes = _baseline(app, found[0].run).size_bytes
    wanted: dict[str, Candidate] = {}
    measured: dict[str, Measurement] = {}
    for one in found:
        for cut in (one.n_anchors, one.n_anchors + N_EARLY, None):
            trials = one.until(cut)
            rows = front_rows(np.array([_recorded(t.measurement, size_bytes) for t in trials]))
            members = [*(trials[row] for row in rows), *one.until(one.n_anchors)]
            wanted |= {trial.digest: trial.candidate for trial in members}
            measured |= {trial.digest: trial.measurement for trial in members if trial.measurement}
    print(f"timing {len(wanted)} points of {model} afresh", flush=True)
    ratios = time_afresh(app, spec, wanted)
    fresh_file(app, model).write_text(json.dumps(ratios))
    allowed = spec.constraints.max_accuracy_drop
    assert allowed is not None
    reference = np.array([2 * allowed, 1e-9, 1e-9])
    points = {
        digest: np.array(
            [max(one.accuracy.drop, 0.0), np.log(ratios[digest]), np.log(one.size.bundle_bytes / size_bytes)]
        )
        for digest, one in measured.items()
    }
    anchors = _points(found[0].until(found[0].n_anchors), points)
    floor = hypervolume(anchors, reference)
    union = hypervolume(_stack([*points.values()]), reference)

    def share(trials: Iterable[TrialRecord]) -> float:
        own = _stack([anchors, _points(trials, points)])
        return (hypervolume(own, reference) - floor) / (union - floor)

    rows = [
        {
            "strategy": one.run.strategy,
            "seed": one.run.seed,
            "trials": len(one.until(None)),
            "closed": share(one.until(None)),
            "closed_early": share(one.until(one.n_anchors + N_EARLY)),
            "suggest_s": {"median": median(one.suggest_s), "max": max(one.suggest_s)},
        }
        for one in found
    ]
    for row in rows:
        print(
            f"  {row['strategy']} {row['seed']}: {row['closed']:.3f} of the gap, "
            f"{row['closed_early']:.3f} early",
            flush=True,
        )
    return {
        "rows": rows,
        "volume_of_anchors": floor,
        "volume_of_union": union,
        "points": [
            {
                "digest": digest,
                "drop": float(measured[digest].accuracy.drop),
                "ratio": ratios[digest],
                "bundle_bytes": measured[digest].size.bundle_bytes,
                "found_by": _finders(digest, found),
            }
            for digest in points
        ],
        "bars": _bars(rows, model),
    }


def fresh_file(app: SharingApp, model: str) -> Path:
    """Where the latencies that were timed afresh are kept, as ratios by digest."""
    return app.home.root / f"fresh-{model}.json"


def _bars(rows: Sequence[Mapping[str, Any]], model: str) -> list[dict[str, Any]]:
    def medians(key: str) -> dict[str, float]:
        names = dict.fromkeys(row["strategy"] for row in rows)
        return {name: median(row[key] for row in rows if row["strategy"] == name) for name in names}

    closed = medians("closed")
    guided = closed.pop("guided")
    best, other = max((value, name) for name, value in closed.items())
    early = median(
        row["closed_early"] / row["closed"]
        for row in rows
        if row["strategy"] == "guided" and row["closed"] > 0
    )
    slowest = max(row["suggest_s"]["max"] for row in rows if row["strategy"] == "guided")
    return [
        {
            "what": f"{model}: share of the gap that guided closes, best other ({other}) {best:.3f}",
            "figure": guided,
            "bar": f">= {best:.3f}",
            "met": guided >= best,
        },
        {
            "what": f"{model}: of that, closed within {N_EARLY} trials beyond the anchors",
            "figure": early,
            "bar": f">= {SHARE_EARLY}",
            "met": early >= SHARE_EARLY,
        },
        {
            "what": f"{model}: slowest suggestion of guided, s",
            "figure": slowest,
            "bar": "<= 0.5",
            "met": slowest <= 0.5,
        },
    ]


def time_afresh(
    app: SharingApp,
    spec: SearchSpec,
    candidates: Mapping[str, Candidate],
    edits: Mapping[str, Callable[[ModelArtifact], ModelArtifact]] | None = None,
) -> dict[str, float]:
    """Latency of each candidate as a ratio to the float model, interleaved with it, in one process.

    Args:
        app: Whose home has the statistics and variants.
        spec: Of any search of the model.
        candidates: By the name that their ratio gets.
        edits: What is done to the assembled model of some of them.
    """
    ready = prepare(spec, app.home, Silent())
    sources = prepare_sources(ready, app.home, Silent())
    keys = keys_of(sources)
    stitchers = open_stitchers(app.home, keys, ready.target)
    feeds = workbench_factory(ready, keys, app.home).data.timing_feeds
    floats = ready.target.open(ready.model.artifact)
    ratios: dict[str, list[float]] = {digest: [] for digest in candidates}
    generator = np.random.default_rng(0)
    with machine_clock():
        for seed in range(N_PASSES):
            for digest in generator.permutation(list(candidates)):
                artifact = stitchers.assemble(candidates[digest]).artifact
                edit = (edits or {}).get(digest)
                session = ready.target.open(artifact if edit is None else edit(artifact))
                ratio = measure_latency(session, floats, feeds, EFFORT, seed=seed)
                ratios[digest].append(ratio.log_ratio.exp().value)
                session.close()
    return {digest: median(found) for digest, found in ratios.items()}


def _found(app: SharingApp, bench: Path, run: Run) -> Found:
    run_search(app, bench, run)
    trials = app.trials(run.name)
    whole = [t for t in trials if t.measurement is None or not t.measurement.accuracy.is_estimate]
    n_anchors = sum(trial.origin.startswith("anchor ") for trial in trials)
    asked = [trial.seconds.get("suggest", 0.0) for trial in trials if trial.number >= n_anchors]
    return Found(run, whole, n_anchors, asked)


def _baseline(app: SharingApp, run: Run) -> Any:
    baseline = app.record(run.name).baseline
    assert baseline is not None
    return baseline


def _recorded(measurement: Measurement | None, size_bytes: int) -> list[float]:
    assert measurement is not None
    return [
        max(measurement.accuracy.drop, 0.0),
        measurement.latency.latency_ms,
        measurement.size.bundle_bytes / size_bytes,
    ]


def _points(trials: Iterable[TrialRecord], points: Mapping[str, Points]) -> Points:
    return _stack([points[trial.digest] for trial in trials if trial.digest in points])


def _stack(rows: Sequence[Points]) -> Points:
    return np.concatenate([np.atleast_2d(row) for row in rows]) if rows else np.zeros((0, 3))


def _finders(digest: str, found: Sequence[Found]) -> list[str]:
    return sorted({one.run.strategy for one in found if any(trial.digest == digest for trial in one.trials)})
