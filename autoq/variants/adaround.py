"""Learn which way each weight is rounded, against the output error that the moments tell.

Nagel et al. 2020 (AdaRound), on the quadratic objective tr(ΔW·A·ΔWᵀ) in place of batches; then
coordinate descent over the grid, as in QuantEase (Behdin et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.variants.gptq import Grid
from autoq.variants.local_error import row_errors, through_moments

Floats = npt.NDArray[Any]  # float32 or float64
Int8 = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]

# Found on 512 correlated inputs at 2 and 4 bits; the outcome is flat around them.
_RATE = 0.05
_PUSH = 0.3  # of the regulariser that decides, in units of one step's mean cost
_WAIT = 0.1  # share of the steps before it pushes
_EXPONENTS = (8.0, 2.0)  # from flat in the middle to steep everywhere
_MOMENTUM, _MEMORY = 0.9, 0.99
_STRETCH = 0.1  # the rectified sigmoid overshoots 0 and 1 by this, so that it reaches them

_BLOCK = 128  # columns that coordinate descent visits between two products


def adaround(
    rows: Floats,
    start: Int8,
    grid: Grid,
    blocks: Sequence[Floats],
    *,
    kept: Mask,
    n_steps: int = 500,
) -> Int8:
    """Improve rounded rows; no row's output error grows.

    Each weight either stays or moves to the next value of the grid in the direction of its float
    value; which of the two is learnt for all weights together.

    Args:
        rows: Float weights, shape (groups, rows, columns).
        start: Integers to start from, same shape: GPTQ's end up best.
        grid: What the integers stand for.
        blocks: E[xxᵀ] of consecutive columns, each (groups, width, width).
        kept: Weights that may move; False leaves them as they are, such as pruned ones.
        n_steps: Of Adam; time grows with n_steps * rows * columns².
    """
    given = start.astype(rows.dtype)
    scaled = rows / grid.scales
    other = np.where(kept, grid.towards(given, scaled), given)
    step = ((other - given) * grid.scales).astype(rows.dtype)
    diagonal = np.concatenate([np.einsum("gcc->gc", block) for block in blocks], axis=1)
    unit = float(np.mean(np.square(step) * diagonal[:, None], dtype=np.float64))
    if unit == 0.0:
        return start
    way = np.abs(other - given)  # half of the way to the float value is where learning starts
    first = 0.5 * np.abs(scaled - given) / np.where(way > 0.0, way, 1.0)
    base = (given * grid.scales - rows).astype(rows.dtype)
    share = _learn_shares(_Objective(base, step, blocks, unit), first, n_steps)
    chosen = np.where(share > 0.5, other, given).astype(np.int8)
    polished = descend(rows, chosen, grid, blocks, kept=kept)
    return _better_rows(rows, grid, blocks, start, polished)


def descend(
    rows: Floats,
    start: Int8,
    grid: Grid,
    blocks: Sequence[Floats],
    *,
    kept: Mask,
    n_sweeps: int = 3,
) -> Int8:
    """Put one weight after the other on its best value, all others given; no row's error grows.

    A sweep costs as much as GPTQ. The arguments are those of `adaround`.
    """
    values = start.astype(rows.dtype)
    scales = np.broadcast_to(grid.scales, rows.shape)
    begin = 0
    for moments in blocks:
        columns = slice(begin, begin + moments.shape[-1])
        part = _Part(grid, scales[..., columns], moments, kept[..., columns])
        delta = values[..., columns] * part.scales - rows[..., columns]
        slope = (delta @ moments).astype(rows.dtype)
        for _ in range(n_sweeps):
            part.sweep(values[..., columns], slope)
        begin = columns.stop
    return _better_rows(rows, grid, blocks, start, values.astype(np.int8))


@dataclass(frozen=True, eq=False, slots=True)
class _Objective:
    """Output error of `base + share * step`, in units of the mean cost of one step."""

    base: Floats
    step: Floats
    blocks: Sequence[Floats]
    unit: float

    def slope(self, share: Floats) -> Floats:
        """Derivative by every share."""
        slope = through_moments(self.base + share * self.step, self.blocks)
        slope *= self.step
        slope *= 2.0 / self.unit
        return slope


def _learn_shares(objective: _Objective, first: Floats, n_steps: int) -> Floats:
    """Return the share of its step that each weight takes, near 0 or 1, by Adam.

    The share is a rectified sigmoid; a regulariser 1 − |2·share − 1|^β with falling β decides it
    (equations 21 to 24 of the paper).
    """
    from scipy.special import expit  # a fifth of a second: not for those who round otherwise

    span = 1.0 + 2.0 * _STRETCH
    spread = (np.clip(first, 0.02, 0.98) + _STRETCH) / span
    logits = np.log(spread / (1.0 - spread)).astype(objective.base.dtype)
    momentum, power = np.zeros_like(logits), np.zeros_like(logits)
    share = np.clip(first, 0.0, 1.0)
    for index, exponent in enumerate(_schedule(n_steps), start=1):
        sigmoid = expit(logits)
        share = np.clip(sigmoid * span - _STRETCH, 0.0, 1.0)
        slope = objective.slope(share)
        if exponent is not None:
            slope -= _decisiveness(share, exponent)
        slope *= span * sigmoid * (1.0 - sigmoid)
        slope[(share == 0.0) | (share == 1.0)] = 0.0
        momentum += (1.0 - _MOMENTUM) * (slope - momentum)
        power += (1.0 - _MEMORY) * (np.square(slope) - power)
        root = np.sqrt(power / (1.0 - _MEMORY**index))
        logits -= (_RATE / (1.0 - _MOMENTUM**index)) * momentum / (root + 1e-8)
    return share


def _decisiveness(share: Floats, exponent: float) -> Floats:
    """Derivative of the push towards 0 or 1."""
    centred = 2.0 * share - 1.0
    push: Floats = (2.0 * _PUSH * exponent) * np.sign(centred) * np.abs(centred) ** (exponent - 1.0)
    return push


def _schedule(n_steps: int) -> Iterator[float | None]:
    """Exponent of the regulariser at each step, None while it waits; it falls along a cosine."""
    high, low = _EXPONENTS
    for index in range(n_steps):
        progress = (index / n_steps - _WAIT) / (1.0 - _WAIT)
        cosine = 0.5 * (1.0 + np.cos(np.pi * progress))
        yield None if progress < 0.0 else float(low + (high - low) * cosine)


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """What coordinate descent needs to know of one block of columns."""

    grid: Grid
    scales: Floats  # (groups, rows, width)
    moments: Floats  # (groups, width, width)
    kept: Mask  # (groups, rows, width)

    def sweep(self, values: Floats, slope: Floats) -> None:
        """Visit every column once; update integers and slope ΔW·A, (groups, rows, width), in place."""
        for begin in range(0, values.shape[2], _BLOCK):
            columns = slice(begin, min(begin + _BLOCK, values.shape[2]))
            moved = self._visit(columns, values, slope)
            slope += moved @ self.moments[:, columns]

    def _visit(self, columns: slice, values: Floats, slope: Floats) -> Floats:
        """Move the integers of some columns; return by how much the weights moved."""
        now, slopes, scales, kept = (
            np.ascontiguousarray(array[..., columns].swapaxes(1, 2))
            for array in (values, slope, self.scales, self.kept)
        )
        moments = self.moments[:, columns, columns]
        curvature = np.einsum("gcc->gc", moments)[..., None]
        moved = np.zeros_like(slopes)
        for column in range(now.shape[1]):
            bend = curvature[:, column] * scales[:, column]
            shift = np.divide(slopes[:, column], bend, out=np.zeros_like(bend), where=bend != 0.0)
            best = np.where(kept[:, column], self.grid.nearest(now[:, column] - shift), now[:, column])
            moved[:, column] = (best - now[:, column]) * scales[:, column]
            now[:, column] = best
            rest = slice(column + 1, None)
            slopes[:, rest] += moments[:, column, rest, None] * moved[:, column, None]
        values[..., columns] = now.swapaxes(1, 2)
        return moved.swapaxes(1, 2)


def _better_rows(rows: Floats, grid: Grid, blocks: Sequence[Floats], first: Int8, second: Int8) -> Int8:
    """Take of each row what errs less, the first where both err alike."""
    errors = [row_errors((one * grid.scales - rows).astype(rows.dtype), blocks) for one in (first, second)]
    return np.where((errors[1] < errors[0])[..., None], second, first)
