"""Tables for people, from what the app returns. Nothing here prints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from autoq.cli import wording
from autoq.cli.views import model_name, repeated_number
from autoq.core.groups import Role

if TYPE_CHECKING:
    from autoq.app import CacheUse
    from autoq.core.groups import Grouping
    from autoq.core.measurements import Baseline, Measurement
    from autoq.examining import Doctor
    from autoq.inspecting import Inspection
    from autoq.search.outcome import Outcome, Point
    from autoq.search.records import SearchRecord, TrialRecord

BEST = "*"


def front_table(outcome: Outcome, metric: str) -> Table:
    """Draw the front, fastest first, under the baseline; the best point has a star.

    The column of the test split is there only if some point was scored on it.
    """
    tested = any(point.test for point in outcome.front)
    table = _table("", "trial>", "origin", f"{metric}>", "drop [95 %]", "latency ms [95 %]", "speed\nup>")
    for heading in ("MB>", "bundle\nMB>", *((f"test {metric}\nholds",) if tested else ()), "feasible>"):
        _add_column(table, heading)
    if outcome.record.baseline is not None:
        table.add_row(*_baseline_cells(outcome.record.baseline, tested=tested), style="dim", end_section=True)
    best = outcome.best.trial.number if outcome.best else None
    for point in outcome.front:
        is_best = point.trial.number == best
        cells = _point_cells(point, tested=tested)
        table.add_row(BEST if is_best else "", *cells, style="bold" if is_best else "")
    return table


def _baseline_cells(baseline: Baseline, *, tested: bool) -> list[str]:
    test = "" if baseline.test_accuracy is None else f"{baseline.test_accuracy:.4f}"
    latency = wording.milliseconds(baseline.latency_ms, baseline.latency_ms_ci)
    size = wording.megabytes(baseline.size_bytes)
    name, accuracy = "float model", f"{baseline.accuracy:.4f}"
    return ["", "", name, accuracy, "", latency, "1.00x", size, "", *([test] if tested else []), ""]


def _point_cells(point: Point, *, tested: bool) -> list[str]:
    accuracy, latency, size = point.measurement.accuracy, point.measurement.latency, point.measurement.size
    test = f"{point.test.accuracy.value:.4f} {point.test.holds}" if point.test else ""
    return [
        str(point.trial.number),
        point.trial.origin,
        f"{accuracy.value:.4f}",
        wording.with_interval(accuracy.drop, accuracy.drop_ci, form="+.4f"),
        wording.milliseconds(latency.latency_ms, latency.latency_ms_ci),
        f"{latency.speedup:.2f}x",
        wording.megabytes(size.size_bytes),
        wording.megabytes(size.bundle_bytes),
        *([test] if tested else []),
        "yes" if point.feasible else "no",
    ]


def trials_table(outcome: Outcome, trials: Sequence[TrialRecord], metric: str) -> Table:
    """Draw all trials with how each ended; the note says why one failed or what it repeats."""
    table = _table("trial>", "state", "origin", f"{metric}>", "drop>", "latency\nms>", "speed\nup>", "MB>")
    for heading in ("seconds>", "note"):
        _add_column(table, heading)
    points = {point.trial.digest: point for point in outcome.points}
    for trial in trials:
        point = points.get(trial.digest)
        table.add_row(
            str(trial.number),
            str(trial.state),
            trial.origin,
            *(_brief_cells(point.measurement) if point else [""] * 5),
            f"{trial.seconds.get('total', 0.0):.2f}",
            _trial_note(outcome, trial, point),
        )
    return table


def _brief_cells(measurement: Measurement) -> list[str]:
    about = "~" if measurement.accuracy.is_estimate else ""  # its scoring was stopped early
    return [
        f"{about}{measurement.accuracy.value:.4f}",
        f"{about}{measurement.accuracy.drop:+.4f}",
        wording.milliseconds(measurement.latency.latency_ms),
        f"{measurement.latency.speedup:.2f}x",
        wording.megabytes(measurement.size.size_bytes),
    ]


def _trial_note(outcome: Outcome, trial: TrialRecord, point: Point | None) -> str:
    if point is None:
        return trial.reason
    repeated = repeated_number(outcome, trial)
    if repeated is not None:
        return f"repeats trial {repeated}"
    if outcome.best and outcome.best.trial.number == trial.number:
        return "best"
    notes = ["on the front"] if any(m.trial.number == trial.number for m in outcome.front) else []
    return ", ".join([*notes, *([] if point.feasible else ["infeasible"])])


def choices_table(trial: TrialRecord, storage_only: Sequence[str]) -> Table:
    """Draw how a trial compressed each layer, and where its weightless ops ran."""
    table = _table("layer or op", "choice", "bits are")
    for name, choice in trial.candidate.choices:
        table.add_row(name, str(choice), "storage only" if name in storage_only else "native")
    for name, precision in trial.candidate.graph:
        table.add_row(name, str(precision), "")
    return table


def searches_table(searches: Sequence[tuple[SearchRecord, int]]) -> Table:
    """Draw all searches with their numbers of trials."""
    table = _table("search", "state", "strategy", "trials>", "created", "model")
    for record, n_trials in searches:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created_at))
        strategy = str(record.spec["search"]["strategy"])
        model = model_name(record.spec)
        table.add_row(record.name, str(record.state), strategy, str(n_trials), created, model)
    return table


def layers_table(inspection: Inspection) -> Table:
    """Draw a model's layers with their share of the float model's time and their formats."""
    formats = "formats and weight bits in the space" if inspection.space else "formats"
    table = _table("layer", "op", "weight", "parameters>", "latency>", formats)
    for layer in inspection.summary.layers:
        share = inspection.latency_share.get(layer.name)
        table.add_row(
            layer.name,
            layer.op,
            "x".join(map(str, layer.weight_shape)),
            f"{layer.n_params:,}",
            "" if share is None else f"{share:.1%}",
            " ".join(_formats(inspection, layer.name)),
        )
    return table


def _formats(inspection: Inspection, layer: str) -> list[str]:
    """Formats that the space offers, or else those that the target takes."""
    if layer not in inspection.space:
        return [name for name, verdict in inspection.verdicts[layer].items() if verdict.legal]
    bits: dict[str, tuple[int, int]] = {}
    for label, (low, high) in inspection.space[layer].legal.items():
        name = label.partition("/")[0]
        known_low, known_high = bits.get(name, (low, high))
        bits[name] = min(low, known_low), max(high, known_high)
    return [f"{name}:{low}-{high}" if low < high else name for name, (low, high) in bits.items()]


def refusals(inspection: Inspection) -> list[str]:
    """Say what is refused and why, one line a reason: what the space asks for, or else any format."""
    if inspection.space:
        return [f"{one.what} on {_layers(one.layers)}: {one.reason}" for one in inspection.refusals]
    layers: dict[tuple[str, str], list[str]] = {}
    for layer in inspection.summary.layers:
        for name, verdict in inspection.verdicts[layer.name].items():
            if not verdict.legal:
                layers.setdefault((name, verdict.reason), []).append(layer.name)
    return [f"{name} on {_layers(names)}: {reason}" for (name, reason), names in layers.items()]


def groups_table(grouping: Grouping) -> Table:
    """Draw channel groups with the layers that write and read them."""
    table = _table("group", "kind", "units>", "written by", "read by")
    for group in grouping.groups:
        layers = {
            role: ", ".join(member.layer for member in group.members if member.role is role) for role in Role
        }
        table.add_row(group.name, str(group.kind), f"{group.size:,}", layers[Role.WRITES], layers[Role.READS])
    return table


def left_alone(grouping: Grouping) -> list[str]:
    """Say which layers keep output channels and why, one line a reason."""
    layers: dict[str, list[str]] = {}
    for one in grouping.left_alone:
        layers.setdefault(one.reason, []).append(one.layer)
    return [f"{', '.join(names)}: {reason}" for reason, names in layers.items()]


def caches_table(uses: Sequence[CacheUse]) -> Table:
    """Draw what each cache holds, and the sum."""
    table = _table("cache", "files>", "size>")
    for use in uses:
        table.add_row(use.name, str(use.n_files), wording.size(use.n_bytes))
    if uses:
        table.add_section()
    n_files, n_bytes = sum(use.n_files for use in uses), sum(use.n_bytes for use in uses)
    table.add_row("all", str(n_files), wording.size(n_bytes))
    return table


def doctor_table(doctor: Doctor, strategies: Sequence[str]) -> Table:
    """Draw what the machine and its runtimes can do."""
    noise = doctor.noise_floor
    return pairs_table(
        {
            **wording.flat(doctor.environment),
            **{f"version of {name}": version for name, version in doctor.versions.items()},
            "strategies": ", ".join(strategies),
            "noise floor": "unknown" if noise is None else f"±{noise:.2%} of a latency",
        }
    )


def pairs_table(rows: Mapping[str, str]) -> Table:
    """Draw names and values."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        _add_column(table, heading)
    return table


def _add_column(table: Table, heading: str) -> None:
    """Add a column; a heading that ends with `>` is of figures, which are neither wrapped nor cut."""
    numeric = heading.endswith(">")
    table.add_column(
        heading.removesuffix(">"),
        justify="right" if numeric else "left",
        no_wrap=numeric,
        overflow="fold",
    )


def _layers(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers"
