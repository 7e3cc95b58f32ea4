"""Pictures with a row for each layer: what the front does to it, and how much each choice hurts it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoq.core.choices import FLOAT, Choice
from autoq.reporting import figures
from autoq.reporting.charts import Cell, Chart, Grid, Missing, Shade
from autoq.reporting.layer_facts import LayerFacts
from autoq.reporting.palette import FLOAT_SHADE, HALF_SHADE, SEQUENCE
from autoq.search.outcome import Outcome, Point

_MOST_MEMBERS = 16  # columns that can still be read

_NATIVE_MARK = "native"
# 20 dB is 1 % noise, 30 dB 0.1 %; below 10 dB little of the layer is left, beyond 50 dB nobody can tell.
_DB_STEPS = (10.0, 20.0, 30.0, 40.0, 50.0)
_SUFFIXES = {"int8_outlier": "o", "int8_dynamic": "d", "int8_weight": "w", "int4_weight": "w", "int8_s8": "s"}


def layer_map(outcome: Outcome, facts: Sequence[LayerFacts]) -> Chart | Missing:
    """Draw layers by front members: the colour is the bits of the weights, the lower edge the width left."""
    title = "What the front does to each layer"
    members = outcome.front[:_MOST_MEMBERS]
    if not members:
        return Missing(title, "nothing is on the front yet")
    rows = _layers(members, facts)
    shades = _bit_shades(members, rows)
    by_name = {layer.name: layer for layer in facts}
    shares = [by_name[name].latency_share if name in by_name else None for name in rows]
    known = any(share is not None for share in shares)
    best = outcome.best.trial.number if outcome.best else None
    left_out = len(outcome.front) - len(members)
    is_narrowed = any(point.trial.candidate.rewrites.widths for point in members)
    grid = Grid(
        rows=tuple(rows),
        columns=tuple(_heading(point, best) for point in members),
        cells=tuple(
            tuple(_choice_cell(name, point, shades, by_name.get(name)) for point in members) for name in rows
        ),
        key=tuple(shades.values()),
        row_notes=tuple("" if share is None else f"{share:.1%}" for share in shares) if known else (),
        row_notes_title="share of float\nlatency" if known else "",
    )
    return Chart(
        slug="layer-map",
        title=title,
        subtitle=(
            "Columns are members of the front, fastest first; colour and figure are the bits of a layer's "
            "weights. d: dynamic, w: weight-only, s: signed activations, f: float."
            + (
                " A percentage, and a lower edge that ends early, is the share of the layer's outputs that "
                "is left."
                if is_narrowed
                else ""
            )
            + (f" The {left_out} slowest members are left out." if left_out else "")
            + ("" if known else " Shares of the latency are not known for this search.")
        ),
        alt=(
            f"Grid of {len(rows)} layers by {len(members)} front members, coloured by weight bits"
            + (", with the width that is left. " if is_narrowed else ". ")
            + _alt_of_best(outcome)
        ),
        body=grid,
    )


def _alt_of_best(outcome: Outcome) -> str:
    if outcome.best is None:
        return "Nothing is feasible."
    return f"The best point has {figures.summary_of_choices(outcome.best.trial.candidate)}."


def _layers(members: Sequence[Point], facts: Sequence[LayerFacts]) -> list[str]:
    """Layers in the order of the graph where it is known, else by name."""
    names = {name for point in members for name, _ in point.trial.candidate.choices}
    ordered = [layer.name for layer in facts if layer.name in names]
    return [*ordered, *sorted(names - set(ordered))]


def _heading(point: Point, best: int | None) -> str:
    star = "★ " if point.trial.number == best else ""
    return f"{star}{point.trial.number}\n{point.measurement.latency.speedup:.2f}x"


def _bit_shades(members: Sequence[Point], rows: Sequence[str]) -> dict[int, Shade]:
    """Shades of the bits that occur, fewest first: the same bits have the same colour in every search."""
    bits = {_choice(point, name).weight_bits for point in members for name in rows}
    return {n: Shade(_bit_color(n), "float" if n == 32 else f"{n} bits") for n in sorted(bits)}


def _bit_color(bits: int) -> str:
    if bits > 8:
        return FLOAT_SHADE if bits == 32 else HALF_SHADE
    return SEQUENCE[bits - 2]


def _choice(point: Point, layer: str) -> Choice:
    return point.trial.candidate.by_layer.get(layer, FLOAT)


def _choice_cell(layer: str, point: Point, shades: dict[int, Shade], facts: LayerFacts | None) -> Cell:
    choice = _choice(point, layer)
    width = facts.width(dict(point.trial.candidate.rewrites.widths)) if facts else 1.0
    is_stored = layer in point.measurement.storage_only
    bits = "f" if choice.weight_bits == 32 else f"{choice.weight_bits}{_SUFFIXES.get(choice.format, '')}"
    kind = "storage only: smaller, not faster" if is_stored else _NATIVE_MARK
    hover = f"{layer}\ntrial {point.trial.number}: {choice}\n{kind}"
    if width < 1.0:
        bits += f" {width:.0%}"
        hover += f"\n{width:.1%} of its outputs are left"
    return Cell(list(shades).index(choice.weight_bits), bits, hover, width)


def sensitivity_chart(facts: Sequence[LayerFacts]) -> Chart | Missing:
    """Draw how much noise each usual choice adds to each layer, the most sensitive layers first."""
    title = "How sensitive each layer is"
    columns = list(dict.fromkeys(choice for layer in facts for choice in layer.sqnr_db))
    measured = [layer for layer in facts if any(value is not None for value in layer.sqnr_db.values())]
    if not measured:
        return Missing(
            title, "the error of the choices was not kept for this search; `autoq inspect SPEC --sensitivity`"
        )
    ordered = sorted(measured, key=lambda layer: _mean_db(layer, columns, measured))
    bounds = [-math.inf, *_DB_STEPS, math.inf]
    key = tuple(
        Shade(color, _range_text(low, high))
        for color, low, high in zip(reversed(SEQUENCE[: len(bounds) - 1]), bounds, bounds[1:], strict=False)
    )
    return Chart(
        slug="layer-sensitivity",
        title=title,
        subtitle=(
            "Signal over the noise that a choice adds to the layer's output (SQNR, dB): 10 dB is 10 % noise, "
            "20 dB 1 %, 30 dB 0.1 %. Most sensitive layers first; how much the model minds is not in it."
        ),
        alt=(
            f"Grid of {len(ordered)} layers by {len(columns)} choices, coloured by the noise added. "
            f"The most sensitive layer is {ordered[0].name}."
        ),
        body=Grid(
            rows=tuple(layer.name for layer in ordered),
            columns=tuple(map(_choice_heading, columns)),
            cells=tuple(tuple(_error_cell(layer, column) for column in columns) for layer in ordered),
            key=key,
        ),
    )


def _choice_heading(choice: str) -> str:
    """Write a choice in a line for each word: columns are many and narrow."""
    label, _, bits = choice.rpartition(" w")
    return "\n".join([*label.replace("percentile", "p").replace("_", "\n").split("/"), f"{bits} bits"])


def _range_text(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:.0f} dB"
    return f"{low:.0f} dB and more" if math.isinf(high) else f"{low:.0f} to {high:.0f} dB"


def _mean_db(layer: LayerFacts, columns: Sequence[str], layers: Sequence[LayerFacts]) -> float:
    """Mean distance from the other layers in the same columns: not all layers are offered the same."""
    leads = []
    for column in columns:
        known = [value for other in layers if (value := other.sqnr_db.get(column)) is not None]
        if (mine := layer.sqnr_db.get(column)) is not None:
            leads.append(mine - sum(known) / len(known))
    return sum(leads) / len(leads)


def _error_cell(layer: LayerFacts, column: str) -> Cell | None:
    value = layer.sqnr_db.get(column)
    if value is None:
        return None
    shade = sum(value >= step for step in _DB_STEPS)
    return Cell(shade, f"{value:.0f}", f"{layer.name}\n{column}\nSQNR {value:.1f} dB")
