"""Second moments of the vectors that a layer's weight rows are multiplied with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autoq.calibration.geometry import Floats, Geometry, Positions, gather_counts
from autoq.calibration.masks import Flags
from autoq.core.data import Array

WHOLE_COLUMNS = 8192  # beyond it moments are block-diagonal: they grow with the square
_BLOCK_COLUMNS = 4096
_PANEL = 512  # rows of A that are summed at a time: less than half of it lies below the diagonal
_PENDING_BYTES = 2 * 2**20
_PENDING_ROWS = (256, 4096)
_GATHERED_BYTES = 8 * 2**20  # vectors taken out of a tensor at a time
# Enough vectors to condition A, and to know a small one to a percent.
_VECTORS_PER_COLUMN = 8
_MIN_VECTORS = 16384
_SEED = 20210


@dataclass(frozen=True, eq=False)
class Moments:
    """E[xxᵀ] and E[x] of one layer's inputs, E[xxᵀ] over two halves of the examples.

    A layer of more columns than a block holds has block-diagonal moments: what different blocks have
    in common is not known. With a single example both halves are it. A lookup reads one row of its table
    at a time: each row is a group of one column, whose E[x] = E[x²] is the share of lookups that read it.
    """

    # Each half: one array a column block, shape (groups, width, width).
    halves: tuple[tuple[Floats, ...], tuple[Floats, ...]]
    mean: Floats  # (groups, columns), over both halves
    n_rows: tuple[int, int]  # vectors seen in each half

    @property
    def columns(self) -> int:
        """Length of a vector."""
        return int(self.mean.shape[1])

    @property
    def blocks(self) -> tuple[slice, ...]:
        """Columns of each block."""
        stops = np.cumsum([block.shape[-1] for block in self.halves[0]]).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise([0, *stops]))

    def merged(self) -> tuple[Floats, ...]:
        """Return E[xxᵀ] of each block over both halves."""
        share = np.float32(self.n_rows[0] / sum(self.n_rows))
        return tuple(
            share * first + (np.float32(1.0) - share) * second
            for first, second in zip(*self.halves, strict=True)
        )

    def without(self, columns: npt.NDArray[np.int64]) -> Moments:
        """Return the moments of the same inputs with some columns always zero."""

        def cleared(half: tuple[Floats, ...]) -> tuple[Floats, ...]:
            blocks = []
            for span, block in zip(self.blocks, half, strict=True):
                inside = columns[(columns >= span.start) & (columns < span.stop)] - span.start
                copy = block.copy()
                copy[:, inside, :], copy[:, :, inside] = 0.0, 0.0
                blocks.append(copy)
            return tuple(blocks)

        mean = self.mean.copy()
        mean[:, columns] = 0.0
        return Moments((cleared(self.halves[0]), cleared(self.halves[1])), mean, self.n_rows)


def column_blocks(
    columns: int, *, whole: int = WHOLE_COLUMNS, widest: int = _BLOCK_COLUMNS
) -> tuple[slice, ...]:
    """Cut more than `whole` columns into blocks of at most `widest`, as equal as they can be."""
    n_blocks = 1 if columns <= whole else math.ceil(columns / widest)
    stops = [columns * index // n_blocks for index in range(n_blocks + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(stops))


class MomentAccumulator:
    """Sums xxᵀ and x of the two halves: products in float32, sums over them in float64.

    Products are taken over a fixed number of vectors, however these come in: the sums do not depend
    on batches. Its size does not grow with the vectors seen.
    """

    def __init__(self, groups: int, blocks: Sequence[slice]) -> None:
        self._halves = tuple(_Half(groups, blocks) for _ in range(2))

    @property
    def nbytes(self) -> int:
        """Bytes held; those of `accumulator_bytes`."""
        return sum(half.nbytes for half in self._halves)

    def add(self, half: int, vectors: Floats) -> None:
        """Count vectors of shape (groups, rows, columns) into half 0 or 1."""
        self._halves[half].add(vectors)

    def finish(self) -> Moments | None:
        """Return the moments and end the accumulation; None without a vector, or if squares overflow.

        A half that saw no vector is given the other's moments.
        """
        seen = [half for half in self._halves if half.flush()]
        if not seen:
            return None
        first = seen[0].moments()
        second = first if len(seen) == 1 else seen[1].moments()
        total = seen[0].total if len(seen) == 1 else seen[0].total + seen[1].total
        mean = (total / sum(half.n_rows for half in seen)).astype(np.float32)
        if not all(np.isfinite(array).all() for array in (*first, *second, mean)):
            return None
        return Moments((first, second), mean, (seen[0].n_rows, seen[-1].n_rows))


def accumulator_bytes(groups: int, blocks: Sequence[slice]) -> int:
    """Return what an accumulator holds in memory."""
    columns: int = blocks[-1].stop
    panels = sum(math.prod(shape) for block in blocks for shape in _panel_shapes(groups, block))
    return 2 * (8 * panels + 8 * groups * columns + 4 * groups * columns * _n_pending(groups, columns))


class _Half:
    """Sums over one half; of xxᵀ only panels of rows from the diagonal rightwards."""

    def __init__(self, groups: int, blocks: Sequence[slice]) -> None:
        columns = blocks[-1].stop
        self.n_rows = 0
        self.total = np.zeros((groups, columns), np.float64)
        self._blocks = tuple(blocks)
        self._panels = [[np.zeros(shape) for shape in _panel_shapes(groups, block)] for block in blocks]
        self._pending = np.zeros((groups, _n_pending(groups, columns), columns), np.float32)
        self._n_pending = 0

    @property
    def nbytes(self) -> int:
        panels = sum(panel.nbytes for block in self._panels for panel in block)
        return int(panels + self.total.nbytes + self._pending.nbytes)

    def add(self, vectors: Floats) -> None:
        taken = 0
        while taken < vectors.shape[1]:
            room = self._pending.shape[1] - self._n_pending
            part = vectors[:, taken : taken + room]
            self._pending[:, self._n_pending : self._n_pending + part.shape[1]] = part
            self._n_pending += part.shape[1]
            taken += part.shape[1]
            if self._n_pending == self._pending.shape[1]:
                self.flush()

    def flush(self) -> int:
        """Sum what is pending; return the number of vectors seen."""
        rows = self._pending[:, : self._n_pending]
        with np.errstate(over="ignore", invalid="ignore"):  # `finish` looks at what came of it
            for block, panels in zip(self._blocks, self._panels, strict=True):
                x = rows[:, :, block]
                for index, panel in enumerate(panels):
                    start = index * _PANEL
                    panel += x[:, :, start : start + _PANEL].transpose(0, 2, 1) @ x[:, :, start:]
            self.total += rows.sum(axis=1, dtype=np.float64)
        self.n_rows += self._n_pending
        self._n_pending = 0
        return self.n_rows

    def moments(self) -> tuple[Floats, ...]:
        # Popped: sums and moments of all blocks together would be twice the size.
        return tuple(self._block(self._panels.pop(0)) for _ in self._blocks)

    def _block(self, panels: list[npt.NDArray[np.float64]]) -> Floats:
        groups, _, width = panels[0].shape
        out = np.empty((groups, width, width), np.float32)
        with np.errstate(over="ignore"):
            for index, panel in enumerate(panels):
                start = index * _PANEL
                out[:, start : start + _PANEL, start:] = panel / self.n_rows
        return mirrored(out)


def mirrored(matrices: Floats) -> Floats:
    """Copy the upper triangles of (n, width, width) over the lower ones, in place, and return them."""
    width = matrices.shape[1]
    for start in range(0, width, _PANEL):
        stop = min(start + _PANEL, width)
        corner = np.triu(matrices[:, start:stop, start:stop])
        matrices[:, start:stop, start:stop] = corner + np.triu(corner, 1).transpose(0, 2, 1)
        matrices[:, stop:, start:stop] = matrices[:, start:stop, stop:].transpose(0, 2, 1)
    return matrices


def _panel_shapes(groups: int, block: slice) -> list[tuple[int, int, int]]:
    width = block.stop - block.start
    return [(groups, min(_PANEL, width - start), width - start) for start in range(0, width, _PANEL)]


def _n_pending(groups: int, columns: int) -> int:
    """Vectors that are multiplied at once: enough to be fast, few enough to be small."""
    lowest, highest = _PENDING_ROWS
    return min(max(_PENDING_BYTES // (4 * groups * columns), lowest), highest)


class MomentCollector:
    """Takes a bounded number of vectors out of one tensor, read in one way, and sums them.

    Which ones depends on the key, the example and its number of positions: not on batches.
    """

    def __init__(self, key: str, geometry: Geometry, n_examples: int) -> None:
        self.key = key
        self.geometry, self._n_examples = geometry, n_examples
        self._blocks = column_blocks(geometry.columns)
        widest = max(block.stop - block.start for block in self._blocks)
        self._n_vectors = max(_VECTORS_PER_COLUMN * widest, _MIN_VECTORS)
        self._sums: MomentAccumulator | None = None
        self._is_broken = False

    @property
    def nbytes(self) -> int:
        """Bytes held once something was added."""
        return accumulator_bytes(self.geometry.groups, self._blocks)

    def add(
        self,
        array: Floats | None,
        padding: Flags | None = None,
        *,
        first: int,
        n_examples: int,
        n_real: int,
    ) -> None:
        """Count the tensor of one batch, the first axis over examples; without one there are no moments.

        Args:
            array: Shape (n_examples * m, ...), m consecutive rows an example.
            padding: Which elements are; vectors that hold one do not count. None if there is none.
            first: Position of the batch's first example in the data.
            n_examples: Examples in the array.
            n_real: How many of them count; the others are padding.
        """
        if array is None or self._is_broken:
            self._is_broken = True
            return
        positions = positions_by_example(self.geometry, array.shape, padding, n_examples)
        for half in (0, 1):
            chosen = [
                positions[index][self._positions(first + index, len(positions[index]))]
                for index in range(n_real)
                if (first + index) % 2 == half
            ]
            if chosen:
                self._sum(half, array, np.concatenate(chosen))

    def finish(self) -> Moments | None:
        """Return the moments, None if there are none, and let go of the sums."""
        sums, self._sums = self._sums, None
        return None if sums is None or self._is_broken else sums.finish()

    def _positions(self, example: int, n_positions: int) -> Positions:
        wanted = vectors_wanted(example, self._n_examples, self._n_vectors)
        return sampled_positions(self.key, example, n_positions, wanted)

    def _sum(self, half: int, array: Floats, positions: Positions) -> None:
        if self._sums is None:
            self._sums = MomentAccumulator(self.geometry.groups, self._blocks)
        n_at_once = max(_GATHERED_BYTES // (4 * self.geometry.groups * self.geometry.columns), 64)
        for start in range(0, len(positions), n_at_once):
            self._sums.add(half, self.geometry.vectors(array, positions[start : start + n_at_once]))


class LookupCounter:
    """Counts how often a Gather reads each row of its table; every lookup counts."""

    def __init__(self, key: str, n_rows: int) -> None:
        self.key = key
        self._counts = np.zeros((2, n_rows), np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._counts.nbytes

    def add(
        self, indices: Array, padding: Flags | None = None, *, first: int, n_examples: int, n_real: int
    ) -> None:
        """Count the lookups of one batch; the arguments are those of `MomentCollector.add`."""
        by_example = indices.reshape(n_examples, -1)[:n_real]
        counts = np.ones(indices.shape, np.bool_) if padding is None else ~padding
        counts = counts.reshape(n_examples, -1)[:n_real]
        for half in (0, 1):
            rows = slice((first + half) % 2, None, 2)
            self._counts[half] += gather_counts(by_example[rows][counts[rows]], self._counts.shape[1])

    def add_shared(self, indices: Array, *, first: int, n_real: int) -> None:
        """Count lookups that all examples of a batch share, as those of positions, for each of them."""
        counts = gather_counts(indices, self._counts.shape[1])
        n_odd = (first + n_real) // 2 - first // 2
        self._counts += np.outer([n_real - n_odd, n_odd], counts)

    def finish(self) -> Moments | None:
        """Return the share of lookups that read each row; None without a lookup."""
        seen = [counts for counts in self._counts if counts.any()]
        if not seen:
            return None
        first, second = ((counts / counts.sum()).astype(np.float32) for counts in (seen[0], seen[-1]))
        mean = (self._counts.sum(axis=0) / self._counts.sum()).astype(np.float32)[:, None]
        halves = (first[:, None, None],), (second[:, None, None],)
        return Moments(halves, mean, (int(seen[0].sum()), int(seen[-1].sum())))


def positions_by_example(
    geometry: Geometry, shape: tuple[int, ...], padding: Flags | None, n_examples: int
) -> list[Positions]:
    """List the positions of each example of an array whose vectors hold no padding.

    Args:
        geometry: How the array is read.
        shape: Of the array, (n_examples * m, ...).
        padding: Which of its elements are; None if there is none.
        n_examples: Examples in the array.
    """
    each = geometry.n_positions(shape) // n_examples
    spans = [np.arange(index * each, (index + 1) * each) for index in range(n_examples)]
    if padding is None:
        return spans
    found = []
    n_at_once = max(_GATHERED_BYTES // (4 * geometry.groups * geometry.columns), 64)
    as_floats = padding.astype(np.float32)
    for span in spans:
        parts = np.split(span, range(n_at_once, len(span), n_at_once))
        is_padding = [geometry.vectors(as_floats, part).any(axis=(0, 2)) for part in parts]
        found.append(span[~np.concatenate(is_padding)])
    return found


def vectors_wanted(example: int, n_examples: int, n_vectors: int) -> int:
    """Share `n_vectors` evenly among the examples; both of a pair, one in either half, get the same."""
    pair = example // 2
    return (pair + 1) * n_vectors // n_examples - pair * n_vectors // n_examples


def sampled_positions(key: str, example: int, n_positions: int, wanted: int) -> Positions:
    """Choose at most `wanted` of an example's positions, in order; the same ones in every run.

    Args:
        key: Hexadecimal; other keys choose other positions.
        example: Position of the example in the data.
        n_positions: How many there are to choose from.
        wanted: How many to choose.
    """
    if wanted >= n_positions:
        return np.arange(n_positions, dtype=np.int64)
    rng = np.random.default_rng([_SEED, int(key, 16), example])
    return np.sort(rng.choice(n_positions, wanted, replace=False, shuffle=False))
