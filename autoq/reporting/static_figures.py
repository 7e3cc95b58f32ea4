"""Charts as PNG and SVG files, by matplotlib: plotly would need a browser for them (ADR 6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoq.reporting.charts import Axis, Bars, Chart, Dots, Grid, Line, Note, Plot, Role, Rule
from autoq.reporting.palette import ROLE_COLORS, painted, text_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
_MARKERS = {
    Role.SEARCHED: "o",
    Role.ANCHOR: "s",
    Role.INFEASIBLE: "o",
    Role.RACED_OUT: "x",
    Role.BASELINE: "*",
    Role.CHOSEN: "o",
    Role.OFF_SCALE: "d",
}
_HOLLOW = (Role.INFEASIBLE, Role.CHOSEN)
_SIZES = {Role.BASELINE: 180, Role.CHOSEN: 230}
# Inches
_WIDTH, _PLOT_HEIGHT, _ROW, _BAR_ROW, _ROOM = 8.5, 5.4, 0.22, 0.34, 1.6
_CHARACTER, _COLUMN = 0.085, 0.62
_MOST_HEIGHT = 60.0


def save_static(chart: Chart, path: Path, source: str) -> None:
    """Draw a chart to a PNG or SVG file, on white; `source` says of what it is."""
    draw_static(chart, source).savefig(path, dpi=_DPI, facecolor="white")


def draw_static(chart: Chart, source: str) -> Figure:
    """Draw a chart as a matplotlib figure."""
    from matplotlib.figure import Figure

    body = chart.body
    figure = Figure(figsize=_size_of(body), layout="constrained")
    axes = figure.add_subplot()
    if isinstance(body, Plot):
        _draw_plot(axes, body)
    elif isinstance(body, Bars):
        _draw_bars(axes, body)
    else:
        _draw_grid(axes, body)
    figure.suptitle(
        f"{source}: {chart.title[0].lower()}{chart.title[1:]}",
        x=0.01,
        ha="left",
        fontsize=13,
        color=_color("@ink"),
    )
    _draw_legend(figure, axes)
    return figure


def _size_of(body: Plot | Bars | Grid) -> tuple[float, float]:
    if isinstance(body, Plot):
        return _WIDTH, _PLOT_HEIGHT
    if isinstance(body, Bars):
        return _WIDTH, min(_ROOM + _BAR_ROW * len(body.bars), _MOST_HEIGHT)
    names = _CHARACTER * max(map(len, body.rows), default=0)
    width = names + _COLUMN * len(body.columns) + (1.0 if body.row_notes else 0.2) + 0.3
    return max(width, 6.0), min(_ROOM + 0.4 + _ROW * len(body.rows), _MOST_HEIGHT)


def _color(name: str) -> str:
    return str(painted(name, "light"))


# --- dots and lines ----------------------------------------------------------------------------------


def _draw_plot(axes: Axes, plot: Plot) -> None:
    _style(axes, plot.x, plot.y)
    for line in plot.lines:
        _draw_line(axes, line)
    for dots in plot.dots:
        _draw_dots(axes, dots)
    for rule in plot.rules:
        _draw_rule(axes, rule)
    for note in plot.notes:
        _draw_note(axes, note)


def _style(axes: Axes, x: Axis, y: Axis) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if x.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if y.span is not None:
        axes.set_ylim(y.span)
    axes.margins(0.08, 0.1)
    axes.set_xlabel(x.title, fontsize=11, color=_color("@ink"))
    axes.set_ylabel(y.title, fontsize=11, color=_color("@ink"))
    axes.grid(color=_color("@grid"), linewidth=0.8)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9.5, colors=_color("@ink"), length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_color("@pale"))


def _draw_line(axes: Axes, line: Line) -> None:
    style: dict[str, Any] = {"linestyle": "--" if line.role is Role.BOUND else "-"}
    if line.is_stairs:
        style["drawstyle"] = "steps-post"
    axes.plot(
        line.x, line.y, color=_color(ROLE_COLORS[line.role]), linewidth=1.6, label=line.label or None, **style
    )


def _draw_dots(axes: Axes, dots: Dots) -> None:
    color = _color(ROLE_COLORS[dots.role])
    style: dict[str, Any] = {"facecolors": "none"} if dots.role in _HOLLOW else {"color": color}
    if dots.role in _HOLLOW:
        style |= {"edgecolors": color, "linewidths": 1.4}
    axes.scatter(
        [dot.x for dot in dots.dots],
        [dot.y for dot in dots.dots],
        s=_SIZES.get(dots.role, 42),
        marker=_MARKERS.get(dots.role, "o"),
        label=dots.label,
        zorder=4,
        **style,
    )
    for dot in dots.dots:
        bars: dict[str, Any] = {"colors": color, "linewidth": 1.0, "alpha": 0.6, "zorder": 3}
        if dot.x_interval is not None:
            axes.hlines(dot.y, *dot.x_interval, **bars)
        if dot.y_interval is not None:
            axes.vlines(dot.x, *dot.y_interval, **bars)


def _draw_rule(axes: Axes, rule: Rule) -> None:
    color = _color("@red")
    draw = axes.axvline if rule.is_vertical else axes.axhline
    draw(rule.value, color=color, linewidth=1.3, linestyle="--", zorder=1.5)
    along = axes.get_xaxis_transform() if rule.is_vertical else axes.get_yaxis_transform()
    axes.annotate(
        rule.label,
        (rule.value, 0.0) if rule.is_vertical else (1.0, rule.value),
        xycoords=along,
        xytext=(5, 4) if rule.is_vertical else (-5, 4),
        textcoords="offset points",
        ha="left" if rule.is_vertical else "right",
        va="bottom",
        fontsize=9,
        color=color,
    )


def _draw_note(axes: Axes, note: Note) -> None:
    across, _ = axes.transAxes.inverted().transform(axes.transData.transform((note.x, note.y)))
    is_right = bool(across > 0.5)
    axes.annotate(
        note.text,
        (note.x, note.y),
        xytext=(-10 if is_right else 10, 22),
        textcoords="offset points",
        ha="right" if is_right else "left",
        fontsize=10,
        color=_color("@ink"),
        zorder=6,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        arrowprops={"arrowstyle": "-", "color": _color("@grey"), "linewidth": 0.8, "shrinkB": 8},
    )


# --- bars and grids ----------------------------------------------------------------------------------


def _draw_bars(axes: Axes, bars: Bars) -> None:
    places, values = range(len(bars.bars)), [bar.value for bar in bars.bars]
    axes.barh(places, values, height=0.65, color=[_color(ROLE_COLORS[bar.role]) for bar in bars.bars])
    reach = max([*values, 0.0]) or 1.0
    for place, bar in zip(places, bars.bars, strict=True):
        axes.text(max(bar.value, 0.0) + 0.01 * reach, place, bar.text, va="center", fontsize=9)
    for role, label in bars.key:
        axes.scatter([], [], marker="s", s=50, color=_color(ROLE_COLORS[role]), label=label)
    axes.set_yticks(places, [bar.label for bar in bars.bars])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(min([*values, 0.0]), 1.45 * reach)
    axes.set_xlabel(bars.axis.title, fontsize=11, color=_color("@ink"))
    axes.grid(axis="x", color=_color("@grid"), linewidth=0.8)
    _bare(axes)


def _draw_grid(axes: Axes, grid: Grid) -> None:
    from matplotlib.patches import Rectangle

    for y, row in enumerate(grid.cells):
        for x, cell in enumerate(row):
            if cell is None:
                continue
            color = grid.key[cell.shade].color
            axes.add_patch(Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, facecolor=color, linewidth=0))
            if cell.fill < 1.0:
                cut = Rectangle((x - 0.47 + 0.94 * cell.fill, y + 0.28), 0.94 * (1.0 - cell.fill), 0.17)
                axes.add_patch(cut)
                cut.set(facecolor="white", linewidth=0)
            axes.text(x, y, cell.text, ha="center", va="center_baseline", fontsize=8, color=text_on(color))
    for shade in grid.key:
        axes.scatter([], [], marker="s", s=60, color=shade.color, label=shade.meaning)
    edge = len(grid.columns) - 0.4
    for y, text in enumerate(grid.row_notes):
        axes.text(edge, y, text, va="center_baseline", fontsize=8, color=_color("@quiet"))
    if grid.row_notes:
        axes.text(edge, -0.6, grid.row_notes_title, va="bottom", fontsize=8, color=_color("@quiet"))
    axes.set_xlim(-0.5, len(grid.columns) - 0.5)
    axes.set_ylim(len(grid.rows) - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(grid.columns)), grid.columns)
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    _bare(axes)
    axes.tick_params(labelsize=8.5)
    axes.spines[:].set_visible(False)


def _draw_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    small = [_small(handle) for handle in handles]
    figure.legend(
        small, labels, loc="outside lower left", ncols=min(len(labels), 6), frameon=False, fontsize=9
    )


def _small(handle: Any) -> Any:
    """A key of ordinary size, however big the mark is in the picture."""
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D

    if not isinstance(handle, PathCollection):
        return handle
    face, edge = handle.get_facecolor(), handle.get_edgecolor()
    marker = handle.get_paths()[0]
    return Line2D(
        [], [], linestyle="none", marker=marker, markersize=8,
        markerfacecolor=face[0] if len(face) else "none",
        markeredgecolor=edge[0] if len(edge) else face[0],
    )  # fmt: skip
