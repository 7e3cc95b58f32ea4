"""Figures as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoq.core.measurements import Interval, Measurement


def duration(seconds: float) -> str:
    """Write seconds as `0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def decimals(value: float, digits: int = 3) -> int:
    """Return how many decimals show `digits` significant digits of a value."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def significant(value: float) -> str:
    """Write a value with three significant digits and without an exponent."""
    return f"{value:.{decimals(value)}f}"


def with_interval(value: float, interval: Interval | None, *, form: str) -> str:
    """Write a value and its interval in the same format."""
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def milliseconds(value: float, interval: Interval | None = None) -> str:
    """Write a latency in ms and its interval, with as many decimals as the latency deserves."""
    return with_interval(value, interval, form=f".{decimals(value)}f")


def megabytes(n_bytes: float) -> str:
    """Write bytes as a number of MB (1,000,000 bytes)."""
    return significant(n_bytes / 1e6)


def size(n_bytes: float) -> str:
    """Write bytes with a unit, in thousands."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{significant(n_bytes)} {unit}"
        n_bytes /= 1000
    return f"{significant(n_bytes)} GB"


def figures(measurement: Measurement) -> str:
    """Write drop, speed-up and size of a candidate in a few words."""
    accuracy, latency = measurement.accuracy, measurement.latency
    return (
        f"drop {accuracy.drop:+.4f}, {latency.speedup:.2f}x at {milliseconds(latency.latency_ms)} ms, "
        f"{size(measurement.size.size_bytes)}"
    )


def parts(seconds: Mapping[str, float]) -> str:
    """Write where time went: `build 0.03 s, latency 3.01 s`."""
    return ", ".join(f"{part} {value:.3f} s" for part, value in seconds.items())


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted keys, for a table of two columns."""
    rows: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows[f"{prefix}{key}"] = ", ".join(map(str, value)) or "none"
        else:
            rows[f"{prefix}{key}"] = "unknown" if value is None else str(value)
    return rows
