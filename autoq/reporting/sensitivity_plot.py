"""Heat map of what each choice does to each layer, beside the layer's share of the latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autoq.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")

_INK, _GREY, _PALE, _BLUE = "#222222", "#9A9A9A", "#E4E4E4", "#0072B2"
# Below 5 dB a third of the output's energy is noise, above 50 dB nobody can tell: no colours are spent there.
_DB_RANGE = (5.0, 50.0)
_DB_BRIGHT = 30.0  # cells above are light: their figures are dark
_COLOURS = "magma"  # rises in lightness throughout: it survives grey print and all kinds of colour vision

# Inches; a row is as high as small text needs, so the figure grows with the layers.
_ROW, _COLUMN, _SHARES, _GAP = 0.19, 0.42, 1.3, 0.15
_CHARACTER, _LINE = 0.068, 0.12  # of names and headings
_TITLE, _FOOT = 0.7, 0.85
_LEAST_WIDTH = 7.5
_MOST_HEIGHT = 60.0  # beyond it rows get thinner, and lose their text
_DPI = 150


@dataclass(frozen=True)
class SensitivityMap:
    """What is drawn: layers in the order of the graph, choices from left to right."""

    title: str
    subtitle: str
    layers: Sequence[str]
    columns: Sequence[str]  # headings, of a few lines each
    sqnr_db: npt.NDArray[np.float64]  # (layers, columns); NaN for no estimate, inf for no error
    offered: npt.NDArray[np.bool_]  # (layers, columns)
    latency_share: npt.NDArray[np.float64]  # (layers,), fractions; NaN where it is not known


def check_plot_path(path: Path) -> None:
    """Make sure that a plot can be written to a path.

    Raises:
        UserError: The suffix is neither .png nor .svg, or there is no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"cannot write a plot to {path.name!r}", hint="expected a name ending in .png or .svg"
        )
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write a plot to {path}", hint="its folder does not exist")


def plot_sensitivity(content: SensitivityMap, path: Path) -> None:
    """Draw a map to a PNG or SVG file.

    Raises:
        UserError: The suffix is neither .png nor .svg, or there is no such folder.
    """
    check_plot_path(path)
    draw_sensitivity(content).savefig(path, dpi=_DPI, facecolor="white")


def draw_sensitivity(content: SensitivityMap) -> Figure:
    """Draw layers from top to bottom as the graph runs; what is hatched has no estimate."""
    from matplotlib.figure import Figure

    place = _Places.of(content)
    figure = Figure(figsize=(place.width, place.height))
    heat = figure.add_axes(place.heat)
    shares = figure.add_axes(place.shares, sharey=heat)
    image = _draw_heat(heat, content, place)
    _draw_shares(shares, content, place)
    _draw_scale(figure, image, place)
    _draw_title(figure, content, place)
    return figure


@dataclass(frozen=True, slots=True)
class _Places:
    """Where things lie: the figure in inches, parts of it as (left, bottom, width, height) fractions."""

    width: float
    height: float
    row: float  # height of one layer, inches
    heat: tuple[float, float, float, float]
    shares: tuple[float, float, float, float]
    scale: tuple[float, float, float, float]

    @staticmethod
    def of(content: SensitivityMap) -> _Places:
        rows, columns = content.sqnr_db.shape
        names = _CHARACTER * max(map(len, content.layers), default=0) + 0.25
        lines = [heading.split("\n") for heading in content.columns]
        longest = max((len(line) for heading in lines for line in heading), default=0)
        column = max(_COLUMN, _CHARACTER * longest + 0.04)
        cells = max(column * columns, _LEAST_WIDTH - names - _SHARES - 3 * _GAP)
        width = names + cells + _SHARES + 3 * _GAP
        body = min(_ROW * max(rows, 1), _MOST_HEIGHT)
        headings = _LINE * max(2, max(map(len, lines), default=0)) + 0.1
        height = _TITLE + headings + body + _FOOT
        bottom, tall = _FOOT / height, body / height
        return _Places(
            width,
            height,
            body / max(rows, 1),
            (names / width, bottom, cells / width, tall),
            ((names + cells + _GAP) / width, bottom, _SHARES / width, tall),
            (names / width, 0.5 / height, min(cells, 5.0) / width, 0.12 / height),
        )

    @property
    def has_text(self) -> bool:
        """Whether rows are high enough for text."""
        return self.row > 0.8 * _ROW


