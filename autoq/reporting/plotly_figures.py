"""Charts as plotly figures: plain mappings, whose colours are names that a page replaces by its scheme's."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoq.reporting.charts import Axis, Bars, Chart, Dots, Grid, Line, Note, Plot, Role, Rule
from autoq.reporting.palette import ROLE_COLORS

_SYMBOLS = {
    Role.SEARCHED: "circle",
    Role.ANCHOR: "square",
    Role.INFEASIBLE: "circle-open",
    Role.RACED_OUT: "x-thin-open",
    Role.BASELINE: "star",
    Role.CHOSEN: "circle-open",
    Role.OFF_SCALE: "diamond-open",
}
_SIZES = {Role.BASELINE: 15, Role.CHOSEN: 19, Role.ANCHOR: 9}
_PLOT_HEIGHT, _ROW, _BAR_ROW, _ROOM = 460, 22, 34, 130  # px
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_CHARACTER = 7  # px, of a name of a layer
_COLUMN = 34  # px, at least
_PHONE = 345  # px that a picture has on a narrow phone


@dataclass(frozen=True)
class PlotlyFigure:
    """What `Plotly.newPlot` takes, and the room it needs in px."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    min_width: int  # narrower, and it is scrolled sideways


def to_plotly(chart: Chart) -> PlotlyFigure:
    """Turn a chart into a figure."""
    body = chart.body
    if isinstance(body, Plot):
        return _plot(body)
    return _bars(body) if isinstance(body, Bars) else _grid(body)


def _layout(height: int, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "font": {"family": _FONT, "size": 13, "color": "@ink"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 12, "t": 14, "b": 8},
        "hoverlabel": {"align": "left", "bgcolor": "@paper", "font": {"color": "@ink"}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": -0.16,
            "yanchor": "top",
            "itemclick": "toggle",
            "font": {"size": 12},
        },
        "hovermode": "closest",
        **more,
    }  # fmt: skip


def _axis(axis: Axis, **more: Any) -> dict[str, Any]:
    span = {} if axis.span is None else {"range": list(axis.span)}
    kind = {"type": "log", "dtick": "D2"} if axis.is_log else {"type": "linear"}
    return {
        "title": {"text": _text(axis.title), "standoff": 8},
        "gridcolor": "@grid",
        "linecolor": "@grey",
        "zeroline": False,
        "automargin": True,
        "ticks": "",
        **kind,
        **span,
        **more,
    }


def _text(text: str) -> str:
    """Escape what plotly would read as markup."""
    return html.escape(text, quote=False).replace("\n", "<br>")


# --- dots and lines ----------------------------------------------------------------------------------


def _plot(plot: Plot) -> PlotlyFigure:
    lines = [_line(line) for line in plot.lines]
    shapes = [_rule_shape(rule) for rule in plot.rules]
    notes = [_rule_note(rule, plot.x) for rule in plot.rules]
    notes += [_note(note, plot) for note in plot.notes]
    layout = _layout(_PLOT_HEIGHT, xaxis=_axis(plot.x), yaxis=_axis(plot.y), shapes=shapes, annotations=notes)
    return PlotlyFigure([*lines, *map(_dots, plot.dots)], layout, _PLOT_HEIGHT, 0)


def _line(line: Line) -> dict[str, Any]:
    is_reference = line.role is Role.BOUND
    return {
        "type": "scatter",
        "mode": "lines",
        "name": line.label,
        "x": list(line.x),
        "y": list(line.y),
        "line": {
            "color": ROLE_COLORS[line.role],
            "width": 2,
            "shape": "hv" if line.is_stairs else "linear",
            "dash": "dash" if is_reference else "solid",
        },
        "hoverinfo": "skip",
        "showlegend": bool(line.label),
    }


