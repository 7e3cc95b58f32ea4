"""Visit the columns of a layer in another order than they come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.variants.gptq import Solution, Treatment
from autoq.variants.patterns import Given
from autoq.variants.scales import UniformGrid

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class ColumnOrder:
    """A permutation of the columns of each group that keeps to the blocks of the moments."""

    within: tuple[npt.NDArray[np.int64], ...]  # a block each, (groups, width): columns of the block
    _all: npt.NDArray[np.int64]  # (groups, columns): columns of the layer

    @staticmethod
    def by_energy(diagonals: Sequence[Array]) -> ColumnOrder:
        """Largest E[x_j^2] first; of equal ones the first.

        Args:
            diagonals: Of the moments' blocks, (groups, width) each.
        """
        within = tuple(np.argsort(-diagonal, axis=1, kind="stable") for diagonal in diagonals)
        starts = np.cumsum([0, *(one.shape[1] for one in within)])[:-1]
        shifted = [one + start for one, start in zip(within, starts, strict=True)]
        return ColumnOrder(within, np.concatenate(shifted, axis=1))

    def blocks(self, blocks: Sequence[Array]) -> list[Array]:
        """Permute both axes of moments, (groups, width, width) each."""
        return [
            np.take_along_axis(np.take_along_axis(block, one[:, :, None], 1), one[:, None, :], 2)
            for block, one in zip(blocks, self.within, strict=True)
        ]

    def columns(self, rows: Array) -> Array:
        """Permute the last axis of (groups, rows, columns)."""
        return np.take_along_axis(rows, self._all[:, None, :], 2)

    def treatment(self, one: Treatment) -> Treatment:
        """Permute what a treatment says column by column."""
        grid, rule = one.grid, one.rule
        if isinstance(grid, UniformGrid) and grid.scales.shape[-1] > 1:
            grid = replace(grid, scales=self.columns(grid.scales))
        if isinstance(rule, Given):
            rule = Given(self.columns(rule.kept))
        return Treatment(grid, rule)

    def restored(self, solution: Solution) -> Solution:
        """Put the columns of a solution back to where they come from."""
        back = np.argsort(self._all, axis=1)[:, None, :]
        values = np.take_along_axis(solution.values, back, 2)
        return Solution(values, np.take_along_axis(solution.kept, back, 2))
