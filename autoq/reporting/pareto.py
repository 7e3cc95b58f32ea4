"""The Pareto front: what was measured, what is best, and where the bounds are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoq.core.fronts import front_rows
from autoq.core.measurements import Baseline, Interval, Measurement
from autoq.reporting import figures
from autoq.reporting.charts import Axis, Chart, Dot, Dots, Line, Note, Plot, Role, Rule
from autoq.reporting.figures import Scale
from autoq.search.goals import Objective
from autoq.search.outcome import Outcome, Point

_LOG_RANGE = 10.0  # values that differ by more than this factor get a logarithmic axis


@dataclass(frozen=True, slots=True)
class Cost:
    """What accuracy is traded for: the horizontal axis, in the unit it is drawn in."""

    slug: str
    name: str
    unit: str
    value: Callable[[Measurement], float]
    interval: Callable[[Measurement], Interval | None]
    baseline: float
    baseline_interval: Interval | None
    bound: float | None
    baseline_name: str = "float model"


def pareto_charts(outcome: Outcome, baseline: Baseline) -> list[Chart]:
    """Draw accuracy against latency, and against bytes where they are an objective."""
    costs = [_latency(outcome, baseline), *_bytes(outcome, baseline)]
    return [_chart(outcome, baseline, cost) for cost in costs]


def latency_budget_ms(outcome: Outcome, baseline: Baseline) -> float | None:
    """Return the tighter of the two bounds on latency; None without one."""
    bounds = outcome.goals.constraints
    relative = None if bounds.max_latency_ratio is None else bounds.max_latency_ratio * baseline.latency_ms
    return min((bound for bound in (bounds.max_latency_ms, relative) if bound is not None), default=None)


def _latency(outcome: Outcome, baseline: Baseline) -> Cost:
    return Cost(
        "pareto",
        "latency",
        "ms",
        value=lambda measured: measured.latency.latency_ms,
        interval=lambda measured: measured.latency.latency_ms_ci,
        baseline=baseline.latency_ms,
        baseline_interval=baseline.latency_ms_ci,
        bound=latency_budget_ms(outcome, baseline),
    )


def _bytes(outcome: Outcome, baseline: Baseline) -> list[Cost]:
    bounds, n_bytes = outcome.goals.constraints, baseline.size_bytes / 1e6

    def cost(slug: str, name: str, value: Callable[[Measurement], float], bound: int | None) -> Cost:
        limit = None if bound is None else bound / 1e6
        return Cost(
            slug, name, "MB", value, lambda measured: None, n_bytes, None, limit, "float model's file"
        )

    costs = {
        Objective.SIZE: cost("pareto-size", "file", lambda m: m.size.size_bytes / 1e6, bounds.max_size_bytes),
        Objective.STORAGE: cost(
            "pareto-storage", "bundle", lambda m: m.size.bundle_bytes / 1e6, bounds.max_bundle_bytes
        ),
    }
    return [cost for objective, cost in costs.items() if objective in outcome.goals.objectives]


def _chart(outcome: Outcome, baseline: Baseline, cost: Cost) -> Chart:
    scale = Scale.of(outcome.record.spec)
    place = _Places(outcome, baseline, cost, scale)
    worst, dearest = _drop_worth_showing(outcome), _dearest_worth_showing(outcome, cost)
    shown = [
        point
        for point in outcome.points
        if point.measurement.accuracy.drop <= worst and cost.value(point.measurement) <= dearest
    ]
    beyond = [point for point in outcome.points if point not in shown]
    span = place.span(shown)
    values = [*(cost.value(point.measurement) for point in shown), cost.baseline]
    plot = Plot(
        x=Axis(f"{cost.name} ({cost.unit})", is_log=max(values) > _LOG_RANGE * min(values) > 0),
        y=Axis(scale.axis if outcome.goals.maximize else f"{scale.axis}, lower is better", span=span),
        dots=(
            *_kinds(outcome, shown, place),
            *_chosen(outcome, shown, place),
            *(
                [Dots("off the scale", Role.OFF_SCALE, place.on_edge(beyond, span, max(values)))]
                if beyond
                else []
            ),
            Dots("float model", Role.BASELINE, (place.baseline_dot(),)),
        ),
        lines=_front_line(outcome, shown, place),
        rules=_rules(outcome, place),
        notes=_notes(outcome, shown, place),
    )
    feasible = sum(point.feasible for point in outcome.points)
    return Chart(
        slug=cost.slug,
        title=f"Accuracy against {cost.name}",
        subtitle=(
            f"Every candidate as it was measured; bars of front members are 95 % intervals. "
            f"{len(outcome.points)} candidates, {feasible} feasible, {len(outcome.front)} on the front."
        ),
        alt=_alt(outcome, cost, scale),
        body=plot,
    )


@dataclass(frozen=True)
class _Places:
    """Where points lie in a picture."""

    outcome: Outcome
    baseline: Baseline
    cost: Cost
    scale: Scale

    def height(self, drop: float) -> float:
        """Height of a drop from the baseline's accuracy."""
        worse = -1.0 if self.outcome.goals.maximize else 1.0
        return self.scale.factor * (self.baseline.accuracy + worse * drop)

    def dot(self, point: Point, *, with_bars: bool = False) -> Dot:
        accuracy = point.measurement.accuracy
        bar = None
        if with_bars and accuracy.drop_ci is not None:
            ends = [
                self.scale.factor * accuracy.value + self.height(end) - self.height(accuracy.drop)
                for end in accuracy.drop_ci
            ]
            bar = (min(ends), max(ends))
        return Dot(
            self.cost.value(point.measurement),
            self.scale.factor * accuracy.value,
            figures.hover_of(point, self.scale),
            self.cost.interval(point.measurement) if with_bars else None,
            bar,
        )

    def baseline_dot(self) -> Dot:
        value = self.scale.value(self.baseline.accuracy)
        hover = (
            f"{self.cost.baseline_name}\n{self.scale.metric} {value}\n"
            f"{figures.significant(self.cost.baseline)} {self.cost.unit}"
        )
        y = self.scale.factor * self.baseline.accuracy
        return Dot(self.cost.baseline, y, hover, self.cost.baseline_interval)

    def span(self, shown: Sequence[Point]) -> Interval:
        """Heights that are shown: all points worth it, the bars of front members, the bound."""
        front = {point.trial.number for point in self.outcome.front}
        dots = [self.dot(point, with_bars=point.trial.number in front) for point in shown]
        ends = [end for dot in dots for end in (dot.y, *(dot.y_interval or ()))]
        allowed = self.outcome.goals.constraints.max_accuracy_drop
        ends += [] if allowed is None else [self.height(allowed)]
        ends.append(self.scale.factor * self.baseline.accuracy)
        low, high = min(ends), max(ends)
        room = 0.08 * ((high - low) or 1.0)
        return low - room, high + room

    def on_edge(self, points: Sequence[Point], span: Interval, dearest: float) -> tuple[Dot, ...]:
        """Put points that are too bad for the picture on its edge; their hover says where they are."""
        inset = 0.02 * (span[1] - span[0])
        low, high, edge = span[0] + inset, span[1] - inset, 1.04 * dearest
        dots = [self.dot(point) for point in points]
        return tuple(replace(dot, x=min(dot.x, edge), y=min(max(dot.y, low), high)) for dot in dots)


