"""The model card of an export: what it is, how it was measured, and what to expect of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoq.core.layers import ModelSummary
from autoq.core.measurements import Accuracy, Interval
from autoq.search.outcome import Outcome, Point, metric_name


def write_card(outcome: Outcome, point: Point, summary: ModelSummary, bundle: Path | None = None) -> str:
    """Write the card as Markdown; `bundle` is the storage bundle that lies beside the model."""
    parts = [
        f"# {outcome.record.name}, trial {point.trial.number}",
        _summary(outcome, point),
        _figures(outcome, point),
        _measured_on(outcome.record.environment),
        _layers(point, summary),
        *_widths(point),
        *([] if bundle is None else [_storage(bundle)]),
        "## Licence\n\nautoq does not know the licence of the float model; this model inherits it.",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(outcome: Outcome, point: Point) -> str:
    latency = point.measurement.latency
    formats = sorted({str(choice.format) for _, choice in point.trial.candidate.choices})
    return (
        f"An ONNX model compressed by autoq ({', '.join(formats)}), found by `{point.trial.origin}`. "
        f"It runs at {latency.speedup:.2f}x the speed of its float original "
        f"[{latency.speedup_ci[0]:.2f}, {latency.speedup_ci[1]:.2f}]. Needs only ONNX Runtime: see `run.py`."
    )


def _figures(outcome: Outcome, point: Point) -> str:
    baseline = outcome.record.baseline
    assert baseline is not None
    accuracy, latency, size = point.measurement.accuracy, point.measurement.latency, point.measurement.size
    rows = [
        ("", "this model", "float model"),
        (f"{metric_name(outcome.record.spec)}, search split ({_basis(accuracy)})",
         f"{accuracy.value:.4f}", f"{baseline.accuracy:.4f}"),
        ("drop, search split", f"{accuracy.drop:+.4f}{_interval(accuracy.drop_ci, '+.4f')}", ""),
        *_test_rows(point, baseline.test_accuracy),
        ("latency, median", f"{latency.latency_ms:.3f} ms{_interval(latency.latency_ms_ci, '.3f')}",
         f"{baseline.latency_ms:.3f} ms"),
        ("latency, 90th percentile", f"{latency.p90_ms:.3f} ms", f"{baseline.latency_p90_ms:.3f} ms"),
        ("deployed file", f"{size.size_bytes:,} bytes", f"{baseline.size_bytes:,} bytes"),
    ]  # fmt: skip
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    rule = "| --- | --- | --- |"
    note = (
        "Intervals are 95 %. Latencies are ratios to the float model, measured side by side in one "
        f"process, times its median; the noise floor of the machine was ±{baseline.noise_floor:.2%}."
    )
    return "\n".join(["## Measured", "", head, rule, *body, "", note])


def _basis(accuracy: Accuracy) -> str:
    if accuracy.is_estimate:
        return f"an estimate: scoring stopped after {accuracy.n_examples} examples"
    return f"{accuracy.n_examples} examples"


def _test_rows(point: Point, baseline: float | None) -> list[tuple[str, str, str]]:
    if point.test is None:
        return [("test split", "none given: nobody has checked this figure on unseen data", "")]
    test = point.test.accuracy
    shown = "" if baseline is None else f"{baseline:.4f}"
    return [
        (f"test split ({test.n_examples} examples)", f"{test.value:.4f}", shown),
        ("drop, test split", f"{test.drop:+.4f}{_interval(test.drop_ci, '+.4f')}", ""),
        ("holds on the test split", point.test.holds, ""),
    ]


def _measured_on(environment: Any) -> str:
    cpu = environment.get("cpu", {})
    sets = ", ".join(cpu.get("instruction_sets", [])) or "unknown"
    return (
        "## Where\n\n"
        f"{environment.get('runtime')} {environment.get('runtime_version')}, "
        f"{environment.get('threads')} thread(s), batch size {environment.get('batch_size')}, "
        f"on {cpu.get('model', 'an unknown CPU')} (instruction sets: {sets}). "
        "Another CPU may rank models differently: measure there before you ship there."
    )


def _layers(point: Point, summary: ModelSummary) -> str:
    storage_only = set(point.measurement.storage_only)
    lines = [
        "## Layers",
        "",
        "| layer | op | parameters | choice | bits are |",
        "| --- | --- | --- | --- | --- |",
    ]
    for layer in summary.layers:
        choice = point.trial.candidate.by_layer.get(layer.name)
        kind = "storage only" if layer.name in storage_only else "native"
        lines.append(f"| {layer.name} | {layer.op} | {layer.n_params:,} | {choice or 'fp32'} | {kind} |")
    lines += ["", "Storage only: the narrower grid makes the file or bundle smaller, not the model faster."]
    return "\n".join(lines)


def _widths(point: Point) -> list[str]:
    rewrites = point.trial.candidate.rewrites
    if not rewrites.widths:
        return []
    rows = [f"| {group} | {kept:,} |" for group, kept in rewrites.widths]
    how = f"Units are ordered by: {rewrites.criterion}. Refit of what reads them: {rewrites.refit}."
    head = ["## Narrowed channel groups", "", how, "", "| group | units left |", "| --- | --- |"]
    return ["\n".join([*head, *rows])]


def _storage(bundle: Path) -> str:
    return (
        f"## Storage\n\n`{bundle.name}` ({bundle.stat().st_size:,} bytes) holds the same model for storing "
        f"and sending; `autoq unbundle {bundle.name} --out restored.onnx` gives the model file back, byte by "
        "byte."
    )


def _interval(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
