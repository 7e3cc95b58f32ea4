"""Pictures of the search itself: how it got on, where its time went, and how well it foresaw latencies."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from autoq.core.measurements import Baseline
from autoq.reporting import figures
from autoq.reporting.charts import Axis, Bar, Bars, Chart, Dot, Dots, Line, Missing, Plot, Role
from autoq.reporting.figures import Scale
from autoq.reporting.hypervolume import area_beyond
from autoq.search.goals import Objective, cost_of
from autoq.search.outcome import Outcome, Point
from autoq.search.records import TrialRecord, TrialState

_TOTAL = "total"
_SPANNING = frozenset({_TOTAL, "run", "inference"})  # add up parts that are there themselves
_PART_NAMES = {
    "suggest": "choosing a candidate",
    "build": "building the model",
    "load": "loading it and packing samples of it",
    "latency": "timing",
    "accuracy": "scoring",
    "other": "everything else",
    "store": "writing to the store",
    "track": "writing to MLflow",
}


def progress_chart(outcome: Outcome, baseline: Baseline) -> Chart | Missing:
    """Draw what each trial gave, and the best so far, over the trials."""
    title = "How the search got on"
    if not outcome.points:
        return Missing(title, "no trial is measured yet")
    if outcome.goals.constraints == type(outcome.goals.constraints)():
        return _area_progress(outcome, baseline, title)
    return _best_progress(outcome, title)


def _best_progress(outcome: Outcome, title: str) -> Chart:
    """Draw what is best by the bounds: what costs least within a drop, the most accurate within a budget."""
    scale, decisive = Scale.of(outcome.record.spec), outcome.goals.decisive
    what, axis, factor = {
        Objective.ACCURACY: ("drop", scale.drop_axis, scale.factor),
        Objective.LATENCY: ("latency", "latency (ms)", 1.0),
        Objective.SIZE: ("file size", "file size (MB)", 1e-6),
        Objective.STORAGE: ("bundle size", "bundle size (MB)", 1e-6),
    }[decisive]

    def value(point: Point) -> float:
        return factor * cost_of(decisive, point.measurement)

    xs, ys = best_so_far([(p.trial.number, value(p), p.feasible) for p in outcome.points])
    last = float(max(point.trial.number for point in outcome.points))
    line = Line("best feasible so far", Role.FRONT, (*xs, last), (*ys, *ys[-1:]), is_stairs=True)
    ceiling = _worth_showing([value(p) for p in outcome.points if p.feasible])
    is_cut = any(value(point) > ceiling for point in outcome.points)
    goal = f"{what} of a feasible candidate"
    found = f"found by trial {xs[-1]:.0f}" if xs else "never found: nothing was feasible"
    return Chart(
        "progress",
        title,
        f"The lowest {goal} so far; lower is better."
        + (" Infeasible candidates that are far worse lie on the upper edge." if is_cut else ""),
        f"Line of the lowest {goal} over {len(outcome.points)} candidates; the final best was {found}.",
        Plot(
            Axis("trial"),
            Axis(axis),
            _progress_dots(outcome, lambda point: min(value(point), ceiling)),
            (line,) if xs else (),
        ),
    )


def _progress_dots(outcome: Outcome, height: Callable[[Point], float]) -> tuple[Dots, ...]:
    scale = Scale.of(outcome.record.spec)
    kinds: dict[tuple[str, Role], list[Dot]] = {
        ("infeasible", Role.INFEASIBLE): [],
        ("searched", Role.SEARCHED): [],
        ("anchor", Role.ANCHOR): [],
    }
    for point in outcome.points:
        feasible_kind = ("anchor", Role.ANCHOR) if figures.is_anchor(point) else ("searched", Role.SEARCHED)
        kind = feasible_kind if point.feasible else ("infeasible", Role.INFEASIBLE)
        kinds[kind].append(Dot(float(point.trial.number), height(point), figures.hover_of(point, scale)))
    return tuple(Dots(label, role, tuple(dots)) for (label, role), dots in kinds.items() if dots)


def best_so_far(trials: Sequence[tuple[int, float, bool]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return where the lowest feasible value fell: numbers of trials and the values from there on."""
    xs: list[float] = []
    ys: list[float] = []
    for number, value, feasible in trials:
        if feasible and (not ys or value < ys[-1]):
            xs.append(float(number))
            ys.append(value)
    return tuple(xs), tuple(ys)


def _worth_showing(values: Sequence[float]) -> float:
    """Highest value that gets a place of its own, among feasible candidates; any value without one."""
    if not values:
        return math.inf
    low, high = min(values), max(values)
    return high + 0.15 * ((high - low) or abs(high) or 1.0)


