"""GPTQ and SparseGPT: columns are compressed one by one, and later ones make up for the error.

Frantar et al. 2022 (GPTQ, algorithm 1) and Frantar & Alistarh 2023 (SparseGPT, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Granularity
from autoq.variants.local_error import weight_error
from autoq.variants.patterns import Given, MaskRule, NOfM, Unstructured, keep_best_of_run, keep_largest
from autoq.variants.scales import UniformGrid, clipped_scales
from autoq.variants.second_order import Factor, factor

Floats = npt.NDArray[Any]  # float32 or float64
Mask = npt.NDArray[np.bool_]

DAMPINGS = (0.01, 0.05, 0.25)

_BLOCK = 128  # columns between two products with everything before: and where SparseGPT chooses
_STRIP = 16  # columns updated one by one; within a block strips are updated by products too
_SAMPLE_ROWS = 64
_SAMPLE_BITS = 4


class Grid(Protocol):
    """Values that a weight may take: scale times one of some integers of int8."""

    @property
    def scales(self) -> Floats:
        """Broadcastable to (groups, rows, columns)."""
        ...

    def nearest(self, scaled: Floats) -> Floats:
        """Return the nearest integer for values divided by their scale."""
        ...

    def towards(self, integers: Floats, scaled: Floats) -> Floats:
        """Return the next integer in the direction of a value, or the same one where there is none."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Treatment:
    """One way to round a layer; many go through the columns together."""

    grid: Grid
    rule: MaskRule | None = None  # None keeps all


@dataclass(frozen=True, eq=False, slots=True)
class Solution:
    """Compressed rows, of shape (groups, rows, columns)."""

    values: npt.NDArray[Any]  # int8 on a grid, or floats
    kept: Mask  # False is what the rule set to zero; rounding makes more


def gptq(rows: Floats, factors: Sequence[Factor], treatments: Sequence[Treatment]) -> list[Solution]:
    """Round rows so that the layer's output changes least, choosing zeros and levels jointly.

    Treatments share the pass over the columns, so eight cost little more than twice one.

    Args:
        rows: Float weights, shape (groups, rows, columns). Computed in the dtype of the factors.
        factors: Of consecutive blocks of columns, together all of them.
        treatments: Scales stay as given: take them from the float weights.

    Returns:
        One solution of int8 a treatment. `kept` has exactly the zeros that the rule asks for.

    Raises:
        ValueError: The factors do not cover the columns.
    """
    lanes = [_Lane(treatment.grid, treatment.rule) for treatment in treatments]
    return _Pass(rows, factors, lanes, np.dtype(np.int8)).run()


def sparsegpt(rows: Floats, factors: Sequence[Factor], rules: Sequence[MaskRule]) -> list[Solution]:
    """Set weights to zero and let those that are left, which stay floats, make up for it.

    The arguments are those of `gptq`; one solution in the dtype of the rows a rule.
    """
    lanes = [_Lane(None, rule) for rule in rules]
    return _Pass(rows, factors, lanes, rows.dtype).run()


