"""What the next millisecond costs: the trade between neighbours on the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from autoq.core.fronts import front_rows
from autoq.reporting import figures
from autoq.reporting.charts import Axis, Bar, Bars, Chart, Missing, Role
from autoq.reporting.figures import Scale
from autoq.search.outcome import Outcome, Point

_MOST_STEPS = 20


@dataclass(frozen=True, slots=True)
class Step:
    """From one member of the front of drop and latency to the next faster one."""

    slower: Point
    faster: Point
    saved_ms: float
    lost: float  # rise of the drop, in the metric's unit

    @property
    def per_ms(self) -> float:
        """Drop that a saved millisecond costs."""
        return self.lost / self.saved_ms

    @property
    def is_within_noise(self) -> bool:
        """Whether the intervals of the two drops, or of the two latencies, overlap."""
        slow, fast = self.slower.measurement, self.faster.measurement
        times = fast.latency.latency_ms_ci[1] >= slow.latency.latency_ms_ci[0]
        before, after = slow.accuracy.drop_ci, fast.accuracy.drop_ci
        drops = before is not None and after is not None and after[0] <= before[1]
        return times or drops


def steps_of(front: Sequence[Point]) -> list[Step]:
    """Walk the front of drop and latency from its slowest member to its fastest."""
    costs = [(p.measurement.accuracy.drop, p.measurement.latency.latency_ms) for p in front]
    rows = front_rows(np.array(costs, dtype=np.float64).reshape(len(costs), 2))
    members = sorted((front[row] for row in rows), key=lambda p: -p.measurement.latency.latency_ms)
    return [
        Step(
            slower,
            faster,
            slower.measurement.latency.latency_ms - faster.measurement.latency.latency_ms,
            faster.measurement.accuracy.drop - slower.measurement.accuracy.drop,
        )
        for slower, faster in pairwise(members)
    ]


def marginal_chart(outcome: Outcome) -> Chart | Missing:
    """Draw what each step along the front costs for each millisecond it saves."""
    title, scale = "What the next millisecond costs", Scale.of(outcome.record.spec)
    steps = steps_of(outcome.front)[:_MOST_STEPS]
    if not steps:
        return Missing(title, "fewer than two members of the front trade accuracy for latency")
    unit = f"{scale.drop_unit} per ms".strip()
    dearest = max(steps, key=lambda step: step.per_ms)
    bars = tuple(_bar(step, scale) for step in steps)
    noisy = any(step.is_within_noise for step in steps)
    return Chart(
        "marginal",
        title,
        "Drop for each millisecond saved, from one member of the front to the next faster one. "
        "Where the bars get long, speed gets dear.",
        f"Bars for {len(steps)} steps along the front; the dearest is from trial "
        f"{dearest.slower.trial.number} to trial {dearest.faster.trial.number}.",
        Bars(
            Axis(f"drop of {scale.metric} ({unit})"),
            bars,
            ((Role.FIRST, "clear"), (Role.FAINT, "within the intervals of the two points")) if noisy else (),
        ),
    )


def _bar(step: Step, scale: Scale) -> Bar:
    slower, faster = step.slower.trial.number, step.faster.trial.number
    saved, lost = figures.significant(step.saved_ms), scale.drop(step.lost)
    return Bar(
        label=f"trial {slower} → {faster}",
        value=step.per_ms * scale.factor,
        role=Role.FAINT if step.is_within_noise else Role.FIRST,
        text=f"{lost} for {saved} ms",
        hover=f"trial {slower} → trial {faster}\nsaves {saved} ms, drop {lost}\n"
        f"{figures.significant(step.per_ms * scale.factor)} {scale.drop_unit} per ms",
    )
