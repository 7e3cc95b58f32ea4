"""All pictures of a search, in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoq.reporting.charts import Chart, Missing
from autoq.reporting.layer_charts import layer_map, sensitivity_chart
from autoq.reporting.layer_facts import LayerFacts
from autoq.reporting.marginal import marginal_chart
from autoq.reporting.pareto import pareto_charts
from autoq.reporting.trial_charts import prediction_chart, progress_chart, time_chart
from autoq.search.outcome import Outcome
from autoq.search.records import TrialRecord


@dataclass(frozen=True)
class Content:
    """A search as the report needs it."""

    outcome: Outcome
    trials: Sequence[TrialRecord]
    layers: Sequence[LayerFacts] = ()  # in the order of the graph; empty where nothing was kept


def draw_pictures(content: Content) -> tuple[list[Chart], list[Missing]]:
    """Draw what can be drawn of a search, and say what is left out and why."""
    outcome, baseline = content.outcome, content.outcome.record.baseline
    if baseline is None:
        return [], [Missing("All pictures", "the search has no baseline yet")]
    if not outcome.points:
        return [], [Missing("All pictures", "no trial is measured yet")]
    drawn: list[Chart | Missing] = [
        *pareto_charts(outcome, baseline),
        marginal_chart(outcome),
        layer_map(outcome, content.layers),
        sensitivity_chart(content.layers),
        progress_chart(outcome, baseline),
        prediction_chart(outcome, content.trials),
        time_chart(outcome, content.trials),
    ]
    charts = [one for one in drawn if isinstance(one, Chart)]
    return charts, [one for one in drawn if isinstance(one, Missing)]