def _drop_worth_showing(outcome: Outcome) -> float:
    """Largest drop that gets a place of its own; a collapsed candidate must not flatten the rest."""
    drops = np.array([point.measurement.accuracy.drop for point in outcome.points])
    drops = drops[np.isfinite(drops)]
    if drops.size == 0:
        return 0.0
    allowed = outcome.goals.constraints.max_accuracy_drop
    if allowed is not None:
        fence = max(5.0 * allowed, *(p.measurement.accuracy.drop for p in outcome.points if p.feasible), 0.0)
    else:
        low, high = np.quantile(drops, [0.25, 0.75])
        fence = float(high + 3.0 * (high - low))
    return fence if drops.max() > 2.0 * fence else float(drops.max())


def _dearest_worth_showing(outcome: Outcome, cost: Cost) -> float:
    """Highest cost that gets a place of its own: little beyond the float model, the budget and the front."""
    front = [cost.value(point.measurement) for point in outcome.front]
    return 1.05 * max([cost.baseline, *front, *([] if cost.bound is None else [cost.bound])])


def _kinds(outcome: Outcome, shown: Sequence[Point], place: _Places) -> list[Dots]:
    front = {point.trial.number for point in outcome.front}
    kinds: dict[tuple[str, Role], list[Dot]] = {
        ("infeasible", Role.INFEASIBLE): [],
        ("stopped early, estimated", Role.RACED_OUT): [],
        ("searched", Role.SEARCHED): [],
        ("anchor", Role.ANCHOR): [],
    }
    for point in shown:
        dot = place.dot(point, with_bars=point.trial.number in front)
        kinds[_kind_of(point)].append(dot)
    return [Dots(label, role, tuple(dots)) for (label, role), dots in kinds.items() if dots]


