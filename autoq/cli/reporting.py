"""Commands that write pictures and pages: report, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from autoq.cli import wording
from autoq.cli.errors import say
from autoq.cli.opening import open_app
from autoq.cli.streams import print_json, print_table, results_alone_on_stdout, results_console

if TYPE_CHECKING:
    from autoq.reporting.comparison import Comparison


def write_report(name: str, out: Path | None, home: Path, *, as_json: bool) -> None:
    """Write the report of a search and say where."""
    with results_alone_on_stdout(), open_app(home) as app:
        files = app.report(name, out)
    if as_json:
        print_json({"search": name, "files": _texts(files)})
        return
    page = next(iter(files.values()))
    print(page)
    n_pictures = sum(path.suffix == ".png" for path in files.values())
    say(f"{n_pictures} pictures beside it, each as a page and a PNG")


def compare_searches(names: Sequence[str], out: Path | None, home: Path, *, as_json: bool) -> None:
    """Compare searches, print who beats whom, and write the picture if a folder is given."""
    with results_alone_on_stdout(), open_app(home) as app:
        comparison, files = app.compare(names, out)
    for warning in comparison.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_json({**comparison.to_json(), "files": _texts(files)})
        return
    console = results_console(as_json)
    print_table(console, counts_table(comparison))
    print_table(console, members_table(comparison))
    for path in files.values():
        print(path)


def counts_table(comparison: Comparison) -> Table:
    """Draw how many members of each front each other search beats."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    names = [outcome.record.name for outcome in comparison.outcomes]
    table.add_column("search", overflow="fold")
    table.add_column("front", justify="right")
    for name in names:
        table.add_column(f"beaten by\n{name}", justify="right", overflow="fold")
    for name, counts in comparison.counts().items():
        table.add_row(name, str(counts["front"]), *(str(counts.get(other, "")) for other in names))
    return table


def members_table(comparison: Comparison) -> Table:
    """Draw every member of every front with those that beat it."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("search", overflow="fold")
    for heading in ("trial", "drop", "latency ms", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("beaten by", overflow="fold")
    for member in comparison.members:
        measured = member.point.measurement
        table.add_row(
            member.search,
            str(member.point.trial.number),
            f"{measured.accuracy.drop:+.4f}",
            wording.milliseconds(measured.latency.latency_ms),
            f"{measured.latency.speedup:.2f}x",
            ", ".join(f"{name} {trial}" for name, trial in member.beaten_by),
        )
    return table


def _texts(files: Mapping[str, Path]) -> dict[str, Any]:
    return {name: str(path) for name, path in files.items()}
