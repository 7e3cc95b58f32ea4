"""Compress weights by what they do to the layer's output on calibration data."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.calibration.moments import Moments
from autoq.core.choices import Granularity, Grid, Pruning, Rounding
from autoq.core.layers import Layer
from autoq.variants.adaround import adaround
from autoq.variants.codebook import LevelGrid, codebook
from autoq.variants.column_order import ColumnOrder
from autoq.variants.gptq import Solution, Treatment, choose_damping, gptq, sparsegpt
from autoq.variants.patterns import Given, MaskRule, NOfM, Unstructured, prune_rows
from autoq.variants.plain import block_rows
from autoq.variants.rounding import round_blocks
from autoq.variants.rows import from_rows, to_rows
from autoq.variants.scales import UniformGrid, clipped_scales
from autoq.variants.second_order import Factor, factor
from autoq.variants.variant import WeightChoice

Float = npt.NDArray[np.float32]
Compressed = tuple[npt.NDArray[Any], Float]  # weights and scales, laid out as `Variant` says

_BITS = 8
# Multiplications that learning to round may take in a layer, and the steps of it at least and at most.
_LEARNING = 7e10
_LEARNING_STEPS = (60, 500)


class MomentCompressor:
    """Compresses one layer; a factorisation is made once and serves all bit widths and sparsities."""

    def __init__(self, layer: Layer, weight: Float, moments: Moments) -> None:
        self._layer, self._weight = layer, weight
        self._rows = to_rows(weight, layer)
        self._blocks = moments.merged()
        diagonals = [np.diagonal(block, axis1=1, axis2=2) for block in self._blocks]
        self._diagonal: Float = np.concatenate(diagonals, axis=1)
        self._order = ColumnOrder.by_energy(diagonals)
        halves = (self._order.blocks(moments.halves[0]), self._order.blocks(moments.halves[1]))
        self._damping = choose_damping(halves, self._order.columns(self._rows))

    @cached_property
    def _factors(self) -> list[Factor]:
        """Of the columns as they come, for what chooses zeros as it goes through them."""
        return [factor(block, self._damping) for block in self._blocks]

    @cached_property
    def _ordered_factors(self) -> list[Factor]:
        """Of the columns by falling energy: those that matter most are rounded while most can make up
        for them. SparseGPT, which has a share of zeros to find in every run of columns, gets worse by it.
        """
        return [factor(block, self._damping) for block in self._order.blocks(self._blocks)]

    def compress(self, choice: WeightChoice) -> Compressed:
        """Compress by a choice that is not plain.

        One at a time: products of other shapes sum in another order, and what is built beside a
        variant may not change it.
        """
        if choice.is_float:
            [solution] = sparsegpt(self._rows, self._factors, [self._demanded(choice)])
            return from_rows(solution.values, self._layer), np.zeros(0, np.float32)
        grid = self._grid(choice)
        if choice.rounding is Rounding.NEAREST:
            return self._laid_out(choice, grid.round(self._pruned(choice)), grid.scales)
        solution = self._feed_back(choice, grid)
        integers = solution.values
        if choice.rounding is Rounding.ADAROUND:
            integers = self._learn(integers, grid, solution.kept)
        return self._laid_out(choice, integers, grid.scales)

    def _feed_back(self, choice: WeightChoice, grid: UniformGrid | LevelGrid) -> Solution:
        """Take the rows through the columns, in the order that suits the choice."""
        treatment = Treatment(grid, self._rule(choice))
        if choice.pruning is Pruning.SPARSEGPT:
            [solution] = gptq(self._rows, self._factors, [treatment])
            return solution
        rows = self._order.columns(self._rows)
        [solution] = gptq(rows, self._ordered_factors, [self._order.treatment(treatment)])
        return self._order.restored(solution)

    def _learn(
        self, integers: npt.NDArray[np.int8], grid: UniformGrid | LevelGrid, kept: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int8]:
        """Decide up or down anew, with fewer steps where one takes long."""
        n_columns = max(block.shape[-1] for block in self._blocks)
        n_steps = int(np.clip(_LEARNING / (self._rows.size * n_columns), *_LEARNING_STEPS))
        return adaround(self._rows, integers, grid, self._blocks, kept=kept, n_steps=n_steps)

    def _grid(self, choice: WeightChoice) -> UniformGrid | LevelGrid:
        block_size = choice.granularity.block_size
        if block_size is not None:
            _, scales = round_blocks(block_rows(self._layer, self._weight), choice.bits, block_size)
            return UniformGrid.of_blocks(
                scales, choice.bits, block_size=block_size, n_columns=self._rows.shape[2]
            )
        bits = _BITS if choice.grid is Grid.CODEBOOK else choice.bits
        scales = self._clipped_scales(bits, choice.granularity)
        if choice.grid is not Grid.CODEBOOK:
            return UniformGrid.symmetric(scales, bits)
        pruned = self._pruned(choice) if choice.rounding is Rounding.NEAREST else self._rows
        keep_zero = choice.sparsity > 0.0 or choice.keeps_outliers
        return codebook(pruned, self._diagonal, scales, bits=choice.bits, keep_zero=keep_zero)

    def _clipped_scales(self, bits: int, granularity: Granularity) -> Float:
        if self._layer.op == "ConvTranspose":  # groups share the scales of their rows
            together = self._rows.swapaxes(0, 1).reshape(1, self._rows.shape[1], -1)
            return clipped_scales(together, self._diagonal.reshape(1, -1), bits, granularity)
        return clipped_scales(self._rows, self._diagonal, bits, granularity)

    def _pruned(self, choice: WeightChoice) -> Float:
        """Rows with their zeros, before they are rounded without feedback."""
        if choice.pruning is Pruning.SPARSEGPT:
            [solution] = sparsegpt(self._rows, self._factors, [self._demanded(choice)])
            return solution.values
        rule = _asked(choice)
        return self._rows if rule is None else np.where(prune_rows(self._rows, rule), self._rows, 0.0)

    def _rule(self, choice: WeightChoice) -> MaskRule | None:
        """How the pass over the columns finds its zeros."""
        rule = _asked(choice)
        if rule is None or choice.pruning is Pruning.SPARSEGPT:
            return rule
        return Given(prune_rows(self._rows, rule))

    def _demanded(self, choice: WeightChoice) -> MaskRule:
        rule = _asked(choice)
        assert rule is not None, "only pruning takes a float layer through the columns"
        return rule

    def _laid_out(self, choice: WeightChoice, integers: npt.NDArray[np.int8], scales: Float) -> Compressed:
        block_size = choice.granularity.block_size
        if block_size is not None:
            rows = integers[0]
            padded = np.zeros((len(rows), -(-rows.shape[1] // block_size) * block_size), np.int8)
            padded[:, : rows.shape[1]] = rows
            return padded, np.ascontiguousarray(scales[0, :, ::block_size])
        per_channel = np.asarray(scales, np.float32)
        is_one = choice.granularity is Granularity.TENSOR
        return from_rows(integers, self._layer), per_channel.reshape(() if is_one else -1)


def _asked(choice: WeightChoice) -> MaskRule | None:
    """What a choice asks to become zero."""
    if choice.sparsity == 0.0:
        return None
    structure = choice.pattern.n_of_m
    return Unstructured(choice.sparsity) if structure is None else NOfM(*structure)
