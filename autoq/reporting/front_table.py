"""The front as a table of the page, under the float model."""

from __future__ import annotations

from dataclasses import dataclass

from autoq.core.measurements import Baseline
from autoq.reporting import figures
from autoq.reporting.figures import Scale
from autoq.reporting.html_page import escape
from autoq.search.outcome import Outcome, Point


def front_table(outcome: Outcome) -> list[str]:
    """Return the section of the front; columns of the test split and of feasibility only where they tell."""
    baseline, scale = outcome.record.baseline, Scale.of(outcome.record.spec)
    if baseline is None or not outcome.front:
        return []
    tested = any(point.test for point in outcome.front)
    mixed = not all(point.feasible for point in outcome.front)
    columns = _Columns(scale, tested, mixed)
    best = outcome.best.trial.number if outcome.best else None
    rows = [_front_row(point, columns, is_best=point.trial.number == best) for point in outcome.front]
    note = "" if mixed else "; every point keeps all bounds"
    return [
        '<section id="front"><h2 id="title-front">The front</h2>',
        '<p class="quiet" id="front-note">Fastest first; intervals are 95 %. Positive drops are worse than '
        f"the float model{note}.</p>",
        '<div class="wide" tabindex="0" role="region" aria-labelledby="title-front">',
        '<table id="front-table" aria-describedby="front-note">',
        f"<thead><tr>{_heads(columns)}</tr></thead>",
        f"<tbody>{_baseline_row(baseline, columns)}{''.join(rows)}</tbody>",
        "</table></div></section>",
    ]


@dataclass(frozen=True, slots=True)
class _Columns:
    scale: Scale
    tested: bool  # some member was scored on the test split
    mixed: bool  # some member breaks a bound


def _heads(columns: _Columns) -> str:
    metric = columns.scale.metric
    heads = ["trial", "found by", metric, "drop", "latency (ms)", "speed-up", "file MB", "bundle MB"]
    heads += [f"test {metric}", "holds"] if columns.tested else []
    heads += ["feasible"] if columns.mixed else []
    text = {"found by", "holds", "feasible"}
    return "".join(
        f'<th scope="col"{_class("text" if name in text else "")}>{escape(name)}</th>' for name in heads
    )


def _front_row(point: Point, columns: _Columns, *, is_best: bool) -> str:
    scale = columns.scale
    accuracy, latency, size = point.measurement.accuracy, point.measurement.latency, point.measurement.size
    drop, _, between = scale.drop(accuracy.drop, accuracy.drop_ci).partition(" [")
    cells = [
        _cell(point.trial.origin, kind="text"),
        _cell(scale.value(accuracy.value)),
        _cell(drop, f"[{between}" if between else ""),
        _cell(figures.significant(latency.latency_ms), latency_interval(point)),
        _cell(f"{latency.speedup:.2f}x"),
        _cell(figures.significant(size.size_bytes / 1e6)),
        _cell(figures.significant(size.bundle_bytes / 1e6)),
    ]
    if columns.tested:
        cells.append(_cell(scale.value(point.test.accuracy.value) if point.test else ""))
        cells.append(_cell(point.test.holds if point.test else "", kind="text"))
    if columns.mixed:
        cells.append(_cell("yes" if point.feasible else "no", kind="text"))
    number = f"★ {point.trial.number}" if is_best else str(point.trial.number)
    row = f'<tr{_class("best" if is_best else "")} data-trial="{point.trial.number}">'
    return f'{row}<th scope="row">{number}</th>{"".join(cells)}</tr>'


def _baseline_row(baseline: Baseline, columns: _Columns) -> str:
    scale = columns.scale
    low, high = (figures.significant(end) for end in baseline.latency_ms_ci)
    test = "" if baseline.test_accuracy is None else scale.value(baseline.test_accuracy)
    cells = [
        _cell("float model", kind="text"),
        _cell(scale.value(baseline.accuracy)),
        _cell(""),
        _cell(figures.significant(baseline.latency_ms), f"[{low}, {high}]"),
        _cell("1.00x"),
        _cell(figures.significant(baseline.size_bytes / 1e6)),
        _cell(""),
        *([_cell(test), _cell("")] if columns.tested else []),
        *([_cell("")] if columns.mixed else []),
    ]
    return f'<tr class="baseline"><th scope="row"></th>{"".join(cells)}</tr>'


def _cell(text: str, interval: str = "", *, kind: str = "") -> str:
    more = f' <small class="interval">{escape(interval)}</small>' if interval else ""
    return f"<td{_class(kind)}>{escape(text)}{more}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def latency_interval(point: Point) -> str:
    """Write the interval of a latency in ms."""
    low, high = (figures.significant(end) for end in point.measurement.latency.latency_ms_ci)
    return f"[{low}, {high}]"
