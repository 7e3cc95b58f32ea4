"""Local error of a variant: what a change of weights does to the layer's output, from moments alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]  # float32 or float64; results keep the dtype


def through_moments(delta: Floats, blocks: Sequence[Floats]) -> Floats:
    """Multiply rows by the block-diagonal moments: ΔW·A, shape (groups, rows, columns).

    Args:
        delta: Shape (groups, rows, columns).
        blocks: E[xxᵀ] of consecutive columns, each (groups, width, width).

    Raises:
        ValueError: The blocks do not cover the columns.
    """
    widths = [block.shape[-1] for block in blocks]
    if sum(widths) != delta.shape[2]:
        raise ValueError(f"moments of {widths} columns do not fit rows of {delta.shape[2]}")
    product = np.empty_like(delta)
    start = 0
    for block in blocks:
        columns = slice(start, start + block.shape[-1])
        np.matmul(delta[..., columns], block, out=product[..., columns])
        start = columns.stop
    return product


def row_errors(delta: Floats, blocks: Sequence[Floats]) -> npt.NDArray[np.float64]:
    """Mean squared change of every output channel, diag(ΔW·A·ΔWᵀ), of shape (groups, rows).

    Moments are positive semidefinite but for rounding, so what falls below zero counts as zero.
    """
    product = through_moments(delta, blocks)
    errors: npt.NDArray[np.float64] = np.einsum("grc,grc->gr", product, delta, dtype=np.float64)
    return np.maximum(errors, 0.0)


def weight_error(rows: Floats, restored: Floats, blocks: Sequence[Floats]) -> float:
    """Sum over groups of tr(ΔW·A·ΔWᵀ): the layer's mean squared output error, summed over channels.

    Args:
        rows: Float weights, shape (groups, rows, columns).
        restored: What the compressed weights stand for, same shape.
        blocks: E[xxᵀ] of consecutive columns, each (groups, width, width).
    """
    return float(row_errors(restored - rows, blocks).sum())


def bias_correction(rows: Floats, restored: Floats, mean: Floats) -> npt.NDArray[np.float32]:
    """Return what to add to the bias, (W − Ŵ)·E[x], one value an output channel in layer order.

    Args:
        rows: Float weights, shape (groups, rows, columns).
        restored: What the compressed weights stand for, same shape.
        mean: E[x], shape (groups, columns).

    Returns:
        Shape (groups * rows,). Nagel et al. 2019, section 4.2.
    """
    shift: npt.NDArray[np.float64] = np.einsum("grc,gc->gr", rows - restored, mean, dtype=np.float64)
    return shift.reshape(-1).astype(np.float32)


def corrected_error(rows: Floats, restored: Floats, blocks: Sequence[Floats], mean: Floats) -> float:
    """Local error that is left once the bias is corrected: tr(ΔW·(A − E[x]E[x]ᵀ)·ΔWᵀ).

    With several blocks the mean is taken off block by block, as the moments are kept.
    """
    delta = restored - rows
    errors = row_errors(delta, blocks)
    start = 0
    for block in blocks:
        columns = slice(start, start + block.shape[-1])
        shift = np.einsum("grc,gc->gr", delta[..., columns], mean[:, columns], dtype=np.float64)
        errors = errors - shift**2
        start = columns.stop
    return float(np.maximum(errors, 0.0).sum())


def lookup_energy(table: Floats, shares: Floats) -> float:
    """Mean squared length of the rows that are looked up: the sum of shares[r] * |table[r]|².

    Of a change of the table it is the mean squared error of the lookups, which no bias makes up for.

    Args:
        table: Shape (rows, embedding).
        shares: Share of lookups that read each row, shape (rows,).
    """
    lengths: npt.NDArray[np.float64] = np.einsum("rc,rc->r", table, table, dtype=np.float64)
    return float(lengths @ shares)