def _draw_heat(axes: Axes, content: SensitivityMap, place: _Places) -> Any:
    rows, columns = content.sqnr_db.shape
    known = np.ma.masked_invalid(np.where(np.isposinf(content.sqnr_db), 1e3, content.sqnr_db))
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    low, high = _DB_RANGE
    image = axes.pcolormesh(
        *edges, known, cmap=_COLOURS, vmin=low, vmax=high, edgecolors="white", linewidth=0.4
    )
    axes.set_ylim(rows - 0.5, -0.5)
    for row, column in zip(*np.nonzero(content.offered & np.isnan(content.sqnr_db)), strict=True):
        _hatch(axes, row, column)
    if place.has_text:
        for row, column in np.ndindex(rows, columns):
            _write_cell(axes, row, column, content.sqnr_db[row, column])
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), content.columns, fontsize=7, color=_INK, linespacing=1.05)
    step = 1 if place.has_text else max(1, round(_ROW / place.row))
    axes.set_yticks(range(0, rows, step), content.layers[::step], fontsize=7.5, color=_INK)
    _strip(axes)
    return image


def _hatch(axes: Axes, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor=_GREY, hatch="////", linewidth=0.0))


def _write_cell(axes: Axes, row: int, column: int, ratio_db: float) -> None:
    if np.isnan(ratio_db):
        return
    text = "exact" if np.isposinf(ratio_db) else f"{ratio_db:.0f}"
    color = _INK if ratio_db > _DB_BRIGHT else "white"
    axes.text(column, row, text, ha="center", va="center_baseline", fontsize=6.5, color=color)


def _draw_shares(axes: Axes, content: SensitivityMap, place: _Places) -> None:
    percent = 100.0 * np.nan_to_num(content.latency_share)
    axes.barh(range(len(percent)), percent, height=0.72, color=_BLUE)
    widest = max(float(percent.max(initial=0.0)), 1e-9)
    axes.set_xlim(0.0, 1.45 * widest)  # room for the figures
    if place.has_text:
        for row, share in enumerate(content.latency_share):
            text = "not known" if np.isnan(share) else f"{100.0 * share:.1f} %"
            axes.text(percent[row] + 0.03 * widest, row, text, va="center_baseline", fontsize=6.5, color=_INK)
    axes.set_title("share of the\nfloat model's latency", fontsize=7.5, color=_INK, loc="left", pad=5)
    axes.set_xticks([])
    axes.tick_params(labelleft=False)
    _strip(axes)


def _draw_scale(figure: Figure, image: Any, place: _Places) -> None:
    bar = figure.colorbar(
        image, cax=figure.add_axes(place.scale), orientation="horizontal", extend="both", extendfrac=0.03
    )
    bar.set_label(
        "SQNR of the layer's output (dB): 20 dB is 1 % noise; white: not offered; hatched: no estimate",
        fontsize=7.5,
        color=_INK,
        loc="left",
    )
    bar.ax.tick_params(labelsize=7, colors=_INK, length=2)
    bar.outline.set_visible(False)


def _draw_title(figure: Figure, content: SensitivityMap, place: _Places) -> None:
    left = 0.12 / place.width
    figure.text(
        left, 1.0 - 0.12 / place.height, content.title, fontsize=11.5, color=_INK, ha="left", va="top"
    )
    figure.text(
        left, 1.0 - 0.36 / place.height, content.subtitle, fontsize=8, color=_GREY, ha="left", va="top"
    )


def _strip(axes: Axes) -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_color(_PALE)
