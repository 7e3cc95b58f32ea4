"""What a metric says of a model on a split, and what that says beside the float model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoq.core.measurements import Accuracy
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.statistics import Values, Z, mean_drop_estimate


@dataclass(frozen=True, eq=False)
class Score:
    """What a metric says of a model on a split."""

    value: float
    values: Values | None  # (n,) per example; None where the metric is one number
    n_examples: int


def compare(
    baseline: Score, candidate: Score, metric: MetricSpec, *, jitter: Values | None = None
) -> Accuracy:
    """Derive the drop and its interval; the drop is positive where the candidate is worse.

    Args:
        baseline: Score of the float model.
        candidate: Score of the candidate on the same examples.
        metric: Says which way is worse, and how large a difference can be.
        jitter: (n,) by how much the float model's own values moved from one run to the next, where its
            outputs are not deterministic. Its root sum of squares over n, the standard error of a mean
            of so many such moves, widens the interval.
    """
    drop = metric.sign * (baseline.value - candidate.value)
    if baseline.values is None or candidate.values is None:
        return Accuracy(candidate.value, drop, None, candidate.n_examples)
    estimate = mean_drop_estimate(metric.sign * (baseline.values - candidate.values), span=metric.span)
    if estimate is not None and jitter is not None:
        estimate = estimate.widened(Z * float(np.sqrt((jitter**2).sum())) / len(jitter))
    interval = None if estimate is None else (estimate.low, estimate.high)
    return Accuracy(candidate.value, drop, interval, candidate.n_examples)
