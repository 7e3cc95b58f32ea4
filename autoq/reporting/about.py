"""What a search is about: its data by name. No path of the machine is in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from autoq.reporting import figures
from autoq.reporting.html_page import escape
from autoq.search.outcome import Outcome

_BOUNDS: Mapping[str, Callable[[float], str]] = {
    "max_latency_ms": lambda bound: f"latency ≤ {bound:g} ms",
    "max_latency_ratio": lambda bound: f"latency ≤ {bound:.0%} of the float model's",
    "max_accuracy_drop": lambda bound: f"drop ≤ {bound:g} in the metric's unit",
    "max_size_bytes": lambda bound: f"file ≤ {figures.megabytes(bound)}",
    "max_bundle_bytes": lambda bound: f"bundle ≤ {figures.megabytes(bound)}",
}


def about_section(outcome: Outcome, title: str) -> str:
    """Return the section of a page that names the data of a search."""
    pairs = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in describe(outcome).items()
    )
    name = escape(outcome.record.name)
    return f'<section id="data-{name}"><h2>{escape(title)}</h2><dl class="pairs">{pairs}</dl></section>'


def describe(outcome: Outcome) -> dict[str, str]:
    """Name the data of a search: what, on what, when, how exact."""
    record, environment = outcome.record, outcome.record.environment
    spec, baseline = record.spec, outcome.record.baseline
    search = spec["search"]
    pairs = {
        "search": f"{record.name}, {record.state}: {record.message}" if record.message else record.name,
        "model": _model(spec),
        "objectives": ", ".join(spec["objectives"]),
        "bounds": _bounds(spec.get("constraints", {})),
        "strategy": f"{search['strategy']}, seed {search.get('seed', 'unknown')}",
        "target": _target(environment),
        "machine": _machine(environment.get("cpu")),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.created_at)),
        "examples": _examples(outcome),
    }
    if baseline is not None:
        pairs["noise floor"] = (
            f"±{baseline.noise_floor:.1%}: two sessions of the same float model differ by as much"
        )
    pairs["autoq"] = str(environment.get("autoq_version", "unknown"))
    pairs["digest of model and data"] = record.model_digest
    return pairs


def _model(spec: Mapping[str, Any]) -> str:
    model = spec.get("model", {})
    if path := model.get("path"):
        return PurePath(path).name
    factory = str(model.get("torch", "unknown"))
    place, colon, function = factory.rpartition(":")
    return f"{PurePath(place).name}{colon}{function}"


def _bounds(constraints: Mapping[str, Any]) -> str:
    kept = [write(constraints[name]) for name, write in _BOUNDS.items() if constraints.get(name) is not None]
    return ", ".join(kept) or "none"


def _target(environment: Mapping[str, Any]) -> str:
    runtime = f"{environment.get('runtime', 'unknown')} {environment.get('runtime_version', '')}".strip()
    threads, batch = environment.get("threads", "?"), environment.get("batch_size", "?")
    return f"{runtime}, {threads} {'thread' if threads == 1 else 'threads'}, batch size {batch}"


def _machine(cpu: Any) -> str:
    if not isinstance(cpu, Mapping):
        return str(cpu or "unknown")
    sets = ", ".join(cpu.get("instruction_sets", [])) or "unknown"
    return f"{cpu.get('model', 'an unknown CPU')}, instruction sets {sets}"


def _examples(outcome: Outcome) -> str:
    if not outcome.points:
        return "none yet"
    search = max(point.measurement.accuracy.n_examples for point in outcome.points)
    tests = [point.test.accuracy.n_examples for point in outcome.points if point.test]
    return f"{search} in the search split, " + (
        f"{max(tests)} in the test split" if tests else "no test split used"
    )