def _dots(dots: Dots) -> dict[str, Any]:
    color = ROLE_COLORS[dots.role]
    is_ring = dots.role is Role.CHOSEN
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": dots.label,
        "x": [dot.x for dot in dots.dots],
        "y": [dot.y for dot in dots.dots],
        "text": [_text(dot.hover) for dot in dots.dots],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": color,
            "symbol": _SYMBOLS.get(dots.role, "circle"),
            "size": _SIZES.get(dots.role, 9),
            "line": {"width": 2 if is_ring or dots.role is Role.RACED_OUT else 1, "color": color},
        },
    }
    if is_ring:
        trace |= {"hoverinfo": "skip", "hovertemplate": None}
    for name, intervals, values in (
        ("error_x", [dot.x_interval for dot in dots.dots], trace["x"]),
        ("error_y", [dot.y_interval for dot in dots.dots], trace["y"]),
    ):
        if any(intervals):
            ends = [interval or (value, value) for interval, value in zip(intervals, values, strict=True)]
            trace[name] = {
                "type": "data",
                "symmetric": False,
                "array": [high - value for (_, high), value in zip(ends, values, strict=True)],
                "arrayminus": [value - low for (low, _), value in zip(ends, values, strict=True)],
                "thickness": 1.2,
                "width": 0,
                "color": color,
            }
    return trace


def _rule_shape(rule: Rule) -> dict[str, Any]:
    along, across = ("x", "y") if rule.is_vertical else ("y", "x")
    return {
        "type": "line",
        f"{along}0": rule.value,
        f"{along}1": rule.value,
        f"{across}0": 0,
        f"{across}1": 1,
        f"{across}ref": "paper",
        "line": {"color": "@red", "width": 1.5, "dash": "dash"},
        "layer": "below",
    }


def _rule_note(rule: Rule, x: Axis) -> dict[str, Any]:
    style = {"text": _text(rule.label), "showarrow": False, "font": {"color": "@red", "size": 12}}
    if rule.is_vertical:
        at = math.log10(rule.value) if x.is_log else rule.value
        return style | {
            "x": at,
            "y": 0.01,
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
            "xshift": 4,
        }
    return style | {"x": 1, "y": rule.value, "xref": "paper", "xanchor": "right", "yanchor": "bottom"}


def _note(note: Note, plot: Plot) -> dict[str, Any]:
    xs = [dot.x for dots in plot.dots for dot in dots.dots]
    is_right = note.x > (math.sqrt(min(xs) * max(xs)) if plot.x.is_log else (min(xs) + max(xs)) / 2)
    return {
        "x": math.log10(note.x) if plot.x.is_log else note.x,
        "y": note.y,
        "text": _text(note.text),
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 1,
        "arrowcolor": "@grey",
        "standoff": 9,
        "ax": -8 if is_right else 8,
        "ay": -34,
        "xanchor": "right" if is_right else "left",
        "font": {"color": "@ink", "size": 13},
        "bgcolor": "@paper",
    }


# --- bars --------------------------------------------------------------------------------------------


def _bars(bars: Bars) -> PlotlyFigure:
    height = _ROOM + _BAR_ROW * len(bars.bars)
    values = [bar.value for bar in bars.bars]
    reach = _reach(bars)
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": [bar.label for bar in bars.bars],
        "marker": {"color": [ROLE_COLORS[bar.role] for bar in bars.bars]},
        "text": [_text(bar.text) for bar in bars.bars],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": [_text(bar.hover) for bar in bars.bars],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "showlegend": False,
    }
    keys = [_key(label, ROLE_COLORS[role]) for role, label in bars.key]
    layout = _layout(
        height,
        xaxis=_axis(bars.axis, range=[min(0.0, *values), reach]),
        yaxis={
            "autorange": "reversed",
            "automargin": True,
            "ticks": "",
            "type": "category",
            "ticklabelstandoff": 5,
        },
        bargap=0.35,
        showlegend=bool(keys),
    )
    layout["legend"]["y"] = -60 / max(height - _ROOM, 60)
    return PlotlyFigure([trace, *keys], layout, height, 0)


def _reach(bars: Bars) -> float:
    """End of the axis that leaves room for the figures at the ends of bars, on a phone too."""
    longest = max([0.0, *(bar.value for bar in bars.bars)]) or 1.0
    names = _CHARACTER * max(len(bar.label) for bar in bars.bars)
    figures = _CHARACTER * max(len(bar.text) for bar in bars.bars)
    room = max(_PHONE - names - figures, 40)
    return longest * min((room + figures) / room, 3.0)


