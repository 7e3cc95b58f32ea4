"""What a search costs beside running models: around each trial, and before the first one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from autoq.app import App
from autoq.calibrating import open_variants
from autoq.core.choices import AS_IT_IS, Choice
from autoq.core.layers import Layer
from autoq.evaluation.clock import machine_clock
from autoq.execution.memory import keep_freed_memory
from autoq.exporting import Silent
from autoq.home import Home
from autoq.preparation import Preparation, prepare, prepare_sources
from autoq.search.records import TrialState
from autoq.spec.loading import load_spec
from autoq.variants.variant import WeightChoice

T = TypeVar("T")

SPECS = ("resnet18", "mobilenetv2", "minilm")
N_TRIALS = 12  # of which 8 or 9 are anchors
FINAL_S = 1.0  # of timing for each finalist, which is no part of a trial
PARTS = ("suggest", "build", "load", "latency", "accuracy", "store", "track", "inference", "total")

MAX_SHARE = 0.10
MAX_REST_S = 0.3
MAX_SECOND_START_S = 2.0
MAX_ENGINE_S = {"resnet18": 240.0, "mobilenetv2": 60.0, "minilm": 180.0}  # statistics and variants
MAX_STATISTICS_MB = {"resnet18": 600.0}
MAX_PEAK_MB = {"resnet18": 2000.0}


def overhead(bench: Path, home: Path) -> dict[str, Any]:
    """Share and seconds of a trial that the model did not run, and how soon a second search starts."""
    found: dict[str, Any] = {}
    for name in SPECS:
        folder = _fresh(home / "overhead" / name)
        row = {
            **trial_figures(in_own_process(_search, bench, name, folder)),
            "second_search": in_own_process(_search_again, bench, name, folder),
        }
        found[name] = {**row, "bars": _overhead_bars(name, row)}
    return found


def engine_time(bench: Path, home: Path) -> dict[str, Any]:
    """Seconds, bytes and memory from nothing to all statistics and eight levels of every layer."""
    found: dict[str, Any] = {}
    for name in SPECS:
        row = in_own_process(_build_everything, bench, name, _fresh(home / "engine_time" / name))
        found[name] = {**row, "bars": _engine_bars(name, row)}
    return found


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process that has done nothing else; both must pickle."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def at_most(what: str, figure: float, bar: float, unit: str) -> dict[str, Any]:
    """Hold a figure against a bar it must not exceed; print the line."""
    return _judged(what, figure, f"<= {bar:g} {unit}", met=figure <= bar)


def at_least(what: str, figure: float, bar: float, unit: str) -> dict[str, Any]:
    """Hold a figure against a bar it must reach; print the line."""
    return _judged(what, figure, f">= {bar:g} {unit}", met=figure >= bar)


def trial_figures(trials: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Summarise the seconds of trials: what is not inference, and where it goes.

    Latency and accuracy contain inference, so parts do not add up to the total.
    """
    total = np.array([one["total"] for one in trials])
    rest = total - np.array([one["inference"] for one in trials])
    return {
        "n_trials": len(trials),
        "median_share": float(np.median(rest / total)),
        "max_share": float((rest / total).max()),
        "median_s": float(np.median(rest)),
        "max_s": float(rest.max()),
        "median_parts_s": {part: float(np.median([one.get(part, 0.0) for one in trials])) for part in PARTS},
        "worst_trial": int(rest.argmax()),  # position among the trials given
        "worst_parts_s": dict(trials[int(rest.argmax())]),
    }


def _judged(what: str, figure: float, bar: str, *, met: bool) -> dict[str, Any]:
    print(f"  {what}: {figure:.3g}, bar {bar}: {'met' if met else 'MISSED'}", flush=True)
    return {"what": what, "figure": figure, "bar": bar, "met": met}


