"""Two or more searches side by side: their fronts in one picture, and who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.errors import UserError
from autoq.core.fronts import dominates, front_rows
from autoq.reporting import figures
from autoq.reporting.charts import Axis, Chart, Dot, Dots, Line, Plot, Rule
from autoq.reporting.figures import Scale
from autoq.reporting.html_page import build_page, escape, figure_html
from autoq.reporting.palette import SERIES
from autoq.reporting.report_page import describe
from autoq.reporting.static_figures import save_static
from autoq.search.outcome import Outcome, Point, metric_name

COMPARISON_FILE = "compare.html"
_MOST_SEARCHES = len(SERIES)


@dataclass(frozen=True)
class Member:
    """A member of one search's front, and how many members of each other search beat it.

    Only drop and latency are compared: other objectives may differ between searches.
    """

    search: str
    point: Point
    beaten_by: tuple[tuple[str, int], ...]  # (search, trial) of every member that dominates it


@dataclass(frozen=True)
class Comparison:
    """Fronts of several searches in drop and latency."""

    outcomes: tuple[Outcome, ...]
    members: tuple[Member, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `autoq compare --json` prints."""
        return {
            "searches": [outcome.record.name for outcome in self.outcomes],
            "warnings": list(self.warnings),
            "dominated": self.counts(),
            "members": [
                {
                    "search": member.search,
                    "trial": member.point.trial.number,
                    "accuracy_drop": member.point.measurement.accuracy.drop,
                    "latency_ms": member.point.measurement.latency.latency_ms,
                    "beaten_by": [{"search": name, "trial": trial} for name, trial in member.beaten_by],
                }
                for member in self.members
            ],
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each search how many of its members each other search beats, and its `front` in all."""
        names = [outcome.record.name for outcome in self.outcomes]
        table = {}
        for name in names:
            mine = [member for member in self.members if member.search == name]
            beaten = {
                other: sum(any(by == other for by, _ in member.beaten_by) for member in mine)
                for other in names
                if other != name
            }
            table[name] = {"front": len(mine), **beaten}
        return table


def compare(outcomes: Sequence[Outcome]) -> Comparison:
    """Say which members of each front are beaten by members of the others.

    Raises:
        UserError: There are fewer than two searches, too many, one twice, or one without a front.
    """
    names = [outcome.record.name for outcome in outcomes]
    _check(outcomes, names)
    fronts = {outcome.record.name: _front_of(outcome) for outcome in outcomes}
    members = tuple(
        Member(name, point, _beaten_by(point, name, fronts)) for name in names for point in fronts[name]
    )
    return Comparison(tuple(outcomes), members, tuple(_warnings(outcomes)))


def _check(outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    check_names(names)
    if empty := [outcome.record.name for outcome in outcomes if not outcome.front]:
        raise UserError(f"search {empty[0]!r} has no front to compare", hint="no trial of it is measured")


def check_names(names: Sequence[str]) -> None:
    """Refuse a comparison that says nothing.

    Raises:
        UserError: There are fewer than two searches, too many to tell apart, or one twice.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"search {twice[0]!r} is named twice", hint="a search does not differ from itself")
    if not 2 <= len(names) <= _MOST_SEARCHES:
        raise UserError(
            f"cannot compare {len(names)} search{'' if len(names) == 1 else 'es'}",
            hint=f"expected the names of 2 to {_MOST_SEARCHES}",
        )


def _costs(point: Point) -> tuple[float, float]:
    return point.measurement.latency.latency_ms, point.measurement.accuracy.drop


def _front_of(outcome: Outcome) -> list[Point]:
    """Members of a front that are left in drop and latency; feasible ones alone where there are any."""
    feasible = [point for point in outcome.front if point.feasible] or list(outcome.front)
    rows = front_rows(np.array([_costs(point) for point in feasible], np.float64).reshape(-1, 2))
    return sorted((feasible[row] for row in rows), key=_costs)


