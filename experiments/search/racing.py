"""Measure racing: how often it is wrong at the boundary, and how little of the split bad candidates take.

    python experiments/search/racing.py BENCH_FOLDER [--home DIR] [--out FILE]

BENCH_FOLDER holds the specs, models and data. The simulations need no model. The races are those of a
search, block by block, over per-example values of real candidates, each in 50 orders of the split. What
is found is printed, and kept under `racing` in results.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoq.calibrating import open_stitchers
from autoq.core.choices import Candidate, Choice, Precision
from autoq.evaluation.accuracy import SplitScorer
from autoq.evaluation.contest import Contest, Opponent, Stopping
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.order import ScoringOrder
from autoq.evaluation.racing import Race
from autoq.evaluation.scores import Score
from autoq.evaluation.statistics import Values
from autoq.exporting import Silent
from autoq.home import Home
from autoq.preparation import keys_of, prepare, prepare_sources, workbench_factory
from autoq.spec.loading import load_spec

ALPHA, ALLOWED = 0.01, 0.01
N_SIMULATIONS, N_ORDERS = 2000, 50
N_EXAMPLES = 5000
TRULY_BAD = 5 * ALLOWED

# Uniform candidates: weight bits and granularity of every layer, 8-bit activations.
CANDIDATES = {
    "8 bits per channel": Choice.of("int8", weight_bits=8, calibration="mse"),
    "6 bits per channel": Choice.of("int8", weight_bits=6, calibration="mse"),
    "4 bits per channel": Choice.of("int8", weight_bits=4, calibration="mse"),
    "4 bits per tensor": Choice.of("int8", weight_bits=4, granularity="tensor", calibration="mse"),
    "3 bits per tensor": Choice.of("int8", weight_bits=3, granularity="tensor", calibration="mse"),
    "2 bits per tensor": Choice.of("int8", weight_bits=2, granularity="tensor", calibration="mse"),
}


def simulate() -> list[dict[str, Any]]:
    """Race differences whose mean is exactly what is allowed: every stop is a mistake."""
    generator = np.random.default_rng(0)
    rows = []
    for name, draws in boundary_populations(generator).items():
        assert math.isclose(draws.mean(), ALLOWED, abs_tol=1e-12)
        stopped = sum(
            Race(len(draws), ALLOWED, alpha=ALPHA).feed(generator.permutation(draws))
            for _ in range(N_SIMULATIONS)
        )
        bound = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / N_SIMULATIONS)
        share = stopped / N_SIMULATIONS
        rows.append({"population": name, "n": N_SIMULATIONS, "stopped": share, "bound": bound})
        print(f"  {name}: {share:.4f} of {N_SIMULATIONS} stopped, at most {bound:.4f} expected", flush=True)
    return rows


def boundary_populations(generator: np.random.Generator) -> dict[str, Values]:
    """Differences of mean `ALLOWED`: of a classifier's hits, with few and many flips, and continuous."""
    continuous = generator.beta(2, 5, N_EXAMPLES) - 0.25
    return {
        "losses alone": _flips(ALLOWED, 0.0),
        "few gains": _flips(ALLOWED, 0.005),
        "many flips": _flips(ALLOWED, 0.1),
        "continuous": continuous - continuous.mean() + ALLOWED,
    }


def _flips(mean: float, gains: float) -> Values:
    n_gained = round(N_EXAMPLES * gains)
    n_lost = round(N_EXAMPLES * mean) + n_gained
    return np.concatenate([np.ones(n_lost), -np.ones(n_gained), np.zeros(N_EXAMPLES - n_lost - n_gained)])