def _fresh(folder: Path) -> Path:
    """Empty a folder of this experiment's own."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _search(bench: Path, name: str, folder: Path) -> list[dict[str, float]]:
    """Run a search; return the seconds of its trials, parts by name."""
    spec = load_spec(bench / f"{name}.yaml", _overrides())
    app = App(folder)
    app.search(spec, Silent())
    trials = app.trials(spec.name)
    app.close()
    return [dict(trial.seconds) for trial in trials if trial.state is TrialState.COMPLETE]


def _overrides() -> dict[str, object]:
    # Fixed effort, so that the share of a trial that is not the model itself can be compared.
    return {"search.trials": N_TRIALS, "timing.fixed_effort": True, "timing.final_s": FINAL_S}


class _FirstTrial(Silent):
    """Hears when the first trial starts."""

    def __init__(self) -> None:
        self.started: float | None = None  # time.perf_counter

    def on_trial_start(self, number: int, origin: str) -> None:
        if self.started is None:
            self.started = time.perf_counter()


def _search_again(bench: Path, name: str, folder: Path) -> dict[str, Any]:
    """Start a search of a model that the home knows, under another name; stop it after its first trial.

    The process is new, as a command's is: what is imported on the way counts.
    """
    spec = load_spec(bench / f"{name}.yaml", {"name": f"{name}-again", **_overrides()})
    app, listener = App(folder), _FirstTrial()
    start = time.perf_counter()
    app.search(spec, listener, should_stop=lambda: listener.started is not None)
    assert listener.started is not None
    parts = dict(app.record(spec.name).preparation_s)
    app.close()
    total = sum(parts.values())
    return {
        "wall_s": listener.started - start,
        "preparation_s": total,
        "without_baseline_s": total - parts["baseline"],
        "parts_s": parts,
    }


def _overhead_bars(name: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    again = row["second_search"]
    print(f"  {name}, {row['n_trials']} trials, median seconds: {_parts_text(row['median_parts_s'])}")
    print(f"  {name}, trial {row['worst_trial']} has the most: {_parts_text(row['worst_parts_s'])}")
    print(f"  {name}, preparation of a second search: {_parts_text(again['parts_s'])}", flush=True)
    rest, second = f"{name}, outside the model", f"{name}, second search"
    return [
        at_most(f"{rest}, median % of a trial", 100 * row["median_share"], 100 * MAX_SHARE, "%"),
        at_most(f"{rest}, maximum % of a trial", 100 * row["max_share"], 100 * MAX_SHARE, "%"),
        at_most(f"{rest}, median s", row["median_s"], MAX_REST_S, "s"),
        at_most(f"{rest}, maximum s", row["max_s"], MAX_REST_S, "s"),
        at_most(
            f"{second}, s of preparation but the baseline",
            again["without_baseline_s"],
            MAX_SECOND_START_S,
            "s",
        ),
        at_most(f"{second}, s of preparation", again["preparation_s"], MAX_SECOND_START_S, "s"),
        at_most(f"{second}, s from start to first trial", again["wall_s"], MAX_SECOND_START_S, "s"),
    ]


def _parts_text(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {seconds:.3f}" for part, seconds in parts.items())


def _build_everything(bench: Path, name: str, folder: Path) -> dict[str, Any]:
    """Collect the statistics and build the variants of one model; call it in a process of its own."""
    keep_freed_memory()
    home = Home.open(folder)
    ready = prepare(load_spec(bench / f"{name}.yaml"), home, Silent())
    start = time.perf_counter()
    sources = prepare_sources(ready, home, Silent())
    statistics_s, peak_mb = time.perf_counter() - start, _peak_mb()
    source = sources[AS_IT_IS]
    wanted = list(_wanted(ready))
    start = time.perf_counter()
    with machine_clock():
        store = open_variants(home, source.model, source.statistics_key)
        n_built = store.build_all(wanted)
    return {
        "statistics_s": statistics_s,
        "variants_s": time.perf_counter() - start,
        "n_variants": n_built,
        "statistics_bytes": _size(home.statistics(source.statistics_key).parent),
        "peak_mb": peak_mb,
    }


def _wanted(ready: Preparation) -> Iterator[tuple[str, WeightChoice]]:
    """Eight levels of every layer: 2 to 8 bits rounded by GPTQ, and 8 bits to nearest."""
    for layer in ready.model.summary.layers:
        fmt = _format(ready, layer)
        for bits in range(2, 9):
            yield layer.name, WeightChoice.of(Choice.of(fmt, weight_bits=bits, rounding="gptq"))
        yield layer.name, WeightChoice.of(Choice.of(fmt, weight_bits=8))


def _format(ready: Preparation, layer: Layer) -> str:
    """Scales per channel, but in blocks for embeddings: they have no kernel for anything else."""
    return "int8" if ready.target.judge(layer, Choice.of("int8")).legal else "int8_weight"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _peak_mb() -> float:
    """Peak resident memory of this process so far (Linux only).

    Not ru_maxrss: that of a process starts at what the one that started it had reached.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [one for one in status if one.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def _engine_bars(name: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    print(
        f"  {name}: statistics {row['statistics_s']:.1f} s, {row['statistics_bytes'] / 1e6:.0f} MB on disk, "
        f"{row['peak_mb']:.0f} MB resident; {row['n_variants']} variants {row['variants_s']:.1f} s",
        flush=True,
    )
    seconds = row["statistics_s"] + row["variants_s"]
    bars = [at_most(f"{name}, s of statistics and variants", seconds, MAX_ENGINE_S[name], "s")]
    if name in MAX_STATISTICS_MB:
        size_mb = row["statistics_bytes"] / 1e6
        bars.append(at_most(f"{name}, MB of statistics", size_mb, MAX_STATISTICS_MB[name], "MB"))
    if name in MAX_PEAK_MB:
        bars.append(at_most(f"{name}, MB resident", row["peak_mb"], MAX_PEAK_MB[name], "MB"))
    return bars