def _area_progress(outcome: Outcome, baseline: Baseline, title: str) -> Chart:
    """Without bounds nothing is best: what grows is the area that the front has won from the float model."""
    costs = [(p.measurement.accuracy.drop, p.measurement.latency.latency_ms) for p in outcome.points]
    corner = max(max(drop for drop, _ in costs), 0.0), baseline.latency_ms
    areas = [area_beyond(costs[: n + 1], corner) for n in range(len(costs))]
    whole = areas[-1] or 1.0
    numbers = tuple(float(point.trial.number) for point in outcome.points)
    line = Line("front so far", Role.FRONT, numbers, tuple(100.0 * a / whole for a in areas), is_stairs=True)
    return Chart(
        "progress",
        title,
        "Area that the front covers between the float model's latency and the worst drop, as a share of what "
        "it covers in the end.",
        f"Rising line of the front's hypervolume over {len(areas)} candidates.",
        Plot(Axis("trial"), Axis("hypervolume (% of the final)"), (), (line,)),
    )


def time_chart(outcome: Outcome, trials: Sequence[TrialRecord]) -> Chart | Missing:
    """Draw where the time of the search went, longest first."""
    title = "Where the time of the search went"
    prepared = dict(outcome.record.preparation_s)
    spent = time_by_part(trials)
    bars = [
        *((f"prepare: {part}", seconds, Role.SECOND) for part, seconds in prepared.items()),
        *((_PART_NAMES.get(part, part), seconds, Role.FIRST) for part, seconds in spent.items()),
    ]
    total = sum(seconds for _, seconds, _ in bars)
    if total <= 0.0:
        return Missing(title, "no time was recorded")
    bars = sorted((bar for bar in bars if bar[1] > 0.0005 * total), key=lambda bar: -bar[1])
    return Chart(
        "time",
        title,
        f"{figures.duration(total)} for preparation and {len(trials)} trials; the final round is not in it.",
        f"Bars; the largest is {bars[0][0]} with {figures.duration(bars[0][1])}, {bars[0][1] / total:.0%}.",
        Bars(
            Axis("time (s)"),
            tuple(
                Bar(name, seconds, role, f"{figures.duration(seconds)}, {seconds / total:.0%}",
                    f"{name}\n{figures.duration(seconds)} of {figures.duration(total)}")
                for name, seconds, role in bars
            ),
            ((Role.FIRST, "trials"), (Role.SECOND, "preparation, once")),
        ),
    )  # fmt: skip


def time_by_part(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Add up the parts of all trials; what no part accounts for is `other`."""
    sums: defaultdict[str, float] = defaultdict(float)
    for trial in trials:
        parts = {part: seconds for part, seconds in trial.seconds.items() if part not in _SPANNING}
        for part, seconds in parts.items():
            sums[part] += seconds
        sums["other"] += max(trial.seconds.get(_TOTAL, 0.0) - sum(parts.values()), 0.0)
    return {part: seconds for part, seconds in sums.items() if seconds > 0.0}


def prediction_chart(outcome: Outcome, trials: Sequence[TrialRecord]) -> Chart | Missing:
    """Draw the latency that the strategy foresaw against the one that was measured."""
    title = "Predicted against measured latency"
    pairs = predicted_and_measured(trials)
    if not pairs:
        strategy = outcome.record.spec["search"]["strategy"]
        return Missing(title, f"the strategy {strategy} predicts no latencies")
    scale, points = Scale.of(outcome.record.spec), {p.trial.number: p for p in outcome.points}
    dots = tuple(
        Dot(
            measured,
            predicted,
            f"predicted {figures.significant(predicted)} ms\n"
            + (figures.hover_of(points[number], scale) if number in points else f"trial {number}"),
        )
        for number, predicted, measured in pairs
    )
    ends = [end for _, predicted, measured in pairs for end in (predicted, measured)]
    errors = [abs(predicted / measured - 1.0) for _, predicted, measured in pairs]
    middle = statistics.median(errors)
    diagonal = (min(ends), max(ends))
    return Chart(
        "prediction",
        title,
        f"On the line the prediction was right. Median error {middle:.1%} over {len(pairs)} trials.",
        f"Scatter plot of {len(pairs)} trials along a diagonal; the median error is {middle:.1%}.",
        Plot(
            Axis("measured latency (ms)"),
            Axis("predicted latency (ms)"),
            (Dots("trial", Role.SEARCHED, dots),),
            (Line("prediction = measurement", Role.BOUND, diagonal, diagonal),),
        ),
    )


def predicted_and_measured(trials: Sequence[TrialRecord]) -> list[tuple[int, float, float]]:
    """Return number, predicted and measured latency in ms of the trials that have both."""
    pairs = []
    for trial in trials:
        reasons = trial.reasons
        predicted = reasons.get("predicted_latency_ms")
        if predicted is None or trial.measurement is None or trial.state is TrialState.REPEATED:
            continue
        pairs.append((trial.number, float(predicted), trial.measurement.latency.latency_ms))
    return pairs
