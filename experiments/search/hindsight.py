"""What the latency model foretells of candidates it has not seen, against what they took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality import time_afresh
from scipy.stats import spearmanr
from searches import Run, SharingApp, run_search, runs_of

from autoq.core.choices import Candidate
from autoq.core.measurements import Measurement
from autoq.exporting import Silent
from autoq.preparation import prepare
from autoq.search.guide import Guide
from autoq.search.latency_model import LatencyModel, Timing
from autoq.search.samplers import new_sampler
from autoq.search.studies import new_study, space_distributions
from autoq.spec.loading import spec_from_json
from autoq.spec.schema import SearchSpec

N_SEEN = 20
N_RANDOM = 30  # candidates drawn from the whole space, beside those that guided chose
_Z = 1.96


def latency_model(app: SharingApp, bench: Path, model: str) -> dict[str, Any]:
    """Fit to the probes and anchors, 20 in all, and foretell all that guided chose, and random candidates.

    These are timed afresh, in one process.
    """
    runs = [run for run in runs_of(app, model) if run.strategy == "guided"]
    for run in runs:
        run_search(app, bench, run)
    spec = spec_from_json(app.record(runs[0].name).spec)
    guide = _guide(app, runs)
    probes = [
        Timing(stitch, probe.ratio, probe.error)
        for probe in guide.latency_probes
        if (stitch := guide.stitch(probe.candidate)) is not None
    ]
    seen = [*probes, *_anchors(app, guide, runs[0])][:N_SEEN]
    chosen, drawn = _chosen(app, runs), _drawn(app, spec)
    known = {timing.stitch for timing in seen}
    unseen = {
        digest: stitch
        for digest, candidate in {**drawn, **chosen}.items()
        if (stitch := guide.stitch(candidate)) is not None and stitch not in known
    }
    ratios = _timed(app, model, spec, {**drawn, **chosen})
    measured = np.array([ratios[digest] for digest in unseen])
    foretold, sd = LatencyModel(guide, seen).predict(list(unseen.values()))
    is_chosen = np.array([digest in chosen for digest in unseen])
    parts = {"all": np.full(len(unseen), True), "chosen by guided": is_chosen, "random": ~is_chosen}
    told = {name: _agreement(foretold[mine], measured[mine]) for name, mine in parts.items()}
    # What the searches measured of the same candidates foretells these timings no better than noise allows.
    timed_before = _timed_in_searches(app, runs)
    before = np.array([timed_before[digest] for digest in unseen if digest in chosen])
    told["timed before"] = _agreement(before, measured[is_chosen])
    for name, one in told.items():
        print(
            f"  {model}, {name}: {len(seen)} seen, {one['n']} foretold, median error "
            f"{one['median_error']:.2%}, rank correlation {one['rank_correlation']:.3f}",
            flush=True,
        )
    error, ranks = told["all"]["median_error"], told["all"]["rank_correlation"]
    return {
        "seen": len(seen),
        "by_part": told,
        "within_two_sd": float((np.abs(foretold - measured) <= 2 * sd).mean()),
        "foretold": foretold.tolist(),
        "measured": measured.tolist(),
        "is_chosen": is_chosen.tolist(),
        "bars": [
            {
                "what": f"{model}: median absolute error, %",
                "figure": 100 * error,
                "bar": "<= 5",
                "met": error <= 0.05,
            },
            {"what": f"{model}: rank correlation", "figure": ranks, "bar": ">= 0.95", "met": ranks >= 0.95},
        ],
    }


def _agreement(foretold: Any, measured: Any) -> dict[str, Any]:
    return {
        "n": len(measured),
        "median_error": float(np.median(np.abs(foretold / measured - 1.0))),
        "rank_correlation": float(spearmanr(foretold, measured)[0]),
    }


def _guide(app: SharingApp, runs: Sequence[Run]) -> Guide:
    """The guide of the model's searches: of those that know its layers the latest."""
    layers = set(app.trials(runs[0].name)[0].candidate.by_layer)
    paths = (app.home.cache / "guides").glob("*.json")
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        guide = Guide.from_json(json.loads(path.read_text()))
        if layers == {slot.name for slot in guide.usual if slot.is_layer}:
            return guide
    raise SystemExit(f"no guide of {runs[0].model}: run its searches first")


def _anchors(app: SharingApp, guide: Guide, run: Run) -> list[Timing]:
    found = []
    for trial in app.trials(run.name):
        stitch = guide.stitch(trial.candidate)
        if trial.origin.startswith("anchor ") and trial.measurement is not None and stitch is not None:
            found.append(Timing(stitch, 1 / trial.measurement.latency.speedup, _error(trial.measurement)))
    return found


def _error(measurement: Measurement) -> float:
    low, high = measurement.latency.speedup_ci
    return float(np.log(high / low)) / (2 * _Z)


def _chosen(app: SharingApp, runs: Sequence[Run]) -> dict[str, Candidate]:
    return {
        trial.digest: trial.candidate
        for run in runs
        for trial in app.trials(run.name)
        if trial.measurement is not None and not trial.origin.startswith("anchor ")
    }


def _timed_in_searches(app: SharingApp, runs: Sequence[Run]) -> dict[str, float]:
    return {
        trial.digest: 1 / trial.measurement.latency.speedup
        for run in runs
        for trial in app.trials(run.name)
        if trial.measurement is not None
    }


def _drawn(app: SharingApp, spec: SearchSpec) -> dict[str, Candidate]:
    """Candidates from anywhere in the space; the same ones every time."""
    space = prepare(spec, app.home, Silent()).space
    study, distributions = new_study(spec.goals), space_distributions(space)
    study.sampler = new_sampler("random", 0)
    found = [space.decode(study.ask(dict(distributions)).params) for _ in range(N_RANDOM)]
    return {candidate.digest: candidate for candidate in found}


def _timed(
    app: SharingApp, model: str, spec: SearchSpec, candidates: Mapping[str, Candidate]
) -> dict[str, float]:
    """Latency ratios by digest: those of an earlier call of the same candidates, else measured now."""
    path = app.home.root / f"unseen-{model}.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    if known.keys() != candidates.keys():
        known = time_afresh(app, spec, candidates)
        path.write_text(json.dumps(known))
    return known
