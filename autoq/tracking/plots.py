"""Pictures of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoq.core.errors import UserError
from autoq.core.fronts import front_rows
from autoq.core.measurements import Baseline, Interval, Measurement
from autoq.search.goals import Goals, Objective
from autoq.search.outcome import Outcome, Point, metric_name
from autoq.tracking.run_content import score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")

# Okabe and Ito's colours keep apart for every kind of colour vision; shapes say the same once more.
_BLUE, _ORANGE, _VERMILION = "#0072B2", "#E69F00", "#D55E00"
_INK, _GREY, _PALE = "#222222", "#9A9A9A", "#D4D4D4"
_LOG_RANGE = 10.0  # latencies that differ by more than this factor get a logarithmic axis


@dataclass(frozen=True, slots=True)
class _Axis:
    """One dimension of a panel, in the unit it is drawn in."""

    label: str
    value: Callable[[Measurement], float]
    interval: Callable[[Measurement], Interval | None]
    baseline: float
    bound: float | None
    bound_label: str = ""


def plot_pareto(outcome: Outcome, path: Path) -> None:
    """Draw every measured candidate, the front, the bounds and the best point to a PNG or SVG file.

    Raises:
        UserError: The suffix is neither .png nor .svg, or the search has no baseline yet.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"cannot write a plot to {path.name!r}", hint="expected a name ending in .png or .svg"
        )
    draw_pareto(outcome).savefig(path, dpi=150, facecolor="white")


def draw_pareto(outcome: Outcome) -> Figure:
    """Draw accuracy against latency, and against bytes in a second panel where they are an objective.

    Points far worse than everything of interest are drawn as carets on the lower edge.

    Raises:
        UserError: The search has no baseline yet.
    """
    from matplotlib.figure import Figure

    baseline = outcome.record.baseline
    if baseline is None:
        raise UserError(f"search {outcome.record.name!r} has no baseline to plot against yet")
    vertical = _accuracy_axis(outcome, baseline)
    horizontals = [_latency_axis(outcome.goals, baseline), *_bytes_axes(outcome.goals, baseline)]
    ratios = [1.7] + [1.0] * (len(horizontals) - 1)
    figure = Figure(figsize=(8.0 + 1.5 * (len(horizontals) - 1), 5.0), layout="constrained")
    panels = figure.subplots(1, len(horizontals), sharey=True, squeeze=False, width_ratios=ratios)[0]
    floor = _drop_worth_showing(outcome)
    for axes, horizontal in zip(panels, horizontals, strict=True):
        _draw_panel(axes, horizontal, vertical, outcome, floor)
    panels[0].set_ylabel(vertical.label, fontsize=11, color=_INK)
    panels[0].set_title(_title(outcome), loc="left", fontsize=12.5, color=_INK, pad=10)
    _annotate_best(panels[0], horizontals[0], vertical, outcome)
    _draw_legend(figure, panels)
    return figure


def _title(outcome: Outcome) -> str:
    feasible = sum(point.feasible for point in outcome.points)
    trials = "1 trial" if outcome.n_trials == 1 else f"{outcome.n_trials} trials"
    return f"{outcome.record.name}: {trials}, {feasible} feasible, {len(outcome.front)} on the front"


def _accuracy_axis(outcome: Outcome, baseline: Baseline) -> _Axis:
    built_in = isinstance(outcome.record.spec["metric"], str)
    scale = 100.0 if built_in else 1.0
    worse = -1.0 if outcome.goals.maximize else 1.0
    direction = "" if outcome.goals.maximize else ", lower is better"
    unit = " (%)" if built_in else direction
    allowed = outcome.goals.constraints.max_accuracy_drop

    def interval(measurement: Measurement) -> Interval | None:
        accuracy = measurement.accuracy
        if accuracy.drop_ci is None:
            return None
        ends = [scale * (accuracy.value + worse * (end - accuracy.drop)) for end in accuracy.drop_ci]
        return min(ends), max(ends)

    return _Axis(
        label=f"{metric_name(outcome.record.spec)}{unit}",
        value=lambda measurement: scale * measurement.accuracy.value,
        interval=interval,
        baseline=scale * baseline.accuracy,
        bound=None if allowed is None else scale * (baseline.accuracy + worse * allowed),
        bound_label="" if allowed is None else f"drop ≤ {scale * allowed:.3g}{' pt' if built_in else ''}",
    )


