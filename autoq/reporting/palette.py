"""Colours: Okabe and Ito's, which keep apart for every kind of colour vision, on light and on dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoq.reporting.charts import Role

# Figures carry these names instead of colours; a page puts in those of the reader's scheme.
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "@ink": "#1f2328",
        "@quiet": "#656d76",
        "@grid": "#e6e8eb",
        "@paper": "#ffffff",
        "@blue": "#0072B2",
        "@orange": "#C77700",
        "@red": "#C44500",
        "@green": "#00806A",
        "@grey": "#8c959f",
        "@pale": "#c3c9d0",
    },
    "dark": {
        "@ink": "#e6edf3",
        "@quiet": "#9aa4af",
        "@grid": "#2b3138",
        "@paper": "#14181d",
        "@blue": "#56B4E9",
        "@orange": "#E6A23C",
        "@red": "#FF8A5B",
        "@green": "#3CC9A7",
        "@grey": "#7d8792",
        "@pale": "#4a525b",
    },
}

ROLE_COLORS: Mapping[Role, str] = {
    Role.SEARCHED: "@blue",
    Role.ANCHOR: "@orange",
    Role.INFEASIBLE: "@grey",
    Role.RACED_OUT: "@grey",
    Role.BASELINE: "@ink",
    Role.CHOSEN: "@ink",
    Role.FRONT: "@blue",
    Role.BOUND: "@red",
    Role.FIRST: "@blue",
    Role.SECOND: "@orange",
    Role.THIRD: "@green",
    Role.FOURTH: "@red",
    Role.FAINT: "@pale",
    Role.OFF_SCALE: "@grey",
}
SERIES = (Role.FIRST, Role.SECOND, Role.THIRD, Role.FOURTH)

# Lightness falls evenly, so the order survives grey print; both ends stand out on white and on black.
SEQUENCE = ("#FDE725", "#9BD93C", "#4AC16D", "#1FA187", "#277F8E", "#365C8D", "#46327E")
FLOAT_SHADE, HALF_SHADE = "#B4BAC1", "#8D949C"


def painted(content: Any, scheme: str) -> Any:
    """Replace every name of a colour in nested lists and mappings by the scheme's colour."""
    if isinstance(content, Mapping):
        return {key: painted(value, scheme) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [painted(value, scheme) for value in content]
    return THEMES[scheme].get(content, content) if isinstance(content, str) else content


def text_on(color: str) -> str:
    """Return black or white, whichever reads better on a colour (WCAG 2 contrast)."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#111111" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"
