"""What a sensitivity looks like: the lines that explain it, its table, and the map that is drawn of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table

from autoq.inspecting import Column
from autoq.reporting.sensitivity_plot import SensitivityMap

if TYPE_CHECKING:
    from rich.console import Console

    from autoq.inspecting import Inspection, Sensitivity

NO_ESTIMATE = "?"
_UNLIMITED = 10_000  # characters


def heading_lines(sensitivity: Sensitivity) -> list[str]:
    """Say what the figures are, how to read them, and what they leave out."""
    return [
        "local error of each choice as SQNR in dB: output energy of the layer over the noise that the "
        f"choice adds to it, from {_source(sensitivity)}",
        "higher is better: 10 dB is 10 % noise, 20 dB 1 %, 30 dB 0.1 %; a bit is worth about 6 dB; "
        "most sensitive layers first (those farthest below the others, column by column)",
        f"best of the roundings and grids in the space; blank: not offered; {NO_ESTIMATE}: no estimate, "
        "nothing is known of the layer's inputs",
        "local: how much the model's output minds a layer's noise is not in it",
    ]


def sensitivity_table(inspection: Inspection, sensitivity: Sensitivity) -> Table:
    """Draw a row for each layer, the most sensitive first, and a column for each choice."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("layer", "op"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "latency", *map(column_heading, sensitivity.columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    layers = {layer.name: layer for layer in inspection.summary.layers}
    for name in sensitivity.most_sensitive_first():
        share = inspection.latency_share.get(name)
        table.add_row(
            name,
            layers[name].op,
            f"{layers[name].n_params:,}",
            "" if share is None else f"{share:.1%}",
            *(_cell(sensitivity, name, column) for column in sensitivity.columns),
        )
    return table


def print_uncut(console: Console, table: Table) -> None:
    """Print a table and an empty line; its lines run on where the terminal is narrower."""
    unlimited = console.options.update(max_width=_UNLIMITED)
    table.width = console.measure(table, options=unlimited).maximum
    console.print(table, crop=False)
    console.print()


def build_map(inspection: Inspection, sensitivity: Sensitivity) -> SensitivityMap:
    """Lay out what is drawn; layers keep the order of the graph, which shows what depth does."""
    layers, columns = list(sensitivity.errors), sensitivity.columns
    shape = (len(layers), len(columns))
    ratios = [[sensitivity.sqnr_db(layer, column) for column in columns] for layer in layers]
    offered = [[sensitivity.offers(layer, column) for column in columns] for layer in layers]
    shares = [inspection.latency_share.get(layer, math.nan) for layer in layers]
    return SensitivityMap(
        title=f"{sensitivity.name}: local error of each layer's choices",
        subtitle=f"from {_source(sensitivity)}; best of the roundings and grids in the space",
        layers=layers,
        columns=[column_heading(column) for column in columns],
        sqnr_db=np.array(ratios, np.float64).reshape(shape),
        offered=np.array(offered, np.bool_).reshape(shape),
        latency_share=np.array(shares, np.float64),
    )


def column_heading(column: Column) -> str:
    """Write a label in a line for each word, and its weight bits: columns are many and narrow."""
    words = column.label.replace("_", "/").split("/")
    parts = [word.replace("percentile", "p") for word in words]
    return "\n".join([*parts, f"{column.bits} bits"])


def _source(sensitivity: Sensitivity) -> str:
    rewrites = (
        "" if sensitivity.rewrites.changes_nothing else f" of the rewritten model ({sensitivity.rewrites})"
    )
    return f"statistics of {sensitivity.n_examples} calibration examples{rewrites}"


def _cell(sensitivity: Sensitivity, layer: str, column: Column) -> str:
    if not sensitivity.offers(layer, column):
        return ""
    ratio = sensitivity.sqnr_db(layer, column)
    if ratio is None:
        return NO_ESTIMATE
    return "exact" if math.isinf(ratio) else f"{ratio:.1f}"