def _latency_axis(goals: Goals, baseline: Baseline) -> _Axis:
    bounds = goals.constraints
    ratio = bounds.max_latency_ratio
    budgets = [bounds.max_latency_ms, None if ratio is None else ratio * baseline.latency_ms]
    bound = min((budget for budget in budgets if budget is not None), default=None)
    return _Axis(
        label="latency (ms)",
        value=lambda measurement: measurement.latency.latency_ms,
        interval=lambda measurement: measurement.latency.latency_ms_ci,
        baseline=baseline.latency_ms,
        bound=bound,
        bound_label="" if bound is None else f"≤ {bound:.3g} ms",
    )


def _bytes_axes(goals: Goals, baseline: Baseline) -> list[_Axis]:
    bounds = goals.constraints
    sizes = {
        Objective.SIZE: ("file (MB)", "size_bytes", bounds.max_size_bytes),
        Objective.STORAGE: ("bundle (MB)", "bundle_bytes", bounds.max_bundle_bytes),
    }
    return [
        _Axis(
            label=label,
            value=partial(_megabytes, field),
            interval=lambda measurement: None,
            baseline=baseline.size_bytes / 1e6,
            bound=None if bound is None else bound / 1e6,
            bound_label="" if bound is None else f"≤ {bound / 1e6:.3g} MB",
        )
        for objective, (label, field, bound) in sizes.items()
        if objective in goals.objectives
    ]


def _megabytes(field: str, measurement: Measurement) -> float:
    return float(getattr(measurement.size, field)) / 1e6


def _drop_worth_showing(outcome: Outcome) -> float:
    """Largest drop that gets a place of its own; a collapsed candidate must not flatten the rest."""
    drops = np.array([point.measurement.accuracy.drop for point in outcome.points])
    drops = drops[np.isfinite(drops)]
    if drops.size == 0:
        return 0.0
    allowed = outcome.goals.constraints.max_accuracy_drop
    if allowed is not None:
        fence = max(5.0 * allowed, *(p.measurement.accuracy.drop for p in outcome.points if p.feasible), 0.0)
    else:
        low, high = np.quantile(drops, [0.25, 0.75])
        fence = float(high + 3.0 * (high - low))
    return fence if drops.max() > 2.0 * fence else float(drops.max())


def _draw_panel(axes: Axes, horizontal: _Axis, vertical: _Axis, outcome: Outcome, worst_drop: float) -> None:
    shown = [point for point in outcome.points if point.measurement.accuracy.drop <= worst_drop]
    beyond = [point for point in outcome.points if point.measurement.accuracy.drop > worst_drop]
    _draw_bounds(axes, horizontal, vertical, outcome.goals.maximize)
    on_front = [point for point in outcome.front if point.measurement.accuracy.drop <= worst_drop]
    _draw_front(axes, horizontal, vertical, on_front)
    _draw_points(axes, horizontal, vertical, shown, outcome.front)
    if beyond:
        xs = [horizontal.value(point.measurement) for point in beyond]
        marker = "v" if outcome.goals.maximize else "^"
        edge = 0.015 if outcome.goals.maximize else 0.985
        place = axes.get_xaxis_transform()
        axes.scatter(
            xs, [edge] * len(xs), s=34, marker=marker, color=_GREY, transform=place, label="off the scale"
        )
    star: dict[str, Any] = {"s": 190, "marker": "*", "color": _INK, "zorder": 5, "linewidths": 0}
    axes.scatter([horizontal.baseline], [vertical.baseline], label="float baseline", **star)
    _style(axes, horizontal, outcome)