def _beaten_by(point: Point, name: str, fronts: dict[str, list[Point]]) -> tuple[tuple[str, int], ...]:
    return tuple(
        (other, rival.trial.number)
        for other, members in fronts.items()
        if other != name
        for rival in members
        if dominates(_costs(rival), _costs(point))
    )


def _warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """Say what makes the figures less comparable than they look."""
    first, *others = [outcome.record for outcome in outcomes]
    warnings = []
    metrics = {metric_name(record.spec) for record in (first, *others)}
    if len(metrics) > 1:
        warnings.append(f"the metrics differ ({', '.join(sorted(metrics))}): drops are compared, not values")
    if any(record.model_digest != first.model_digest for record in others):
        warnings.append("models, data or metrics differ: a drop is from each search's own float model")
    if any(record.environment.get("cpu") != first.environment.get("cpu") for record in others):
        warnings.append("the CPUs differ: latencies are those of each search's own machine")
    for key in ("runtime", "runtime_version", "threads", "batch_size"):
        values = {str(record.environment.get(key)) for record in (first, *others)}
        if len(values) > 1:
            warnings.append(f"the targets differ in {key.replace('_', ' ')} ({', '.join(sorted(values))})")
    return warnings


# --- picture and page --------------------------------------------------------------------------------


def comparison_chart(comparison: Comparison) -> Chart:
    """Draw all fronts over each other, drop against latency."""
    scales = [Scale.of(outcome.record.spec) for outcome in comparison.outcomes]
    factor = 100.0 if all(scale.unit for scale in scales) else 1.0
    unit = " (percentage points)" if factor == 100.0 else ""
    dots, lines = [], []
    for outcome, role in zip(comparison.outcomes, SERIES, strict=False):
        name = outcome.record.name
        members = [member for member in comparison.members if member.search == name]
        scale = Scale.of(outcome.record.spec)
        places = tuple(_dot(member, factor, scale) for member in members)
        dots.append(Dots(name, role, places))
        xs, ys = tuple(dot.x for dot in places), tuple(dot.y for dot in places)
        lines.append(Line(f"front of {name}", role, xs, ys, is_stairs=True))
    ends = [dot.x for group in dots for dot in group.dots]
    names = ", ".join(outcome.record.name for outcome in comparison.outcomes)
    beaten = sum(bool(member.beaten_by) for member in comparison.members)
    return Chart(
        "compare",
        "Fronts compared",
        "Drop against latency, lower left is better; bars are 95 % intervals. "
        f"{beaten} of {len(comparison.members)} members are beaten by a member of another search.",
        f"Fronts of {names} as stairs of drop against latency.",
        Plot(
            Axis("latency (ms)", is_log=max(ends) > 10.0 * min(ends) > 0),
            Axis(f"drop{unit}"),
            tuple(dots),
            tuple(lines),
            (Rule("float model", 0.0, is_vertical=False),),
        ),
    )


def _dot(member: Member, factor: float, scale: Scale) -> Dot:
    latency_ms, drop = _costs(member.point)
    interval = member.point.measurement.accuracy.drop_ci
    return Dot(
        latency_ms,
        factor * drop,
        f"{member.search}\n{figures.hover_of(member.point, scale)}",
        member.point.measurement.latency.latency_ms_ci,
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
        save_static(chart, static)
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
        *(_data(outcome) for outcome in comparison.outcomes),
        "</main><footer>By autoq.</footer>",
    ]
    return build_page(f"{title}: autoq comparison", body, [chart])


def _table(comparison: Comparison) -> str:
    heads = ("search", "trial", "drop", "latency (ms)", "beaten by")
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
            f'<td class="text">{escape(by)}</td></tr>'
        )
    return (
        '<section id="dominated"><h2>Who beats whom</h2><div class="wide"><table id="dominated-table">'
        "<caption>Beaten: another point is no worse in drop and latency, and better in one.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _align(name: str) -> str:
    return ' class="text"' if name in ("search", "beaten by") else ""


def _data(outcome: Outcome) -> str:
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in describe(outcome).items())
    return f'<section><h2>{escape(outcome.record.name)}</h2><dl class="pairs">{pairs}</dl></section>'
