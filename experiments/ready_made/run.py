"""Compare autoq's front with what ONNX Runtime's own quantisation tools make of the same model.

    python experiments/ready_made/run.py BENCH_FOLDER [--trials 40] [--only resnet18]

BENCH_FOLDER holds the specs, models and data. Every row of the ready-made tools is rebuilt, scored by
the same code at the same batch size, and timed interleaved with a point of the search that is no more
than 0.2 points less accurate: the ratio of the two is measured directly, not derived.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rows import make_rows

from autoq.app import App
from autoq.core.artifacts import ModelArtifact
from autoq.evaluation.accuracy import SplitScorer
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.ports import Session
from autoq.evaluation.timing import Effort, measure_latency
from autoq.exporting import Silent, rebuild
from autoq.preparation import keys_of, prepare, prepare_sources, workbench_factory
from autoq.search.outcome import Outcome, Point
from autoq.spec.loading import load_spec
from autoq.spec.schema import OnnxModelSpec

SPECS = {"resnet18": False, "mobilenetv2": False, "minilm": True}  # name -> is a transformer
MAX_ACCURACY_LOSS = 0.002
MIN_SPEED = 0.97
N_CONTENDERS = 2  # points timed against each row, the fastest first
EFFORT = Effort(seconds=4.0, half_width=0.01)
FINAL_S = 5.0  # of timing for each finalist


class Printing(Silent):
    def on_phase(self, name: str, detail: str) -> None:
        print(f"  {name}: {detail}", flush=True)


def compare_model(name: str, bench: Path, home: Path, n_trials: int) -> dict[str, Any]:
    """Search one model and hold its points against every ready-made row."""
    # Fixed effort, so that the share of a trial that is not the model itself can be compared.
    overrides = {"search.trials": n_trials, "timing.fixed_effort": True, "timing.final_s": FINAL_S}
    spec = load_spec(bench / f"{name}.yaml", overrides)
    app = App(home)
    outcome = app.search(spec, Printing(), resume=True)
    ready = prepare(spec, app.home, Silent())
    factory = workbench_factory(ready, keys_of(prepare_sources(ready, app.home, Silent())), app.home)
    settings = factory.settings
    scorer = SplitScorer(ready.data.search, settings.metric, settings.feeding, output=settings.output)
    floats = ready.target.open(ready.model.artifact)
    float_score = scorer.score_baseline(floats).value
    feeds = factory.data.timing_feeds
    assert isinstance(spec.model, OnnxModelSpec)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_rows(
            Path(spec.model.path), Path(folder), ready.data.calibration, transformer=SPECS[name]
        )
        for index, (row, path) in enumerate(files.items()):
            session = ready.target.open(ModelArtifact(path=path))
            with machine_clock():
                accuracy = scorer.accuracy(session).value
                ratio = measure_latency(session, floats, feeds, EFFORT, seed=index).log_ratio.exp()
                rival = best_rival(app, outcome, accuracy, session, feeds, seed=index)
            size = path.stat().st_size
            rows.append(
                {"row": row, "accuracy": accuracy, "speedup": 1 / ratio.value, "size_bytes": size, **rival}
            )
            print_row(rows[-1])
    app.close()
    return {
        "float": {"accuracy": float_score, **asdict(outcome.record.baseline)},
        "environment": dict(outcome.record.environment),
        "rows": rows,
        "front": [front_row(point) for point in outcome.front],
        "overhead": trial_overheads(outcome),
    }


def best_rival(
    app: App, outcome: Outcome, accuracy: float, row: Session, feeds: Any, *, seed: int
) -> dict[str, Any]:
    """Time the fastest points that are accurate enough against a row; return the best of them."""
    enough = [p for p in outcome.points if p.measurement.accuracy.value >= accuracy - MAX_ACCURACY_LOSS]
    enough.sort(key=lambda point: point.measurement.latency.latency_ms)
    best: dict[str, Any] = {"covered": False, "trial": None}
    for point in enough[:N_CONTENDERS]:
        built = rebuild(app.home, outcome, point, None)
        session = built.target.open(built.artifact)
        ratio = measure_latency(session, row, feeds, EFFORT, seed=seed).log_ratio.exp()
        session.close()
        found = {
            "covered": 1 / ratio.value >= MIN_SPEED,
            "trial": point.trial.number,
            "origin": point.trial.origin,
            "trial_accuracy": point.measurement.accuracy.value,
            "trial_size_bytes": point.measurement.size.size_bytes,
            "speed_over_row": 1 / ratio.value,
            "speed_over_row_ci": [1 / ratio.high, 1 / ratio.low],
        }
        if best["trial"] is None or found["speed_over_row"] > best["speed_over_row"]:
            best = found
    return best


def front_row(point: Point) -> dict[str, Any]:
    """Return the figures of a front point."""
    keys = ("trial", "origin", "accuracy", "accuracy_drop", "test_accuracy_drop", "holds", "latency_ms",
            "speedup", "speedup_ci", "size_bytes", "bundle_bytes", "feasible")  # fmt: skip
    content = point.to_json()
    return {key: content[key] for key in keys}


def trial_overheads(outcome: Outcome) -> dict[str, Any]:
    """Share and seconds of a trial that were not spent in the model."""
    seconds = [point.trial.seconds for point in outcome.points]
    rest = np.array([parts["total"] - parts["inference"] for parts in seconds])
    total = np.array([parts["total"] for parts in seconds])
    parts: Mapping[str, float] = {
        name: float(np.median([one.get(name, 0.0) for one in seconds])) for name in seconds[0]
    }
    return {
        "median_share": float(np.median(rest / total)),
        "max_share": float((rest / total).max()),
        "median_s": float(np.median(rest)),
        "max_s": float(rest.max()),
        "median_parts_s": parts,
    }


def print_row(row: Mapping[str, Any]) -> None:
    mark = "covered" if row["covered"] else "NOT COVERED"
    rival = "no point is accurate enough"
    if row["trial"] is not None:
        low, high = row["speed_over_row_ci"]
        rival = (
            f"trial {row['trial']} ({row['origin']}): {row['trial_accuracy']:.4f}, "
            f"{row['speed_over_row']:.3f}x its speed [{low:.3f}, {high:.3f}]"
        )
    print(f"  {row['row']}: {row['accuracy']:.4f} at {row['speedup']:.2f}x | {rival} | {mark}", flush=True)


def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)  # importing ONNX Runtime's quantiser turns INFO on
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--only", choices=SPECS)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in [args.only] if args.only else SPECS:
        print(name, flush=True)
        results[name] = compare_model(name, args.bench, args.home, args.trials)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    covered = [row["covered"] for name in SPECS if name in results for row in results[name]["rows"]]
    print(f"{sum(covered)} of {len(covered)} rows covered")


if __name__ == "__main__":
    main()
