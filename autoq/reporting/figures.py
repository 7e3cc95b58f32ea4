"""Figures of a search as its pictures and tables write them: units, signs, digits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoq.core.choices import Candidate, Choice
from autoq.core.measurements import Interval, Latency
from autoq.search.outcome import Point, metric_name


@dataclass(frozen=True, slots=True)
class Scale:
    """How the metric is written: built-in ones are fractions and shown in per cent."""

    metric: str
    factor: float  # from the metric's own unit to what is shown
    unit: str  # of values: `%`, or nothing
    drop_unit: str  # of differences: `pt`, percentage points, or nothing

    @staticmethod
    def of(spec: Mapping[str, Any]) -> Scale:
        """Read it off a spec."""
        if isinstance(spec["metric"], str):
            return Scale(metric_name(spec), 100.0, "%", "pt")
        return Scale(metric_name(spec), 1.0, "", "")

    @property
    def axis(self) -> str:
        """Title of an axis of values."""
        return f"{self.metric} ({self.unit})" if self.unit else self.metric

    @property
    def drop_axis(self) -> str:
        """Title of an axis of drops."""
        return f"drop of {self.metric} (percentage points)" if self.unit else f"drop of {self.metric}"

    def value(self, value: float) -> str:
        """Write a value of the metric."""
        return f"{value * self.factor:.2f} %" if self.unit else f"{value:.4g}"

    def drop(self, drop: float, interval: Interval | None = None) -> str:
        """Write a drop with its interval; positive is worse."""
        digits, unit = (".2f", f" {self.drop_unit}") if self.drop_unit else (".4f", "")

        def write(value: float) -> str:
            return signed(value * self.factor, digits)

        between = "" if interval is None else f" [{write(interval[0])}, {write(interval[1])}]"
        return f"{write(drop)}{unit}{between}"

    def change(self, drop: float) -> str:
        """Write a drop in words: `0.14 pt worse`, `as good`."""
        text = self.drop(abs(drop)).removeprefix("+")
        if text.startswith(self.drop(0.0)):
            return "as good"
        return f"{text} {'worse' if drop > 0 else 'better'}"


def signed(value: float, digits: str) -> str:
    """Write a number with its sign, zero without, and a true minus."""
    text = f"{value:+{digits}}".replace("-", "−")
    return text[1:] if not float(f"{value:{digits}}") else text


def significant(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.{digits - 1}f}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def milliseconds(latency: Latency) -> str:
    """Write a latency with its interval."""
    low, high = (significant(end) for end in latency.latency_ms_ci)
    return f"{significant(latency.latency_ms)} ms [{low}, {high}]"


def megabytes(n_bytes: float) -> str:
    """Write bytes in MB (1,000,000 bytes)."""
    return f"{significant(n_bytes / 1e6)} MB"


def duration(seconds: float) -> str:
    """Write a time as people say it: `0.31 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{significant(seconds, 2)} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def is_anchor(point: Point) -> bool:
    """Whether a point is one of the uniform candidates that every search tries first."""
    return point.trial.origin.startswith("anchor")


def is_raced_out(point: Point) -> bool:
    """Whether scoring was stopped early, so that the accuracy is an estimate."""
    return point.measurement.accuracy.is_estimate


def summary_of_choices(candidate: Candidate) -> str:
    """Say in a line how the layers are compressed: `8 × int8, 2 × int8 w4, 1 × fp32`."""
    counted = Counter(short_choice(choice) for _, choice in candidate.choices)
    most = counted.most_common(5)
    rest = len(counted) - len(most)
    more = [f"{rest} more kinds"] if rest else []
    return ", ".join([*(f"{n} × {name}" for name, n in most), *more]) or "float"


def short_choice(choice: Choice) -> str:
    """Write a choice without what every layer shares: `int8 w4 50% zero`."""
    bits = "" if choice.weight_bits == choice.format.container_bits else f" w{choice.weight_bits}"
    zeros = f" {choice.sparsity:.0%} zero" if choice.sparsity else ""
    return f"{choice.format}{bits}{zeros}"


def hover_of(point: Point, scale: Scale) -> str:
    """Write a point in a few lines: figures with intervals, origin, choices in short."""
    accuracy, latency, size = point.measurement.accuracy, point.measurement.latency, point.measurement.size
    estimate = f" (estimate from {accuracy.n_examples} examples)" if is_raced_out(point) else ""
    return "\n".join(
        [
            f"trial {point.trial.number}, {point.trial.origin}" + ("" if point.feasible else ", infeasible"),
            f"{scale.metric} {scale.value(accuracy.value)}, "
            f"drop {scale.drop(accuracy.drop, accuracy.drop_ci)}{estimate}",
            f"{milliseconds(latency)}, {latency.speedup:.2f}x",
            f"file {megabytes(size.size_bytes)}, bundle {megabytes(size.bundle_bytes)}",
            summary_of_choices(point.trial.candidate),
        ]
    )
