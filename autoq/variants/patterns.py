"""Which weights are kept: a share of a layer, or N of every M neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[Any]  # any float: how much is lost when the weight goes
Mask = npt.NDArray[np.bool_]  # True is kept


@dataclass(frozen=True, slots=True)
class Unstructured:
    """A share of a layer's weights becomes zero, wherever it hurts least."""

    sparsity: float  # in [0, 1)

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"sparsity {self.sparsity} is outside [0, 1)")

    def n_zero(self, size: int) -> int:
        """Weights that go, of `size`."""
        return round(self.sparsity * size)


@dataclass(frozen=True, slots=True)
class NOfM:
    """At most `n` weights are kept of every `m` consecutive columns of a row."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"pattern {self.n}:{self.m} keeps none or all")

    def n_kept(self, width: int) -> int:
        """Weights kept of a run of `width` columns; a short last run keeps its share, rounded up."""
        return -(-width * self.n // self.m)


@dataclass(frozen=True, eq=False, slots=True)
class Given:
    """What is kept is decided already."""

    kept: Mask  # (groups, rows, columns)


MaskRule = Unstructured | NOfM | Given


def keep_largest(scores: Scores, n_zero: int) -> Mask:
    """Drop exactly the `n_zero` smallest scores; of equal scores the lower flat index goes first."""
    flat = np.ascontiguousarray(scores).reshape(-1)
    kept = np.ones(flat.size, bool)
    if n_zero > 0:
        threshold = np.partition(flat, n_zero - 1)[n_zero - 1]
        below = flat < threshold
        ties = np.flatnonzero(flat == threshold)
        kept[below] = False
        kept[ties[: n_zero - int(below.sum())]] = False
    return kept.reshape(scores.shape)


def keep_pattern(scores: Scores, pattern: NOfM) -> Mask:
    """Keep the largest scores of each run of `m` along the last axis; ties drop the first.

    A last run shorter than `m` keeps ceil(length * n / m).
    """
    width = scores.shape[-1]
    n_whole = width // pattern.m * pattern.m
    kept = np.empty(scores.shape, bool)
    runs = scores[..., :n_whole].reshape(*scores.shape[:-1], -1, pattern.m)
    kept[..., :n_whole] = keep_best_of_run(runs, pattern.n).reshape(*scores.shape[:-1], n_whole)
    if n_whole < width:
        rest = scores[..., n_whole:]
        kept[..., n_whole:] = keep_best_of_run(rest, pattern.n_kept(width - n_whole))
    return kept


def keep_best_of_run(scores: Scores, n_kept: int) -> Mask:
    """Keep the `n_kept` largest scores along the last axis; of equal scores the first goes first."""
    order = np.argsort(scores, axis=-1, kind="stable")
    kept = np.ones(scores.shape, bool)
    np.put_along_axis(kept, order[..., : scores.shape[-1] - n_kept], False, axis=-1)
    return kept


def prune_rows(rows: npt.NDArray[Any], rule: MaskRule) -> Mask:
    """Choose by magnitude alone what is kept of rows of shape (groups, rows, columns)."""
    magnitude = np.abs(rows)
    if isinstance(rule, Given):
        return rule.kept
    if isinstance(rule, NOfM):
        return keep_pattern(magnitude, rule)
    return keep_largest(magnitude, rule.n_zero(rows.size))
