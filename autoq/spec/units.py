"""Values with units, as flags take them: `10m`, `0.8ms`, `50%`, `3MB`. Case does not matter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from autoq.core.errors import SpecError

_QUANTITY = re.compile(r"(?P<number>[0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s*(?P<unit>[^\W\d]*|%)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def parse_duration(text: str, *, where: str = "duration") -> float:
    """Read a duration such as 500ms, 90s, 10m or 1h; return seconds, above 0.

    Raises:
        SpecError: It is no number, has no unit, or is not above 0.
    """
    expected = "a duration above 0 with its unit, such as 500ms, 90s, 10m or 1h"
    return _positive(_scaled(text, _SECONDS, expected, where), text, expected, where)


def parse_latency_budget(text: str, *, where: str = "latency budget") -> tuple[float | None, float | None]:
    """Read a latency budget: `0.8ms` gives (0.8, None), `50%` of the float model's gives (None, 0.5).

    Raises:
        SpecError: It is no number, has no unit, is not above 0, or is a share above 100 %.
    """
    expected = "a latency such as 0.8ms, or a share of the float model's in (0%, 100%]"
    if text.strip().endswith("%"):
        ratio = _positive(_scaled(text, {"%": 0.01}, expected, where), text, expected, where)
        if ratio > 1.0:
            raise _not(text, expected, where)
        return None, ratio
    return _positive(_scaled(text, _MILLISECONDS, expected, where), text, expected, where), None


def parse_drop(text: str, *, where: str = "drop") -> float:
    """Read a drop of a metric: a number in its unit, such as `0.01`, or at most `100%` of 1.

    Raises:
        SpecError: It is no number, below 0, or above 100 %.
    """
    expected = "a drop of at least 0, such as 0.01, or of at most 100%"
    drop = _scaled(text, {"": 1.0, "%": 0.01}, expected, where)
    if text.strip().endswith("%") and drop > 1.0:
        raise _not(text, expected, where)
    return drop


def parse_bytes(text: str, *, where: str = "size") -> int:
    """Read a size such as 3MB (1000s) or 512KiB (1024s); return whole bytes, at least 1.

    Raises:
        SpecError: It is no number, has no unit, or is less than a byte.
    """
    expected = "a size of at least 1 byte with its unit, such as 3MB, 512KiB or 5GB"
    size_bytes = round(_scaled(text, _BYTES, expected, where))
    return int(_positive(size_bytes, text, expected, where))


def _scaled(text: str, units: Mapping[str, float], expected: str, where: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match["unit"].lower() not in units:
        raise _not(text, expected, where)
    value = float(match["number"]) * units[match["unit"].lower()]
    if not math.isfinite(value):
        raise _not(text, expected, where)
    return value


def _positive(value: float, text: str, expected: str, where: str) -> float:
    if not value > 0:
        raise _not(text, expected, where)
    return value


def _not(text: str, expected: str, where: str) -> SpecError:
    return SpecError(f"{where}: expected {expected}, got {text!r}")
