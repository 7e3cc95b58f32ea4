"""Refit the weights that read a channel group, once some of its units are gone: least squares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoq.pruning.consumers import Consumer, Floats, Indices

Wide = npt.NDArray[np.float64]

# λ in units of the mean of the diagonal of what stays.
RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


@dataclass(frozen=True, eq=False)
class Refit:
    """What a consumer becomes at one width."""

    columns: Indices  # (kept,) of the row group of the layer, rising
    weight: Floats  # (rows, kept)
    bias: Floats  # (rows,) to be added: what the removed columns were on average
    error: float  # E|change of the outputs|² over all rows, as a share of their variance
    variance: float  # of the outputs, summed over rows, as far as these columns make them


def refit(consumer: Consumer, kept: npt.NDArray[np.bool_], ridge: float) -> Refit:
    """Return Ŵ = (W A_{:,K} + λW_K) (A_KK + λI)⁻¹ over centred moments A, W·E[x] - Ŵ·E[x_K] for the bias.

    That is least squares with λ|Ŵ - W_K|² added: a large λ leaves the weights as they were, where ridge
    regression to zero would shrink them and with them the outputs.

    Args:
        consumer: What is refitted.
        kept: (n,) of its columns, at least one.
        ridge: λ, positive.
    """
    return next(iter(refit_nested(consumer, np.flatnonzero(kept), [int(kept.sum())], ridge)))


def refit_nested(consumer: Consumer, order: Indices, widths: Sequence[int], ridge: float) -> Iterator[Refit]:
    """Refit at nested widths at the price of one Cholesky: that of a leading block is a leading block of it.

    Args:
        consumer: What is refitted.
        order: Positions of its columns, those that stay longest first; columns never kept may be missing.
        widths: How many columns of the order stay, in falling or rising order.
        ridge: λ, positive.
    """
    from scipy.linalg import solve_triangular  # a tenth of a second: not for a search at full width

    covariance = consumer.covariance
    damped = covariance[np.ix_(order, order)]
    damped[np.diag_indices_from(damped)] += np.float32(ridge)
    lower = _cholesky(damped)
    across = consumer.weight @ covariance  # (rows, n)
    right = across + np.float32(ridge) * consumer.weight
    variance = float(np.einsum("ij,ij->", across, consumer.weight, dtype=np.float64))
    forward = solve_triangular(lower, right[:, order].T, lower=True, check_finite=False)  # (order, rows)
    total = consumer.weight.astype(np.float64) @ consumer.mean
    for width in widths:
        kept = np.sort(order[:width])
        fitted = _back_substitute(lower, forward, order, width)
        moved = consumer.weight[:, kept] - fitted
        explained = np.einsum("ij,ij->", fitted, across[:, kept], dtype=np.float64)
        pull = np.einsum("ij,ij->", fitted, moved, dtype=np.float64)
        error = variance - float(explained) + ridge * float(pull)
        bias = total - fitted.astype(np.float64) @ consumer.mean[kept]
        share = max(error, 0.0) / variance if variance > 0.0 else 0.0
        yield Refit(consumer.columns[kept], fitted, bias.astype(np.float32), share, max(variance, 0.0))


def _back_substitute(lower: Floats, forward: Floats, order: Indices, width: int) -> Floats:
    """Return the weights of the first columns of the order, (rows, width), sorted by column."""
    from scipy.linalg import solve_triangular

    rising = np.argsort(order[:width], kind="stable")
    if not width:
        return np.zeros((forward.shape[1], 0), np.float32)
    corner = lower[:width, :width]
    solved = solve_triangular(corner, forward[:width], lower=True, trans="T", check_finite=False)
    return np.ascontiguousarray(solved[rising].T, np.float32)


def choose_ridge(consumer: Consumer, kept: npt.NDArray[np.bool_], ridges: Sequence[float] = RIDGES) -> float:
    """Return the λ whose fit on one half of the data errs least on the other, both ways summed.

    The halves are compared without a constant input: of what they have by themselves only E[xxᵀ] is
    known. A λ that is best for half the data is a little large for all of it.

    Args:
        consumer: What is refitted.
        kept: (n,) of its columns.
        ridges: What to choose from, in units of the mean of the diagonal of E[x_K x_Kᵀ].
    """
    diagonals = [np.diagonal(half)[kept].mean(dtype=np.float64) for half in consumer.halves]
    unit = max(float(np.mean(diagonals)), float(np.finfo(np.float32).tiny))
    errors = np.zeros(len(ridges))
    for fitted_on, judged_on in (consumer.halves, consumer.halves[::-1]):
        errors += [_held_out_error(consumer.weight, fitted_on, judged_on, kept, one * unit) for one in ridges]
    return unit * ridges[int(np.argmin(errors))]


def fit_residual(
    vectors: tuple[Floats, Floats], residuals: tuple[Floats, Floats], ridges: Sequence[float] = RIDGES
) -> tuple[Floats, Floats]:
    """Fit what a layer lacks: minimise E|r - Dx - b|² + λ|D|², λ the best on the other half, both ways.

    Args:
        vectors: x of two halves of the examples, (rows, columns) each.
        residuals: r, (rows, outputs) each.
        ridges: What to choose λ from, in units of the mean variance of x.

    Returns:
        D, (outputs, columns), and b, (outputs,).
    """
    errors = np.zeros(len(ridges))
    for fitted_on, judged_on in ((0, 1), (1, 0)):
        for index, fit in enumerate(_fits(vectors[fitted_on], residuals[fitted_on], ridges)):
            left = residuals[judged_on] - vectors[judged_on] @ fit[0].T - fit[1]
            errors[index] += np.square(left, dtype=np.float64).mean()
    best = ridges[int(np.argmin(errors))]
    return next(_fits(np.concatenate(vectors), np.concatenate(residuals), [best]))


def _fits(vectors: Floats, residuals: Floats, ridges: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
    mean_x, mean_r = vectors.mean(axis=0), residuals.mean(axis=0)
    centred = vectors - mean_x
    covariance = centred.T @ centred / np.float32(len(centred))
    across = centred.T @ (residuals - mean_r) / np.float32(len(centred))
    unit = max(float(np.diagonal(covariance).mean(dtype=np.float64)), float(np.finfo(np.float32).tiny))
    for ridge in ridges:
        damped = covariance.copy()
        damped[np.diag_indices_from(damped)] += np.float32(ridge * unit)
        change = np.ascontiguousarray(_solve(damped, across).T, np.float32)
        yield change, mean_r - change @ mean_x


def _held_out_error(
    weight: Floats, fitted_on: Floats, judged_on: Floats, kept: npt.NDArray[np.bool_], ridge: float
) -> float:
    damped = fitted_on[np.ix_(kept, kept)]
    damped[np.diag_indices_from(damped)] += np.float32(ridge)
    right = weight @ fitted_on[:, kept] + np.float32(ridge) * weight[:, kept]
    solved = _solve(damped, right.T)
    change = weight.copy()
    change[:, kept] -= solved.T
    return float(np.einsum("ij,ij->", change @ judged_on, change, dtype=np.float64))


def _cholesky(damped: Floats) -> Floats:
    """Factor in float32, and in float64 where that is not enough."""
    from scipy.linalg import cholesky

    try:
        lower: Floats = cholesky(damped, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        lower = cholesky(_lifted(damped), lower=True, check_finite=False).astype(np.float32)
    return lower


def _solve(damped: Floats, right: Floats) -> Floats:
    from scipy.linalg import cho_solve

    solved: Floats = cho_solve((_cholesky(damped), True), right, check_finite=False)
    return solved


def _lifted(damped: Floats) -> Wide:
    """Widen, and lift eigenvalues that float32 sums have pushed below zero."""
    wide = damped.astype(np.float64)
    wide[np.diag_indices_from(wide)] += float(np.finfo(np.float32).eps) * float(np.trace(wide))
    return wide
