"""A comparison as a page and a static file: all fronts in one picture, and the table of who beats whom."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from autoq.core.errors import UserError
from autoq.reporting import figures
from autoq.reporting.about import about_section
from autoq.reporting.charts import Axis, Chart, Dot, Dots, Line, Note, Plot, Rule
from autoq.reporting.comparison import Comparison, Member
from autoq.reporting.figures import Scale
from autoq.reporting.html_page import build_page, escape, figure_html
from autoq.reporting.palette import SERIES
from autoq.reporting.static_figures import save_static

COMPARISON_FILE = "compare.html"


def comparison_chart(comparison: Comparison) -> Chart:
    """Draw all fronts over each other, drop against latency."""
    scales = [Scale.of(outcome.record.spec) for outcome in comparison.outcomes]
    factor = 100.0 if all(scale.unit for scale in scales) else 1.0
    unit = " (percentage points)" if factor == 100.0 else ""
    dots, lines, notes = [], [], []
    for outcome, role in zip(comparison.outcomes, SERIES, strict=False):
        name = outcome.record.name
        members = [member for member in comparison.members if member.search == name]
        scale = Scale.of(outcome.record.spec)
        places = tuple(_dot(comparison, member, factor, scale) for member in members)
        dots.append(Dots(name, role, places))
        xs, ys = tuple(dot.x for dot in places), tuple(dot.y for dot in places)
        lines.append(Line("", role, xs, ys, is_stairs=True))
        notes.append(Note(xs[0], ys[0], name))
    ends = [dot.x for group in dots for dot in group.dots]
    names = ", ".join(outcome.record.name for outcome in comparison.outcomes)
    beaten = sum(bool(member.beaten_by) for member in comparison.members)
    return Chart(
        "compare",
        "Fronts compared",
        "Drop against latency, lower left is better; bars are 95 % intervals. Lines are the fronts. "
        f"{beaten} of {len(comparison.members)} members are beaten by a member of another search.",
        f"Fronts of {names} as stairs of drop against latency.",
        Plot(
            Axis(_latency_title(comparison), is_log=max(ends) > 10.0 * min(ends) > 0),
            Axis(f"drop{unit}"),
            tuple(dots),
            tuple(lines),
            (Rule("float model", 0.0, is_vertical=False),),
            tuple(notes),
        ),
    )


def _latency_title(comparison: Comparison) -> str:
    return "latency (% of the float model's)" if comparison.is_relative else "latency (ms)"


def _dot(comparison: Comparison, member: Member, factor: float, scale: Scale) -> Dot:
    measured = member.point.measurement
    low, high = measured.latency.speedup_ci
    relative = (100.0 / high, 100.0 / low)
    interval = measured.accuracy.drop_ci
    return Dot(
        100.0 * member.latency if comparison.is_relative else member.latency,
        factor * measured.accuracy.drop,
        f"{member.search}\n{figures.hover_of(member.point, scale)}",
        relative if comparison.is_relative else measured.latency.latency_ms_ci,
        None if interval is None else (factor * interval[0], factor * interval[1]),
    )


def write_comparison(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Write page and static picture into a folder, made if need be; return the files by name.

    Raises:
        UserError: The folder cannot be written.
    """
    chart = comparison_chart(comparison)
    page, static = folder / COMPARISON_FILE, folder / "compare.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(_page(comparison, chart), encoding="utf-8")
        save_static(chart, static, " against ".join(o.record.name for o in comparison.outcomes))
    except OSError as error:
        raise UserError(f"{folder}: cannot write the comparison: {error.strerror}") from error
    return {path.name: path for path in (page, static)}


def _page(comparison: Comparison, chart: Chart) -> str:
    names = [outcome.record.name for outcome in comparison.outcomes]
    title = " against ".join(names)
    warnings = [f'<p class="warning">{escape(text)}.</p>' for text in comparison.warnings]
    body = [
        f'<main><header><h1 id="title">{escape(title)}</h1></header>',
        *warnings,
        figure_html(chart),
        _table(comparison),
        *(about_section(outcome, outcome.record.name) for outcome in comparison.outcomes),
        "</main><footer>By autoq.</footer>",
    ]
    return build_page(f"{title}: autoq comparison", body, [chart])


def _table(comparison: Comparison) -> str:
    heads = ("search", "trial", "drop", "latency (ms)", "speed-up", "beaten by")
    head = "".join(f'<th scope="col"{_align(name)}>{name}</th>' for name in heads)
    rows = []
    groups = [(None, comparison.members[0]), *pairwise(comparison.members)] if comparison.members else []
    scales = {outcome.record.name: Scale.of(outcome.record.spec) for outcome in comparison.outcomes}
    for before, member in groups:
        starts = before is None or before.search != member.search
        by = ", ".join(f"{name} {trial}" for name, trial in member.beaten_by) or "nobody"
        measured = member.point.measurement
        rows.append(
            f'<tr><th scope="row" class="text">{escape(member.search) if starts else ""}</th>'
            f"<td>{member.point.trial.number}</td>"
            f"<td>{escape(scales[member.search].drop(measured.accuracy.drop))}</td>"
            f"<td>{figures.significant(measured.latency.latency_ms)}</td>"
            f"<td>{measured.latency.speedup:.2f}x</td>"
            f'<td class="text">{escape(by)}</td></tr>'
        )
    return (
        '<section id="dominated"><h2 id="title-dominated">Who beats whom</h2><p class="quiet">'
        f"Beaten: another point is no worse in drop and latency, and better in one, as measured: "
        "where intervals overlap the order may be chance. "
        f"{_compared(comparison)}</p>"
        '<div class="wide"><table id="dominated-table" aria-labelledby="title-dominated">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _compared(comparison: Comparison) -> str:
    if not comparison.is_relative:
        return "Latencies are compared in ms."
    return "Latencies are compared as shares of the float model's, which was measured beside each candidate."


def _align(name: str) -> str:
    return ' class="text"' if name in ("search", "beaten by") else ""