def _draw_bounds(axes: Axes, horizontal: _Axis, vertical: _Axis, upwards: bool) -> None:
    line: dict[str, Any] = {"color": _VERMILION, "linewidth": 1.3, "linestyle": (0, (5, 3)), "zorder": 1.5}
    text: dict[str, Any] = {"color": _VERMILION, "fontsize": 9}
    if horizontal.bound is not None:
        axes.axvline(horizontal.bound, label="bound", **line)
        axes.annotate(
            horizontal.bound_label,
            (horizontal.bound, 0.0 if upwards else 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(5, 4 if upwards else -4),
            textcoords="offset points",
            va="bottom" if upwards else "top",
            **text,
        )
    if vertical.bound is not None:
        axes.axhline(vertical.bound, label="bound", **line)
        axes.annotate(
            vertical.bound_label,
            (1.0, vertical.bound),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-5, -4 if upwards else 4),
            textcoords="offset points",
            ha="right",
            va="top" if upwards else "bottom",
            **text,
        )


def _draw_front(axes: Axes, horizontal: _Axis, vertical: _Axis, front: Sequence[Point]) -> None:
    """Draw the stairs under which nothing was found, in this panel's two dimensions."""
    costs = [(horizontal.value(p.measurement), p.measurement.accuracy.drop) for p in front]
    if not costs:
        return
    rows = front_rows(np.array(costs, dtype=np.float64).reshape(len(costs), 2))
    stairs = sorted((costs[row][0], vertical.value(front[row].measurement)) for row in rows)
    xs, ys = [x for x, _ in stairs], [y for _, y in stairs]
    axes.plot(xs, ys, drawstyle="steps-post", color=_BLUE, linewidth=1.6, alpha=0.8, zorder=2, label="front")


def _draw_points(
    axes: Axes, horizontal: _Axis, vertical: _Axis, points: Sequence[Point], front: Sequence[Point]
) -> None:
    on_front = {point.trial.number for point in front}
    groups = {
        "infeasible": (_GREY, "o", [p for p in points if not p.feasible and not _is_anchor(p)]),
        "infeasible anchor": (_GREY, "s", [p for p in points if not p.feasible and _is_anchor(p)]),
        "searched": (_BLUE, "o", [p for p in points if p.feasible and not _is_anchor(p)]),
        "anchor": (_ORANGE, "s", [p for p in points if p.feasible and _is_anchor(p)]),
    }
    for zorder, (label, (color, marker, members)) in enumerate(groups.items(), start=3):
        if not members:
            continue
        measured = [point.measurement for point in members]
        xs, ys = [horizontal.value(m) for m in measured], [vertical.value(m) for m in measured]
        leading = [point.trial.number in on_front for point in members]
        # Intervals of the others would only blur the picture and stretch its axes.
        shown = [m for m, lead in zip(measured, leading, strict=True) if lead]
        _draw_intervals(axes, horizontal, vertical, shown, _PALE if color == _GREY else color)
        axes.scatter(
            xs,
            ys,
            s=[64 if lead else 34 for lead in leading],
            marker=marker,
            facecolors="white" if color == _GREY else color,
            edgecolors=[_INK if lead else color if color == _GREY else "white" for lead in leading],
            linewidths=[1.3 if lead else 1.0 if color == _GREY else 0.5 for lead in leading],
            zorder=zorder,
            label=label,
        )


def _draw_intervals(
    axes: Axes, horizontal: _Axis, vertical: _Axis, measured: Sequence[Measurement], color: str
) -> None:
    style: dict[str, Any] = {"colors": color, "linewidth": 0.9, "alpha": 0.45, "zorder": 2.5}
    for measurement in measured:
        x, y = horizontal.value(measurement), vertical.value(measurement)
        if (across := horizontal.interval(measurement)) is not None:
            axes.hlines(y, *across, **style)
        if (along := vertical.interval(measurement)) is not None:
            axes.vlines(x, *along, **style)


