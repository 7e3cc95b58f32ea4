"""A picture as data: what is drawn, in which units, and what it says to whoever cannot see it.

Renderers know marks and roles and nothing of searches, so the page and the static files show the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from autoq.core.measurements import Interval


class Role(StrEnum):
    """What a mark stands for; a renderer gives each role one look, the same in every picture."""

    SEARCHED = "searched"
    ANCHOR = "anchor"
    INFEASIBLE = "infeasible"
    RACED_OUT = "raced_out"  # stopped early: the accuracy is an estimate
    BASELINE = "baseline"
    CHOSEN = "chosen"  # the best point, or the nearest one
    FRONT = "front"
    BOUND = "bound"
    FIRST = "first"  # things without a meaning of their own, in the order they come
    SECOND = "second"
    THIRD = "third"
    FOURTH = "fourth"
    FAINT = "faint"
    OFF_SCALE = "off_scale"  # too far out for the picture: on its edge


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a picture."""

    title: str  # with its unit
    is_log: bool = False
    span: Interval | None = None  # what is shown; None is everything


@dataclass(frozen=True, slots=True)
class Dot:
    """One measured thing."""

    x: float
    y: float
    hover: str  # lines of text
    x_interval: Interval | None = None  # 95 %; None draws no bar
    y_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Dots:
    """Dots of one kind."""

    label: str
    role: Role
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points; as stairs it holds each value until the next x. No label: not in the key."""

    label: str
    role: Role
    x: tuple[float, ...]
    y: tuple[float, ...]
    is_stairs: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line across the picture, at one value of an axis."""

    label: str
    value: float
    is_vertical: bool


@dataclass(frozen=True, slots=True)
class Note:
    """A few words beside a point."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Dots and lines on two numeric axes."""

    x: Axis
    y: Axis
    dots: tuple[Dots, ...] = ()
    lines: tuple[Line, ...] = ()
    rules: tuple[Rule, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its figure written at its end."""

    label: str
    value: float
    role: Role
    text: str
    hover: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars from top to bottom; `key` explains the roles where there are several."""

    axis: Axis
    bars: tuple[Bar, ...]
    key: tuple[tuple[Role, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a grid; `shade` is a row of the grid's key."""

    shade: int
    text: str
    hover: str
    fill: float = 1.0  # how much of the field's lower edge is coloured, from the left


@dataclass(frozen=True, slots=True)
class Shade:
    """A colour that means something; fixed, as its order from light to dark is part of the meaning."""

    color: str  # #rrggbb
    meaning: str


@dataclass(frozen=True, slots=True)
class Grid:
    """Named rows by named columns; None leaves a field blank."""

    rows: tuple[str, ...]  # from top to bottom
    columns: tuple[str, ...]  # headings, lines parted by newlines
    cells: tuple[tuple[Cell | None, ...], ...]  # (rows, columns)
    key: tuple[Shade, ...]
    row_notes: tuple[str, ...] = ()  # right of each row: what else is known of it
    row_notes_title: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture of a search."""

    slug: str  # file name without suffix, and id in the page
    title: str
    subtitle: str  # how to read it
    alt: str  # what it shows, in a sentence or two
    body: Plot | Bars | Grid


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture that cannot be drawn of this search, and why."""

    title: str
    reason: str
