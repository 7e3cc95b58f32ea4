"""The latency model on candidates that it has not seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from quality import fresh_file, time_afresh
from scipy.stats import spearmanr
from searches import Run, SharingApp, run_search, runs_of

from autoq.search.guide import Guide, Stitch
from autoq.search.latency_model import LatencyModel, Timing
from autoq.spec.loading import spec_from_json

N_SEEN = 20
_Z = 1.96


def latency_model(app: SharingApp, bench: Path, model: str) -> dict[str, Any]:
    """Fit to the probes and anchors, 20 in all, and foretell every other candidate that some run timed.

    Where fronts have been timed afresh, only those candidates, by these longer timings. In a home without
    a run of the model the guided ones are made, and all their candidates are timed afresh.
    """
    runs = _runs(app, bench, model)
    guide = _guide(app, runs)
    probes = [
        Timing(stitch, probe.ratio, probe.error)
        for probe in guide.latency_probes
        if (stitch := guide.stitch(probe.candidate)) is not None
    ]
    anchors, others = _timed(app, guide, runs)
    seen = [*probes, *anchors.values()][:N_SEEN]
    known = {timing.stitch for timing in seen}
    unseen = [timing for stitch, timing in others.items() if stitch not in known]
    foretold, sd = LatencyModel(guide, seen).predict([timing.stitch for timing in unseen])
    measured = np.array([timing.ratio for timing in unseen])
    error = np.abs(foretold / measured - 1)
    ranks = float(spearmanr(foretold, measured).statistic)
    covered = float((np.abs(foretold - measured) <= 2 * sd).mean())
    noise = float(np.median([timing.error for timing in unseen]) * _Z)
    print(
        f"  {model}: {len(seen)} seen, {len(unseen)} foretold, median error {np.median(error):.2%}, "
        f"rank correlation {ranks:.3f}",
        flush=True,
    )
    return {
        "seen": len(seen),
        "unseen": len(unseen),
        "median_error": float(np.median(error)),
        "rank_correlation": ranks,
        "within_two_sd": covered,
        "median_half_width_of_measurements": noise,
        "foretold": foretold.tolist(),
        "measured": measured.tolist(),
        "bars": [
            {
                "what": f"{model}: median absolute error, %",
                "figure": 100 * float(np.median(error)),
                "bar": "<= 5",
                "met": bool(np.median(error) <= 0.05),
            },
            {"what": f"{model}: rank correlation", "figure": ranks, "bar": ">= 0.95", "met": ranks >= 0.95},
        ],
    }


def _runs(app: SharingApp, bench: Path, model: str) -> list[Run]:
    known = {record.name for record in app.searches()}
    if found := [run for run in runs_of(app, model) if run.name in known]:
        return found
    guided = [run for run in runs_of(app, model) if run.strategy == "guided"]
    for run in guided:
        run_search(app, bench, run)
    trials = [trial for run in guided for trial in app.trials(run.name)]
    measured = {
        trial.digest: trial.candidate
        for trial in trials
        if trial.measurement is not None and not trial.measurement.accuracy.is_estimate
    }
    spec = spec_from_json(app.record(guided[0].name).spec)
    fresh_file(app, model).write_text(json.dumps(time_afresh(app, spec, measured)))
    return guided


def _guide(app: SharingApp, runs: Sequence[Run]) -> Guide:
    """The guide of the model's searches: the one that knows its layers."""
    layers = set(app.trials(runs[0].name)[0].candidate.by_layer)
    for path in sorted((app.home.cache / "guides").glob("*.json")):
        guide = Guide.from_json(json.loads(path.read_text()))
        if layers == {slot.name for slot in guide.usual if slot.is_layer}:
            return guide
    raise SystemExit(f"no guide of {runs[0].model}: run its searches first")


def _timed(
    app: SharingApp, guide: Guide, runs: Sequence[Run]
) -> tuple[dict[Stitch, Timing], dict[Stitch, Timing]]:
    anchors: dict[Stitch, Timing] = {}
    others: dict[Stitch, Timing] = {}
    path = fresh_file(app, runs[0].model)
    fresh: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for run in runs:
        record = app.record(run.name)
        assert record.baseline is not None
        for trial in app.trials(run.name):
            stitch = guide.stitch(trial.candidate)
            if trial.measurement is None or stitch is None:
                continue
            low, high = trial.measurement.latency.speedup_ci
            error = float(np.log(high / low)) / (2 * _Z)
            timing = Timing(stitch, 1 / trial.measurement.latency.speedup, error)
            if fresh and not trial.origin.startswith("anchor "):
                if trial.digest not in fresh:
                    continue
                timing = replace(timing, ratio=fresh[trial.digest])
            (anchors if trial.origin.startswith("anchor ") else others).setdefault(stitch, timing)
    return anchors, others