def choose_damping(halves: tuple[Sequence[Floats], Sequence[Floats]], rows: Floats) -> float:
    """Return the damping whose rounding errs least on data it was not fitted to.

    A sample of rows is rounded to 4 bits with the factors of the first half of the data; what that
    costs is measured with the moments of the second. Where calibration data are few, little damping
    fits their noise. Of equal errors the smaller damping is taken.

    Args:
        halves: E[xxᵀ] over each half of the data: blocks of consecutive columns, each of shape
            (groups, width, width).
        rows: Float weights, shape (groups, rows, columns).
    """
    fitted, held_out = halves
    per_group = min(rows.shape[1], max(1, _SAMPLE_ROWS // rows.shape[0]))
    sample = rows[:, np.linspace(0, rows.shape[1] - 1, per_group).astype(int)]
    diagonal = np.concatenate([np.diagonal(block, axis1=1, axis2=2) for block in fitted], axis=1)
    scales = clipped_scales(sample, diagonal, _SAMPLE_BITS, Granularity.CHANNEL)
    treatment = Treatment(UniformGrid.symmetric(scales, _SAMPLE_BITS))
    errors = []
    for damping in DAMPINGS:
        [solution] = gptq(sample, [factor(block, damping) for block in fitted], [treatment])
        errors.append(weight_error(sample, solution.values * scales, held_out))
    return DAMPINGS[int(np.argmin(errors))]


@dataclass(frozen=True, eq=False, slots=True)
class _Lane:
    """What happens to one copy of the rows; without a grid they stay floats."""

    grid: Grid | None
    rule: MaskRule | None


@dataclass(frozen=True, eq=False, slots=True)
class _Block:
    """Some columns of all lanes at work; axes are (groups, columns, lanes * rows)."""

    start: int  # column of the layer that it begins at
    work: Floats  # weights, less what earlier columns have shifted to them
    errors: Floats  # what each column could not hold, over its pivot: filled from left to right
    upper: Floats  # (groups, columns, columns)
    dead: Mask  # (groups, columns)

    @property
    def columns(self) -> slice:
        """Its columns in the layer."""
        return slice(self.start, self.start + self.work.shape[1])

    def scores(self, columns: slice, lane: slice) -> Floats:
        """Return the root of the output error that zeroing each weight costs, |w|/U_jj.

        Zero for inputs that were always zero. Not squared: the order is the same, and cannot overflow.
        """
        pivots = np.einsum("gcc->gc", self.upper)[:, columns, None]
        scores: Floats = np.abs(self.work[:, columns, lane]) / pivots
        scores[self.dead[:, columns]] = 0.0
        return scores


class _Pass:
    """One pass over the columns for all lanes, which are stacked along the last axis.

    Everything is transposed to (groups, columns, lanes * rows): columns are visited one by one, and
    so lie in one piece. Products look back (what earlier columns did to these is subtracted when
    these are reached), which reads each error once a block and writes nothing ahead.
    """

    def __init__(
        self, rows: Floats, factors: Sequence[Factor], lanes: Sequence[_Lane], dtype: np.dtype[Any]
    ) -> None:
        widths = [one.width for one in factors]
        if sum(widths) != rows.shape[2]:
            raise ValueError(f"factors of {widths} columns do not fit rows of {rows.shape[2]}")
        self._rows = rows
        self._factors = factors
        n_rows = rows.shape[1]
        self._lanes = [
            (slice(index * n_rows, (index + 1) * n_rows), lane) for index, lane in enumerate(lanes)
        ]
        shape = (rows.shape[0], rows.shape[2], len(lanes) * n_rows)
        self._values = np.empty(shape, dtype)
        self._kept = np.ones(shape, bool)
        for stacked, lane in self._lanes:
            if isinstance(lane.rule, Given):
                self._kept[..., stacked] = lane.rule.kept.swapaxes(1, 2)
        # A run of an N:M pattern never crosses a strip, so that each is decided on up-to-date weights.
        shared = math.lcm(*(lane.rule.m for lane in lanes if isinstance(lane.rule, NOfM)))
        self._strip = shared * max(1, _STRIP // shared)
        self._block = self._strip * max(1, _BLOCK // self._strip)

    def run(self) -> list[Solution]:
        start = 0
        for one in self._factors:
            self._solve(one, start)
            start += one.width
        return [
            Solution(
                np.ascontiguousarray(self._values[..., stacked].swapaxes(1, 2)),
                np.ascontiguousarray(self._kept[..., stacked].swapaxes(1, 2)),
            )
            for stacked, _ in self._lanes
        ]

    def _solve(self, one: Factor, start: int) -> None:
        """Compress the columns of one factor, which begin at `start`."""
        errors = np.empty((len(one.upper), one.width, self._values.shape[2]), one.upper.dtype)
        for columns in _cut(start, start + one.width, self._block):
            local = slice(columns.start - start, columns.stop - start)
            weights = self._rows[..., columns].swapaxes(1, 2).astype(one.upper.dtype)
            work = np.tile(weights, len(self._lanes))
            work -= _look_back(one.upper, errors, local)
            upper, dead = one.upper[:, local, local], one.dead[:, local]
            block = _Block(columns.start, work, errors[:, local], np.ascontiguousarray(upper), dead)
            self._solve_block(block)

    def _solve_block(self, block: _Block) -> None:
        for lane, how in self._lanes:
            if isinstance(how.rule, Unstructured):
                self._choose_zeros(block, lane, how.rule)
        scales = [self._column_scales(how.grid, block.columns) for _, how in self._lanes]
        for columns in _cut(block.start, block.columns.stop, self._strip):
            strip = slice(columns.start - block.start, columns.stop - block.start)
            block.work[:, strip] -= _look_back(block.upper, block.errors, strip)
            for column in range(strip.start, strip.stop):
                self._decide_runs(block, column)
                restored = self._store(block, column, scales)
                error = (block.work[:, column] - restored) / block.upper[:, column, column, None]
                block.errors[:, column] = error
                rest = slice(column + 1, strip.stop)
                block.work[:, rest] -= block.upper[:, column, rest, None] * error[:, None]

    def _store(self, block: _Block, column: int, scales: Sequence[Floats | None]) -> Floats:
        """Compress one column of all lanes; return what it stands for, (groups, lanes * rows)."""
        place = block.start + column
        restored = np.empty_like(block.work[:, column])
        for (lane, how), scale in zip(self._lanes, scales, strict=True):
            value = block.work[:, column, lane]
            if how.grid is not None and scale is not None:
                value = how.grid.nearest(value / scale[:, column])
            if how.rule is not None:
                value = value * self._kept[:, place, lane]
            self._values[:, place, lane] = value
            restored[:, lane] = value if scale is None else value * scale[:, column]
        return restored

    def _column_scales(self, grid: Grid | None, columns: slice) -> Floats | None:
        """Scales of some columns, transposed to (groups, columns, rows)."""
        if grid is None:
            return None
        spread = np.broadcast_to(grid.scales, self._rows.shape)[..., columns]
        return np.ascontiguousarray(spread.swapaxes(1, 2))

    def _choose_zeros(self, block: _Block, lane: slice, rule: Unstructured) -> None:
        """Choose a block's share of the zeros: after the last block they are exactly those asked for."""
        n_columns, columns = self._rows.shape[2], block.columns
        n_zero = rule.n_zero(self._rows.size)
        share = n_zero * columns.stop // n_columns - n_zero * columns.start // n_columns
        scores = block.scores(slice(None), lane).swapaxes(1, 2)
        self._kept[:, columns, lane] = keep_largest(scores, share).swapaxes(1, 2)

    def _decide_runs(self, block: _Block, column: int) -> None:
        """Choose the zeros of the N:M runs that begin at a column.

        A run that two factors share keeps in its first part what the part is due, rounded down.
        """
        place = block.start + column
        for lane, how in self._lanes:
            if not isinstance(how.rule, NOfM) or (column > 0 and place % how.rule.m != 0):
                continue
            begin = place - place % how.rule.m
            stop = min(begin + how.rule.m, block.columns.stop)
            width = min(begin + how.rule.m, self._rows.shape[2]) - begin
            n_kept = how.rule.n_kept(width)
            due = n_kept * (stop - begin) // width - n_kept * (place - begin) // width
            scores = block.scores(slice(column, stop - block.start), lane).swapaxes(1, 2)
            self._kept[:, place:stop, lane] = keep_best_of_run(scores, due).swapaxes(1, 2)


def _look_back(upper: Floats, errors: Floats, columns: slice) -> Floats:
    """Return what the columns before have shifted to some columns: U[before, columns]ᵀ · errors."""
    before = upper[:, : columns.start, columns].swapaxes(1, 2)
    shifted: Floats = before @ errors[:, : columns.start]
    return shifted


def _cut(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range at the multiples of a step."""
    while start < stop:
        end = min((start // step + 1) * step, stop)
        yield slice(start, end)
        start = end
