"""How far a candidate's outputs are from the float model's, without labels. Pure arithmetic."""

from __future__ import annotations

import numpy as np

from autoq.core.data import Array
from autoq.core.errors import TrialError
from autoq.evaluation.metrics import MetricSpec, Outputs
from autoq.evaluation.statistics import Values


def divergences(
    reference: Outputs, outputs: Outputs, metric: MetricSpec, *, output: str | None = None
) -> Values:
    """Measure each example's distance from the float model.

    For `top1` and `top5` it is KL(softmax(float) ‖ softmax(candidate)) over the last axis, in nats, else
    the squared error relative to the float output's square.

    Args:
        reference: The float model's outputs, each (n, ...).
        outputs: The candidate's.
        metric: What the candidate is scored by.
        output: The output to look at; the distances of all are summed by default.

    Returns:
        (n,) values of at least 0; infinite where an output is.

    Raises:
        TrialError: An output has another shape than the float model's.
    """
    names = sorted(reference) if output is None else [output]
    distance = kl_divergence if metric.needs_labels else relative_error
    parts = []
    for name in names:
        found, wanted = outputs[name], reference[name]
        if found.shape != wanted.shape:
            raise TrialError(f"output {name!r} has shape {found.shape}, the float model's {wanted.shape}")
        parts.append(distance(wanted, found))
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def kl_divergence(reference: Array, outputs: Array) -> Values:
    """KL(softmax(reference) ‖ softmax(outputs)) of each example, in nats.

    Args:
        reference: (n, ..., classes) scores before the softmax.
        outputs: Of the same shape.

    Returns:
        (n,): the mean over the axes between; infinite where a score is not finite but should be.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(outputs)
    p = np.exp(log_p)
    # A class that the float model rules out (a score of minus infinity) adds nothing.
    with np.errstate(invalid="ignore"):
        terms = np.where(p == 0, 0.0, p * (log_p - log_q))
    values = terms.sum(axis=-1).reshape(len(terms), -1).mean(axis=1)
    return _finite_or_infinite(np.maximum(values, 0.0))  # rounding can go below


def relative_error(reference: Array, outputs: Array) -> Values:
    """‖y − y₀‖²/‖y₀‖² of each example, (n,); where the reference y₀ is zero, ‖y‖² alone."""
    wanted = reference.reshape(len(reference), -1).astype(np.float64)
    found = outputs.reshape(len(outputs), -1).astype(np.float64)
    squares = np.einsum("ij,ij->i", wanted, wanted)
    with np.errstate(invalid="ignore"):
        error = found - wanted
        values = np.einsum("ij,ij->i", error, error) / np.where(squares > 0, squares, 1.0)
    return _finite_or_infinite(values)


def _log_softmax(scores: Array) -> Values:
    scores = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted = scores - scores.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _finite_or_infinite(values: Values) -> Values:
    return np.asarray(np.where(np.isnan(values), np.inf, values), dtype=np.float64)