def race_for_real(bench: Path, home: Path) -> dict[str, Any]:
    """Replay races of real candidates over many orders of the search split."""
    metric, baseline, values, order_of = score_candidates(bench, home)
    rows = []
    for name, own in values.items():
        drop = float((baseline - own).mean()) * metric.sign
        races = [_replay(order_of(seed), metric, baseline, own) for seed in range(N_ORDERS)]
        stopped = [race for race in races if race["is_stopped"]]
        rows.append(
            {
                "candidate": name,
                "drop": drop,
                "stopped": len(stopped) / N_ORDERS,
                "share_used": float(np.mean([race["share_used"] for race in races])),
                "intervals_with_the_drop": (
                    sum(race["low"] <= drop <= race["high"] for race in stopped) / len(stopped)
                    if stopped
                    else None
                ),
                "error_of_estimate": (
                    float(np.mean([abs(race["drop"] - drop) for race in stopped])) if stopped else None
                ),
            }
        )
        print(
            f"  {name}: drop {drop:+.4f}, {len(stopped)} of {N_ORDERS} stopped, "
            f"{rows[-1]['share_used']:.1%} of the split used",
            flush=True,
        )
    bad = [row["share_used"] for row in rows if row["drop"] >= TRULY_BAD]
    kept = [row["stopped"] for row in rows if row["drop"] <= ALLOWED]
    return {
        "n_examples": len(baseline),
        "allowed_drop": ALLOWED,
        "rows": rows,
        "share_used_by_bad": float(np.mean(bad)) if bad else None,
        "wrongly_stopped": float(np.mean(kept)) if kept else None,
    }


def score_candidates(bench: Path, home: Path) -> tuple[MetricSpec, Values, dict[str, Values], Any]:
    """Score the float model and every candidate on the whole search split, per example."""
    opened = Home.open(home)
    ready = prepare(load_spec(bench / "mobilenetv2.yaml"), opened, Silent())
    sources = prepare_sources(ready, opened, Silent())
    keys = keys_of(sources)
    stitchers = open_stitchers(opened, keys, ready.target)
    settings = workbench_factory(ready, keys, opened).settings
    split, feeding = ready.data.search, settings.feeding
    scorer = SplitScorer(split, settings.metric, feeding, output=settings.output)
    baseline = scorer.score_baseline(ready.target.open(ready.model.artifact)).values
    assert baseline is not None, "the bench is scored per example"
    layers = [layer.name for layer in ready.model.summary.layers]
    ops = dict.fromkeys((op.name for op in ready.model.summary.ops), Precision.INT8)
    found: dict[str, Values] = {}
    for name, choice in CANDIDATES.items():
        session = ready.target.open(
            stitchers.assemble(Candidate.of(dict.fromkeys(layers, choice), ops)).artifact
        )
        values = scorer.score(session).values
        session.close()
        assert values is not None, "nothing stops it"
        found[name] = values

    def order_of(seed: int) -> ScoringOrder:
        return ScoringOrder.of(split, feeding.batch_size, seed=seed)

    return settings.metric, baseline, found, order_of


def _replay(order: ScoringOrder, metric: MetricSpec, baseline: Values, own: Values) -> Mapping[str, Any]:
    """Race as a search does, with the values that running the model gave."""
    stopping = Stopping(opponent=Opponent(baseline, ALLOWED, ALPHA))
    contest = Contest(order, metric, Score(float(baseline.mean()), baseline, len(baseline)), stopping)
    contest.values[:] = own
    for block in order.blocks():
        if (estimate := contest.verdict_after(block)) is not None:
            assert estimate.drop_ci is not None, "a race has an interval"
            low, high = estimate.drop_ci
            share = estimate.n_examples / order.n_examples
            return {"is_stopped": True, "share_used": share, "drop": estimate.drop, "low": low, "high": high}
    return {"is_stopped": False, "share_used": 1.0}


def bars_of(simulations: Sequence[Mapping[str, Any]], races: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold both parts to what is asked of races."""
    stopped = max(simulations, key=lambda one: one["stopped"] - one["bound"])
    used = 100 * races["share_used_by_bad"]
    return [
        {
            "what": f"racing: wrong stops in {stopped['n']:,} simulations at the boundary, %",
            "figure": 100 * stopped["stopped"],
            "bar": f"<= {100 * stopped['bound']:.2f}",
            "met": stopped["stopped"] <= stopped["bound"],
        },
        {
            "what": "racing: share of the split that bad candidates use, %",
            "figure": used,
            "bar": "<= 25",
            "met": used <= 25,
        },
    ]


def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    print("simulations at the boundary", flush=True)
    simulations = simulate()
    print("races of glyph MobileNetV2", flush=True)
    races = race_for_real(args.bench, args.home)
    results["racing"] = {"simulations": simulations, "races": races, "bars": bars_of(simulations, races)}
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
