"""The timing protocol: intervals of a model against itself, and whether two searches rank alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from searches import SharingApp

from autoq.calibrating import open_stitchers
from autoq.core.choices import Candidate
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.statistics import Estimate
from autoq.evaluation.timing import Effort, TimingSettings, control_of, measure_latency
from autoq.exporting import Silent
from autoq.preparation import keys_of, prepare, prepare_sources, workbench_factory
from autoq.spec.loading import load_spec

N_INTERVALS, N_RANKED, APART = 100, 10, 0.03
BLOCKS_S, N_REPEATS = (0.05, 0.02, 0.01, 0.005, 0.0025), 20
EFFORT, FINAL = TimingSettings().search, TimingSettings().final


def timing(app: SharingApp, bench: Path) -> dict[str, Any]:
    """A/A intervals as a search and its final round report them, and two rankings of ten; on MobileNetV2."""
    ready = prepare(load_spec(bench / "mobilenetv2.yaml"), app.home, Silent())
    sources = prepare_sources(ready, app.home, Silent())
    keys = keys_of(sources)
    stitchers = open_stitchers(app.home, keys, ready.target)
    feeds = workbench_factory(ready, keys, app.home).data.timing_feeds

    def opened(candidate: Candidate | None = None) -> Any:
        artifact = ready.model.artifact if candidate is None else stitchers.assemble(candidate).artifact
        return ready.target.open(artifact)

    def ratio(candidate: Candidate | None, seed: int, effort: Effort = EFFORT) -> Any:
        first, second = opened(candidate), opened()
        try:
            return measure_latency(first, second, feeds, effort, seed=seed)
        finally:
            first.close()
            second.close()

    with machine_clock():
        control = control_of([ratio(None, seed) for seed in range(5)], seed=0)
        found = {
            name: _against_itself(
                [ratio(None, 100 + seed, effort).log_ratio for seed in range(N_INTERVALS)],
                control.noise_floor,
            )
            for name, effort in (("trial", EFFORT), ("final round", FINAL))
        }
        chosen = _ten_apart(app, ratio)
        rankings = [[ratio(one, seed).log_ratio.value for one in chosen] for seed in (1000, 2000)]
    tau = float(kendalltau(*rankings).statistic)
    for name, one in found.items():
        print(
            f"  {name}: {one['intervals_with_one']} of {N_INTERVALS} intervals hold 1.00, median width "
            f"{one['median_width']:.2%} ({one['median_width_without_floor']:.2%} without the noise floor of "
            f"{control.noise_floor:.2%})",
            flush=True,
        )
    print(f"  tau {tau:.3f}", flush=True)
    return {
        "noise_floor": control.noise_floor,
        "against_itself": found,
        "rankings": [np.exp(one).tolist() for one in rankings],
        "bars": [
            *(
                {
                    "what": f"{name}: A/A intervals of {N_INTERVALS} with 1.00",
                    "figure": one["intervals_with_one"],
                    "bar": ">= 90",
                    "met": one["intervals_with_one"] >= 90,
                }
                for name, one in found.items()
            ),
            _width_bar(found["final round"], control.noise_floor),
            {"what": "Kendall's tau of two rankings", "figure": tau, "bar": ">= 0.9", "met": tau >= 0.9},
        ],
    }


def _width_bar(found: Mapping[str, Any], noise_floor: float) -> dict[str, Any]:
    """How narrow intervals get; a machine that disagrees with itself by more is the reason if they do not."""
    alone = 100 * found["median_width_without_floor"]
    return {
        "what": f"final round: median width, % ({alone:.2f} before the noise floor of {noise_floor:.2%})",
        "figure": 100 * found["median_width"],
        "bar": "<= 2, but for the noise floor",
        "met": alone <= 2,
    }


def _against_itself(intervals: Sequence[Estimate], noise_floor: float) -> dict[str, Any]:
    """Of a model's timings against itself: how many hold 1.00, and how wide they are."""
    reported = [one.widened(noise_floor).exp() for one in intervals]
    return {
        "intervals_with_one": sum(one.low <= 1.0 <= one.high for one in reported),
        "median_width": float(np.median([one.high - one.low for one in reported])),
        "intervals_with_one_without_floor": sum(one.low <= 0.0 <= one.high for one in intervals),
        "median_width_without_floor": float(np.median([one.exp().high - one.exp().low for one in intervals])),
        "ratios": [float(np.exp(one.value)) for one in intervals],
    }


def blocks(app: SharingApp, bench: Path) -> dict[str, Any]:
    """A model against itself with blocks of several lengths, in turns: error and width for the same time."""
    ready = prepare(load_spec(bench / "mobilenetv2.yaml"), app.home, Silent())
    keys = keys_of(prepare_sources(ready, app.home, Silent()))
    feeds = workbench_factory(ready, keys, app.home).data.timing_feeds
    found: dict[float, list[tuple[float, float]]] = {length: [] for length in BLOCKS_S}
    with machine_clock():
        for seed in range(N_REPEATS):
            for length in BLOCKS_S:
                first, second = (ready.target.open(ready.model.artifact) for _ in range(2))
                one = measure_latency(first, second, feeds, Effort(1.0, None, length), seed=seed).log_ratio
                found[length].append((one.value, one.half_width))
                first.close()
                second.close()
    rows = [
        {
            "block_s": length,
            "root_mean_square_error": float(np.sqrt(np.mean([value**2 for value, _ in pairs]))),
            "median_half_width": float(np.median([width for _, width in pairs])),
            "intervals_with_one": sum(abs(value) <= width for value, width in pairs) / len(pairs),
        }
        for length, pairs in found.items()
    ]
    for row in rows:
        print(
            f"  {row['block_s'] * 1e3:.0f} ms: error {row['root_mean_square_error']:.2%}, "
            f"half-width {row['median_half_width']:.2%}",
            flush=True,
        )
    return {"rows": rows}


def _ten_apart(app: SharingApp, ratio: Any) -> list[Candidate]:
    """Candidates of the searches, timed once to be chosen at least 3 % apart."""
    pool = {
        trial.digest: trial
        for record in app.searches()
        if record.name.startswith("mobilenetv2-")
        for trial in app.trials(record.name)
        if trial.measurement is not None
    }
    ordered = sorted(pool.values(), key=lambda trial: -trial.measurement.latency.speedup)
    chosen: list[Candidate] = []
    last = 0.0
    for trial in ordered[:: max(1, len(ordered) // 60)]:
        value = float(np.exp(ratio(trial.candidate, 5000 + len(chosen)).log_ratio.value))
        if value >= last * (1 + APART):
            chosen.append(trial.candidate)
            last = value
        if len(chosen) == N_RANKED:
            break
    return chosen