def _kind_of(point: Point) -> tuple[str, Role]:
    if figures.is_raced_out(point):
        return "stopped early, estimated", Role.RACED_OUT
    if not point.feasible:
        return "infeasible", Role.INFEASIBLE
    return ("anchor", Role.ANCHOR) if figures.is_anchor(point) else ("searched", Role.SEARCHED)


def _front_line(outcome: Outcome, shown: Sequence[Point], place: _Places) -> tuple[Line, ...]:
    """Draw the stairs under which nothing was found, in this picture's two dimensions."""
    numbers = {point.trial.number for point in shown}
    front = [point for point in outcome.front if point.trial.number in numbers]
    costs = [(place.cost.value(point.measurement), point.measurement.accuracy.drop) for point in front]
    rows = front_rows(np.array(costs, dtype=np.float64).reshape(len(costs), 2))
    dots = sorted((place.dot(front[row]) for row in rows), key=lambda dot: dot.x)
    if not dots:
        return ()
    xs, ys = tuple(dot.x for dot in dots), tuple(dot.y for dot in dots)
    return (Line("front", Role.FRONT, xs, ys, is_stairs=True),)


def _rules(outcome: Outcome, place: _Places) -> tuple[Rule, ...]:
    allowed, cost = outcome.goals.constraints.max_accuracy_drop, place.cost
    rules = []
    if cost.bound is not None:
        budget = f"budget {figures.significant(cost.bound)} {cost.unit}"
        rules.append(Rule(budget, cost.bound, is_vertical=True))
    if allowed is not None:
        unit = f" {place.scale.drop_unit}" if place.scale.drop_unit else ""
        label = f"allowed drop {allowed * place.scale.factor:.3g}{unit}"
        rules.append(Rule(label, place.height(allowed), is_vertical=False))
    return tuple(rules)


def _chosen(outcome: Outcome, shown: Sequence[Point], place: _Places) -> list[Dots]:
    point = outcome.best or outcome.nearest
    if point is None or point not in shown:
        return []
    label = "best" if outcome.best else "nearest to feasible"
    return [Dots(label, Role.CHOSEN, (place.dot(point),))]


def _notes(outcome: Outcome, shown: Sequence[Point], place: _Places) -> tuple[Note, ...]:
    notes = []
    point = outcome.best or outcome.nearest
    if point is not None and point in shown:
        dot, name = place.dot(point), "best" if outcome.best else "nearest"
        speed = f", {point.measurement.latency.speedup:.1f}x" if place.cost.name == "latency" else ""
        notes.append(Note(dot.x, dot.y, f"{name}: trial {point.trial.number}{speed}"))
    dot = place.baseline_dot()
    notes.append(Note(dot.x, dot.y, place.cost.baseline_name))
    return tuple(notes)


def _alt(outcome: Outcome, cost: Cost, scale: Scale) -> str:
    start = f"Scatter plot of {scale.metric} against {cost.name} for {len(outcome.points)} candidates."
    point = outcome.best or outcome.nearest
    if point is None:
        return start
    name = "The best" if outcome.best else "Nothing is feasible; the nearest"
    measured = point.measurement
    return (
        f"{start} {name} is trial {point.trial.number}: {scale.metric} "
        f"{scale.value(measured.accuracy.value)} at {figures.significant(cost.value(measured))} {cost.unit}, "
        f"where the float model takes {figures.significant(cost.baseline)} {cost.unit}."
    )
