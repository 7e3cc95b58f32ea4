"""Uniform weight grids, and the scales that lose least on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Granularity
from autoq.core.quantization import weight_limit

Floats = npt.NDArray[Any]  # float32 or float64

_N_SHRINKS = 24
_CACHED_WEIGHTS = 1 << 17  # weights tried at once, so that temporaries stay in the cache


@dataclass(frozen=True, eq=False, slots=True)
class UniformGrid:
    """The values `scale * integer` with integers low..high; scales may be negative, never zero."""

    scales: Floats  # broadcastable to (groups, rows, columns)
    low: int
    high: int

    @staticmethod
    def symmetric(scales: Floats, bits: int) -> UniformGrid:
        """Grid -limit..limit, as static and dynamic int8 take it."""
        limit = weight_limit(bits)
        return UniformGrid(scales, -limit, limit)

    @staticmethod
    def of_blocks(scales: Floats, bits: int, *, block_size: int, n_columns: int) -> UniformGrid:
        """Grid -half..half-1 with one scale a block of columns, as weight-only formats take it.

        Args:
            scales: Shape (rows, blocks), as `round_blocks` returns them.
            bits: Of the grid.
            block_size: Columns that share a scale.
            n_columns: Columns of the layer; the last block may be shorter.
        """
        half = 2 ** (bits - 1)
        spread = np.repeat(scales, block_size, axis=1)[None, :, :n_columns]
        return UniformGrid(spread, -half, half - 1)

    def nearest(self, scaled: Floats) -> Floats:
        """Round values that are divided by their scale to integers of the grid, half to even."""
        rounded = np.rint(scaled)
        return np.clip(rounded, self.low, self.high, out=rounded)

    def towards(self, integers: Floats, scaled: Floats) -> Floats:
        """Return the next integer in the direction of a value, or the same one at the grid's end."""
        found: Floats = np.clip(integers + np.sign(scaled - integers), self.low, self.high)
        return found

    def round(self, rows: Floats) -> npt.NDArray[np.int8]:
        """Round rows to the nearest integers of the grid."""
        return self.nearest(rows / self.scales).astype(np.int8)


def clipped_scales(
    rows: Floats, diagonal: Floats, bits: int, granularity: Granularity
) -> npt.NDArray[np.float32]:
    """Return the scales of a symmetric grid with the smallest Σ A_jj·(ŵ_j − w_j)².

    The largest magnitude is put on the grid's limit, or beyond it where clipping the extremes buys
    enough resolution. Unshrunk scales are always tried, and win ties. Rows of zeros get scale 1.

    Args:
        rows: Float weights, shape (groups, rows, columns).
        diagonal: E[x_j²], shape (groups, columns).
        bits: Of the grid, 2..8.
        granularity: CHANNEL for a scale a row, TENSOR for one scale. Where groups share the scales
            of their rows (grouped ConvTranspose), pass rows as (1, rows, groups * columns).

    Returns:
        Shape (groups, rows, 1) or (1, 1, 1).

    Raises:
        ValueError: The granularity is neither.
    """
    if granularity not in (Granularity.CHANNEL, Granularity.TENSOR):
        raise ValueError(f"granularity {granularity} has no scale a row")
    limit = weight_limit(bits)
    extreme = np.abs(rows).max(axis=2, initial=0.0)
    if granularity is Granularity.TENSOR:
        extreme = np.full_like(extreme, extreme.max(initial=0.0))
    full = _safe(extreme / limit)
    shrinks = _shrinks(bits)
    losses = np.empty((shrinks.size, *full.shape))
    for groups, some in _parts(rows.shape):
        scaled = rows[groups, some] / full[groups, some, None]
        losses[:, groups, some] = _losses(scaled, diagonal[groups], limit, shrinks)
    if granularity is Granularity.TENSOR:
        best = shrinks[losses.sum(axis=(1, 2)).argmin()]
        return _safe(full.max(initial=0.0) * best).reshape(1, 1, 1)
    return _safe(full * shrinks[losses.argmin(axis=0)])[..., None]


def _shrinks(bits: int) -> npt.NDArray[np.float32]:
    """Factors of the max-abs scale to try, 1 first.

    Three levels lose least on a Gaussian at 1.2 standard deviations, a third of the largest of a
    thousand: 2 bits need to look lower than others.
    """
    return np.linspace(1.0, 0.2 if bits == 2 else 0.35, _N_SHRINKS, dtype=np.float32)


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Cut (groups, rows, columns) into slices of groups and rows that stay in the cache."""
    n_groups, n_rows, n_columns = shape
    n_cached = max(1, _CACHED_WEIGHTS // max(1, n_columns))
    step = max(1, n_cached // max(1, n_rows))
    for group in range(0, n_groups, step):
        for row in range(0, n_rows, n_cached):
            yield slice(group, group + step), slice(row, row + n_cached)


def _losses(
    scaled: Floats, diagonal: Floats, limit: int, shrinks: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return weighted squared rounding errors, shape (shrinks, groups, rows).

    Args:
        scaled: Shape (groups, rows, columns), in units of the unshrunk scale: squares of weights may
            overflow.
        diagonal: E[x_j²], shape (groups, columns).
        limit: Of the grid.
        shrinks: Scales to try.
    """
    losses = np.empty((shrinks.size, *scaled.shape[:2]))
    error = np.empty_like(scaled)
    for index, shrink in enumerate(shrinks):
        np.divide(scaled, shrink, out=error)
        np.rint(error, out=error)
        np.clip(error, -limit, limit, out=error)
        error *= shrink
        error -= scaled
        np.square(error, out=error)
        losses[index] = (error @ diagonal[..., None])[..., 0]
    return losses


def _safe(scale: Any) -> npt.NDArray[np.float32]:
    """Replace scales that are zero or subnormal by 1."""
    single = np.asarray(scale, np.float32)
    return np.where(single > np.finfo(np.float32).tiny, single, 1.0).astype(np.float32)