def _key(label: str, color: str) -> dict[str, Any]:
    """An entry of the legend, and nothing in the picture."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": [None],
        "y": [None],
        "marker": {"color": color, "symbol": "square", "size": 12},
        "hoverinfo": "skip",
    }


# --- grids -------------------------------------------------------------------------------------------


def _grid(grid: Grid) -> PlotlyFigure:
    columns = list(range(len(grid.columns)))
    names = _CHARACTER * max(map(len, grid.rows), default=0)
    words = [line for heading in grid.columns for line in heading.split("\n")]
    words += [cell.text for row in grid.cells for cell in row if cell is not None]
    column = max(_COLUMN, 8 + _CHARACTER * max(map(len, words), default=0))
    lines = max((heading.count("\n") + 1 for heading in grid.columns), default=1)
    height = _ROOM + 16 * lines + _ROW * len(grid.rows)
    trace = {
        "type": "heatmap",
        "x": columns,
        "y": list(range(len(grid.rows))),
        "z": [[None if cell is None else cell.shade for cell in row] for row in grid.cells],
        "zmin": -0.5,
        "zmax": len(grid.key) - 0.5,
        "colorscale": _steps([shade.color for shade in grid.key]),
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [["" if cell is None else cell.text for cell in row] for row in grid.cells],
        "texttemplate": "%{text}",
        "hovertext": [["" if cell is None else _text(cell.hover) for cell in row] for row in grid.cells],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverongaps": False,
    }
    layout = _layout(
        height,
        xaxis=_labels(columns, grid.columns, side="top", tickangle=0),
        yaxis=_labels(range(len(grid.rows)), grid.rows, autorange="reversed"),
        annotations=_row_notes(grid),
        shapes=_cuts(grid),
    )
    room = 80 if grid.row_notes else 0
    layout["margin"]["r"] += room
    layout["legend"]["y"] = -12 / max(_ROW * len(grid.rows), 60)
    width = names + column * len(columns) + room + 40
    return PlotlyFigure([trace, *(_key(s.meaning, s.color) for s in grid.key)], layout, height, width)


def _labels(places: Sequence[int] | range, names: Sequence[str], **more: Any) -> Mapping[str, Any]:
    return {
        "tickmode": "array",
        "tickvals": list(places),
        "ticktext": [_text(name) for name in names],
        "tickfont": {"size": 12},
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "ticklabelstandoff": 5,
        **more,
    }


def _row_notes(grid: Grid) -> list[dict[str, Any]]:
    if not grid.row_notes:
        return []
    style: dict[str, Any] = {
        "xref": "paper",
        "x": 1,
        "xanchor": "left",
        "xshift": 8,
        "showarrow": False,
        "font": {"size": 12, "color": "@quiet"},
    }
    notes = [style | {"y": row, "text": _text(text)} for row, text in enumerate(grid.row_notes) if text]
    head = {
        "yref": "paper",
        "y": 1,
        "yanchor": "bottom",
        "align": "left",
        "text": _text(grid.row_notes_title),
    }
    return [*notes, style | head]


def _cuts(grid: Grid) -> list[dict[str, Any]]:
    """Cover the part of a field's lower edge that is not filled."""
    return [
        {
            "type": "rect",
            "x0": x - 0.5 + cell.fill,
            "x1": x + 0.5,
            "y0": y + 0.28,
            "y1": y + 0.5,
            "fillcolor": "@paper",
            "line": {"width": 0},
        }
        for y, row in enumerate(grid.cells)
        for x, cell in enumerate(row)
        if cell is not None and cell.fill < 1.0
    ]


def _steps(colors: Sequence[str]) -> list[tuple[float, str]]:
    """A colour scale without transitions: every shade fills its own part."""
    n = len(colors)
    return [(edge, color) for i, color in enumerate(colors) for edge in (i / n, (i + 1) / n)]
