"""Bits alone against bits and widths together, by whole guided searches.

    python experiments/pruning/joint.py BENCH_FOLDER [--model resnet18] [--refit nested] [--trials 40]

The fronts of both searches are timed afresh in one run, interleaved with the float model; the share of the
gap is that of experiments/search. What is found is kept under `joint-MODEL-REFIT` in results.json beside
this script.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.append(str(Path(__file__).parent.parent / "search"))  # quality, searches

from quality import time_afresh
from searches import Printing, SharingApp, fewer_examples

from autoq.core.choices import Candidate, Refit
from autoq.core.fronts import front_rows
from autoq.core.hypervolume import hypervolume
from autoq.core.measurements import Measurement
from autoq.search.records import TrialRecord
from autoq.spec.loading import load_spec, spec_from_json


@dataclass(frozen=True)
class Subject:
    """A model with the space it is searched in, and what is asked of its narrowed points."""

    space: str
    widths: tuple[float, ...]  # shares of the latency of all-int8 that narrower models aim at
    max_drop: float  # of the points that count; twice that is where the gap ends
    bars: dict[str, float]  # by figure: the least


SUBJECTS = {
    "resnet18": Subject(
        "cnn", (1.0, 0.75, 0.62, 0.58, 0.5), 0.01, {"gain": 1.15, "over_int8": 1.65, "over_float": 7.5}
    ),
    "mobilenetv2": Subject("cnn", (1.0, 0.9, 0.8, 0.7), 0.01, {}),
    "minilm": Subject("transformer", (1.0, 0.9, 0.8, 0.7), 0.10, {"over_unpruned": 1.15}),
}
FIGURES = {
    "gain": "volume of drop and ln speed-up, joint over bits alone",
    "over_int8": "best within the drop, over the fastest all-int8 anchor",
    "over_float": "the same over float",
    "over_unpruned": "narrowed point over the fastest unpruned one that loses no more, the best such ratio",
}


def search(app: SharingApp, bench: Path, model: str, n_trials: int, refit: Refit | None) -> None:
    """Search with the ready space, or with the same space and widths that are refitted in some way."""
    subject, name = SUBJECTS[model], _name(model, refit)
    overrides: dict[str, Any] = {
        **fewer_examples(app, bench, model),
        "constraints.max_accuracy_drop": subject.max_drop,
        "name": name,
        "search.trials": n_trials,
        "timing.search_s": 1.0,
        "timing.final_s": 1.0,
        "data.test": None,
    }
    if refit:
        space = yaml.safe_load((files("autoq.search_spaces") / f"{subject.space}.yaml").read_text())
        widths_of = {"latency": list(subject.widths), "refit": str(refit)}
        overrides["space"] = {**space, "rewrites": {**space["rewrites"], "widths": widths_of}}
    print(name, flush=True)
    app.search(load_spec(bench / f"{model}.yaml", overrides), Printing(), resume=True)


def _name(model: str, refit: Refit | None) -> str:
    return f"{model}-bits" if refit is None else f"{model}-joint-{refit}"


def compare(app: SharingApp, model: str, refit: Refit) -> dict[str, Any]:
    """Time both fronts, and say how much more of the gap widths close."""
    subject, bits, joint = SUBJECTS[model], _name(model, None), _name(model, refit)
    record = app.record(joint)
    assert record.baseline is not None
    size_bytes = record.baseline.size_bytes
    members: dict[str, TrialRecord] = {}
    by_search: dict[str, set[str]] = {}
    for name in (bits, joint):
        trials = [t for t in app.trials(name) if t.measurement and not t.measurement.accuracy.is_estimate]
        costs = np.array([_costs(t.measurement, size_bytes) for t in trials])
        rows = {*front_rows(costs), *front_rows(costs[:, :2])}
        kept = [trials[row] for row in rows] + [t for t in trials if t.origin.startswith("anchor ")]
        members |= {trial.digest: trial for trial in kept}
        by_search[name] = {trial.digest for trial in kept}
    candidates: dict[str, Candidate] = {digest: trial.candidate for digest, trial in members.items()}
    ratios = time_afresh(app, spec_from_json(record.spec), candidates)
    points = {
        digest: np.array([max(trial.measurement.accuracy.drop, 0.0), np.log(ratios[digest])])
        for digest, trial in members.items()
        if trial.measurement
    }
    reference = np.array([2 * subject.max_drop, 1e-9])
    plain = {d for d, t in members.items() if t.origin.startswith("anchor ") and d in by_search[bits]}
    volume = {
        name: hypervolume(np.array([points[d] for d in (*found, *plain)]), reference)
        for name, found in by_search.items()
    }
    int8 = min(ratios[d] for d in plain)
    within = [d for d, point in points.items() if point[0] <= subject.max_drop + 1e-9]
    best = min(within, key=lambda digest: ratios[digest])
    found = members[best].measurement
    assert found is not None
    narrowed = [digest for digest in within if members[digest].candidate.rewrites.widths]
    figures = {
        "gain": volume[joint] / volume[bits],
        "over_int8": int8 / ratios[best],
        "over_float": 1 / ratios[best],
        "over_unpruned": max((_over_unpruned(one, members, points, ratios) for one in narrowed), default=0.0),
    }
    for name, figure in figures.items():
        print(f"  {FIGURES[name]}: {figure:.2f}x")
    return {
        "environment": record.environment,
        "figures": figures,
        "volume": volume,
        "best": {
            "trial": members[best].number,
            "origin": members[best].origin,
            "drop": found.accuracy.drop,
            "drop_ci": found.accuracy.drop_ci,
            "size_bytes": found.size.size_bytes,
            "widths": dict(members[best].candidate.rewrites.widths),
        },
        "points": [
            {
                "drop": float(points[d][0]),
                "ratio": ratios[d],
                "widths": dict(members[d].candidate.rewrites.widths),
            }
            for d in points
        ],
        "bars": [
            {
                "what": FIGURES[name],
                "figure": figures[name],
                "bar": f">= {least:g} x",
                "met": figures[name] >= least,
            }
            for name, least in subject.bars.items()
        ],
    }


def _over_unpruned(
    narrowed: str,
    members: dict[str, TrialRecord],
    points: dict[str, Any],
    ratios: dict[str, float],
) -> float:
    """How much faster a narrowed point is than every unpruned one that is at least as accurate."""
    rivals = [
        ratios[digest]
        for digest, trial in members.items()
        if not trial.candidate.rewrites.widths and points[digest][0] <= points[narrowed][0]
    ]
    return min(rivals, default=1.0) / ratios[narrowed]


def _costs(measurement: Measurement | None, size_bytes: int) -> list[float]:
    assert measurement is not None
    drop = max(measurement.accuracy.drop, 0.0)
    return [drop, measurement.latency.latency_ms, measurement.size.bundle_bytes / size_bytes]


def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--model", choices=SUBJECTS, default="resnet18")
    parser.add_argument("--refit", type=Refit, choices=Refit, default=Refit.SEQUENTIAL)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    app = SharingApp(args.home)
    for refit in (None, args.refit):
        search(app, args.bench, args.model, args.trials, refit)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    results[f"joint-{args.model}-{args.refit}"] = compare(app, args.model, args.refit)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    app.close()


if __name__ == "__main__":
    main()
