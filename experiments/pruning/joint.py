"""Bits alone against bits and widths together, by whole guided searches on ResNet-18.

    python experiments/pruning/joint.py BENCH_FOLDER [--trials 40] [--home DIR]

The fronts of both searches are timed afresh in one run, interleaved with the float model; the share of the
gap is that of experiments/search. What is found is kept under `joint` in results.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.append(str(Path(__file__).parent.parent / "search"))  # quality, searches

from quality import time_afresh
from searches import Printing, SharingApp

from autoq.core.choices import Candidate
from autoq.core.fronts import front_rows
from autoq.core.hypervolume import hypervolume
from autoq.core.measurements import Measurement
from autoq.search.records import TrialRecord
from autoq.spec.loading import load_spec, spec_from_json

MODEL = "resnet18"
WIDTHS = [1.0, 0.75, 0.62, 0.58, 0.5]  # shares of the latency of all-int8 that narrower models aim at
MIN_GAIN, MIN_OVER_INT8, MIN_OVER_FLOAT = 1.15, 1.65, 7.5
MAX_DROP = 0.01


def search(app: SharingApp, bench: Path, name: str, n_trials: int, *, widths: bool) -> None:
    """Search with the ready space, or with the same space and widths."""
    overrides: dict[str, Any] = {
        "name": name,
        "search.trials": n_trials,
        "timing.search_s": 1.0,
        "timing.final_s": 1.0,
        "data.test": None,
    }
    if widths:
        space = yaml.safe_load((files("autoq.search_spaces") / "cnn.yaml").read_text())
        overrides["space"] = {**space, "rewrites": {**space["rewrites"], "widths": WIDTHS}}
    print(name, flush=True)
    app.search(load_spec(bench / f"{MODEL}.yaml", overrides), Printing(), resume=True)


def compare(app: SharingApp) -> dict[str, Any]:
    """Time both fronts, and say how much more of the gap widths close."""
    record = app.record("joint")
    assert record.baseline is not None
    size_bytes = record.baseline.size_bytes
    members: dict[str, TrialRecord] = {}
    by_search: dict[str, set[str]] = {}
    for name in ("bits", "joint"):
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
    reference = np.array([2 * MAX_DROP, 1e-9])
    plain = {d for d, t in members.items() if t.origin.startswith("anchor ") and d in by_search["bits"]}
    volume = {
        name: hypervolume(np.array([points[d] for d in (*found, *plain)]), reference)
        for name, found in by_search.items()
    }
    int8 = min(ratios[d] for d in plain)
    within = [d for d, point in points.items() if point[0] <= MAX_DROP + 1e-9]
    best = min(within, key=lambda digest: ratios[digest])
    found = members[best].measurement
    assert found is not None
    gain = volume["joint"] / volume["bits"]
    over_float, over_int8 = 1 / ratios[best], int8 / ratios[best]
    print(
        f"  best within a point: {over_float:.2f}x over float, {over_int8:.2f}x over int8, gain {gain:.2f}x"
    )
    return {
        "volume": volume,
        "best": {
            "trial": members[best].number,
            "origin": members[best].origin,
            "drop": found.accuracy.drop,
            "drop_ci": found.accuracy.drop_ci,
            "over_float": over_float,
            "over_int8": over_int8,
            "size_bytes": found.size.size_bytes,
            "widths": dict(members[best].candidate.rewrites.widths),
        },
        "points": [
            {"drop": float(points[d][0]), "ratio": ratios[d], "joint_only": d not in by_search["bits"]}
            for d in points
        ],
        "bars": [
            _bar("volume of drop and ln speed-up, joint over bits alone", gain, MIN_GAIN),
            _bar(
                "best within a point of accuracy, over the fastest all-int8 anchor", over_int8, MIN_OVER_INT8
            ),
            _bar("the same over float", over_float, MIN_OVER_FLOAT),
        ],
    }


def _bar(what: str, figure: float, least: float) -> dict[str, Any]:
    return {"what": what, "figure": figure, "bar": f">= {least:g} x", "met": figure >= least}


def _costs(measurement: Measurement | None, size_bytes: int) -> list[float]:
    assert measurement is not None
    drop = max(measurement.accuracy.drop, 0.0)
    return [drop, measurement.latency.latency_ms, measurement.size.bundle_bytes / size_bytes]


def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    app = SharingApp(args.home)
    search(app, args.bench, "bits", args.trials, widths=False)
    search(app, args.bench, "joint", args.trials, widths=True)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    results["joint"] = compare(app)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    app.close()


if __name__ == "__main__":
    main()