def _style(axes: Axes, horizontal: _Axis, outcome: Outcome) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = [horizontal.value(point.measurement) for point in outcome.points] + [horizontal.baseline]
    if max(values) > _LOG_RANGE * min(values) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.08, 0.1)
    axes.set_xlabel(horizontal.label, fontsize=11, color=_INK)
    axes.tick_params(labelsize=10, colors=_INK, length=3)
    axes.grid(color="#ECECEC", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")


def _annotate_best(axes: Axes, horizontal: _Axis, vertical: _Axis, outcome: Outcome) -> None:
    """Ring the best point and say what it is, in room made beyond the front, where no point can be."""
    chosen, name = (outcome.best, "best") if outcome.best else (outcome.nearest, "nearest to feasible")
    if chosen is None:
        return
    place = (horizontal.value(chosen.measurement), vertical.value(chosen.measurement))
    style: dict[str, Any] = {"facecolors": "none", "edgecolors": _INK, "linewidths": 1.5, "zorder": 8}
    axes.scatter(*place, s=240, label=name, **style)
    low, high = axes.get_ylim()
    room = 0.2 * (high - low)
    upwards = outcome.goals.maximize
    axes.set_ylim((low, high + room) if upwards else (low - room, high))
    across, _ = axes.transAxes.inverted().transform(axes.transData.transform(place))
    leftwards = bool(across > 0.22)
    score = score_text(outcome.record.spec, chosen.measurement.accuracy)
    axes.annotate(
        f"{name}: trial {chosen.trial.number}\n{score}, {chosen.measurement.latency.speedup:.1f}x",
        place,
        xytext=(place[0], 0.98 if upwards else 0.02),
        textcoords=axes.get_xaxis_transform(),
        ha="right" if leftwards else "left",
        va="top" if upwards else "bottom",
        fontsize=10,
        color=_INK,
        zorder=9,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        arrowprops={
            "arrowstyle": "-",
            "color": _GREY,
            "linewidth": 0.8,
            "linestyle": ":",
            "shrinkB": 9,
            # The corner that is straight above the point.
            "relpos": (float(leftwards), 0.0 if upwards else 1.0),
        },
    )


def _draw_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Explain, below the panels, what is drawn in any of them, each kind once and in its plain form."""
    from matplotlib.lines import Line2D

    def mark(marker: str, face: str, edge: str, size: float = 6.5) -> dict[str, Any]:
        plain = {"marker": marker, "markerfacecolor": face, "markeredgecolor": edge, "markersize": size}
        return plain | {"linestyle": "none"}

    keys: dict[str, dict[str, Any]] = {
        "searched": mark("o", _BLUE, _BLUE),
        "anchor": mark("s", _ORANGE, _ORANGE),
        "infeasible": mark("o", "white", _GREY),
        "infeasible anchor": mark("s", "white", _GREY),
        "off the scale": mark("v", _GREY, _GREY),
        "front": {"color": _BLUE, "linewidth": 1.6},
        "float baseline": mark("*", _INK, _INK, 11),
        "best": mark("o", "none", _INK, 11),
        "nearest to feasible": mark("o", "none", _INK, 11),
        "bound": {"color": _VERMILION, "linewidth": 1.3, "linestyle": (0, (4, 2))},
    }
    drawn = {label for axes in panels for label in axes.get_legend_handles_labels()[1]}
    handles = [Line2D([], [], label=label, **key) for label, key in keys.items() if label in drawn]
    columns = len(handles) if len(handles) <= 5 else (len(handles) + 1) // 2
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        labelcolor=_INK,
    )


def _is_anchor(point: Point) -> bool:
    return point.trial.origin.startswith("anchor")
