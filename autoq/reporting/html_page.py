"""A page that needs nothing but itself: text, styles, figures and plotly.js in one file."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from autoq.reporting.charts import Chart
from autoq.reporting.palette import THEMES
from autoq.reporting.plotly_figures import to_plotly


def escape(text: object) -> str:
    """Write a text so that it is itself in HTML, inside attributes too."""
    return html.escape(str(text), quote=True)


def figure_html(chart: Chart) -> str:
    """Return the place of a picture, with its title and what it says to whoever cannot see it."""
    figure = to_plotly(chart)
    style = f"height:{figure.height}px;min-width:{figure.min_width}px"
    slug = escape(chart.slug)
    return (
        f'<figure id="picture-{slug}" aria-labelledby="title-{slug}">'
        f'<figcaption><h2 id="title-{slug}">{escape(chart.title)}</h2>{escape(chart.subtitle)}</figcaption>'
        f'<div class="wide"><div id="plot-{slug}" class="plot" role="img" aria-label="{escape(chart.alt)}" '
        f'style="{style}"></div></div></figure>'
    )


def build_page(title: str, body: Sequence[str], charts: Sequence[Chart]) -> str:
    """Put parts of a page together with the figures of its charts."""
    figures: dict[str, Any] = {}
    for chart in charts:
        figure = to_plotly(chart)
        figures[chart.slug] = {"data": figure.data, "layout": figure.layout}
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # Browsers ask the server for an icon unless there is one.
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_resource('page.css')}</style></head>",
            "<body>",
            *body,
            "<noscript><p>The pictures need JavaScript; the PNG files do not.</p></noscript>",
            _json_script("figures", figures),
            _json_script("themes", THEMES),
            f'<script type="text/plain" id="plotly">{_packed_plotly()}</script>',
            f"<script>{_resource('page.js')}</script>",
            "</body></html>",
            "",
        ]
    )


def picture_page(chart: Chart, name: str) -> str:
    """Return a page with one picture."""
    footer = f"<footer>Search {escape(name)}, by autoq.</footer>"
    return build_page(f"{chart.title}: {name}", ["<main>", figure_html(chart), "</main>", footer], [chart])


def _json_script(name: str, content: Mapping[str, Any]) -> str:
    # `</script>` in a name would end the element; JSON reads the escape as the same letter.
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _resource(name: str) -> str:
    return importlib.resources.files("autoq.reporting").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _packed_plotly() -> str:
    """plotly.js, compressed: a page is 2 MB instead of 5, and a search leaves ten of them."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")
