"""Writing a report: one page with everything, and each picture alone as a page and as a static file."""

from __future__ import annotations

from pathlib import Path

from autoq.core.errors import UserError
from autoq.reporting.html_page import picture_page
from autoq.reporting.pictures import Content, draw_pictures
from autoq.reporting.report_page import write_page
from autoq.reporting.static_figures import save_static

REPORT_FILE = "report.html"
FRONT_FILES = ("pareto.png", "pareto.svg")


def write_report(content: Content, folder: Path) -> dict[str, Path]:
    """Write the report of a search into a folder, made if need be; return the files by name.

    Raises:
        UserError: The folder cannot be written.
    """
    charts, _ = draw_pictures(content)
    name = content.outcome.record.name
    paths = [folder / REPORT_FILE]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(write_page(content), encoding="utf-8")
        for chart in charts:
            page, static = folder / f"{chart.slug}.html", folder / f"{chart.slug}.png"
            page.write_text(picture_page(chart, name), encoding="utf-8")
            save_static(chart, static, name)
            paths += [page, static]
        if charts:
            paths.append(folder / FRONT_FILES[1])
            save_static(charts[0], paths[-1], name)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report: {error.strerror}") from error
    return {path.name: path for path in paths}
