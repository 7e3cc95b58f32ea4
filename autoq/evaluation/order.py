"""The fixed random order in which candidates are scored on a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autoq.core.data import Array, Split
from autoq.evaluation.batches import Piece, cut_into_pieces
from autoq.evaluation.metrics import Outputs

Positions = npt.NDArray[np.int64]

N_DIVERGENCE = 128  # examples that the divergence is measured on: no race is over before them
BLOCK_EXAMPLES = 64  # after so many more a race looks again


@dataclass(frozen=True, eq=False)
class ScoringOrder:
    """The batches of a split, shuffled; each stays as it is, since its examples may share a scale.

    A draw of a race is a batch. At a batch size above one that keeps the race valid, whatever order the
    split is in, at the price of power: it takes as many batches as it would take examples.
    """

    pieces: tuple[Piece, ...]

    @staticmethod
    def of(split: Split, batch_size: int, *, seed: int) -> ScoringOrder:
        """Shuffle; a function of the arguments."""
        pieces = cut_into_pieces(split, batch_size)
        # Not the shuffle that whoever made the split may have got from the same seed.
        shuffled = np.random.default_rng((seed, len(pieces))).permutation(len(pieces))
        return ScoringOrder(tuple(pieces[index] for index in shuffled))

    @cached_property
    def n_examples(self) -> int:
        """Examples of the split."""
        return sum(piece.n_examples for piece in self.pieces)

    @cached_property
    def largest(self) -> int:
        """Examples of the largest batch."""
        return max(piece.n_examples for piece in self.pieces)

    def first(self, n_examples: int) -> tuple[Piece, ...]:
        """Return the first batches with so many examples, or a few more."""
        taken, n = [], 0
        for piece in self.pieces:
            if n >= n_examples:
                break
            taken.append(piece)
            n += piece.n_examples
        return tuple(taken)

    def blocks(
        self, n_first: int = N_DIVERGENCE, n_more: int = BLOCK_EXAMPLES
    ) -> Iterator[tuple[Piece, ...]]:
        """Yield all batches in order: the first with so many examples, then so many more at a time."""
        first = self.first(n_first)
        yield first
        block: list[Piece] = []
        n = 0
        for piece in self.pieces[len(first) :]:
            block.append(piece)
            n += piece.n_examples
            if n >= n_more:
                yield tuple(block)
                block, n = [], 0
        if block:
            yield tuple(block)


@dataclass(frozen=True, eq=False)
class Scene:
    """Some examples with all that a metric is shown of them."""

    positions: Positions  # (n,) in the split
    outputs: Outputs  # each (n, ...)
    reference: Outputs  # of the float model
    labels: Array | None


def joined_by_shape(scenes: Sequence[Scene]) -> list[Scene]:
    """Concatenate those whose arrays have the same shapes; ragged data makes several."""
    groups: dict[object, list[Scene]] = {}
    for scene in scenes:
        label_shape = None if scene.labels is None else scene.labels.shape[1:]
        shapes = _shapes(scene.outputs)
        is_own_reference = scene.reference is scene.outputs
        key = (shapes, shapes if is_own_reference else _shapes(scene.reference), label_shape)
        groups.setdefault(key, []).append(scene)
    return [_joined(group) for group in groups.values()]


def _joined(scenes: Sequence[Scene]) -> Scene:
    labels = [scene.labels for scene in scenes if scene.labels is not None]
    return Scene(
        np.concatenate([scene.positions for scene in scenes]),
        _concatenated([scene.outputs for scene in scenes]),
        _concatenated([scene.reference for scene in scenes]),
        np.concatenate(labels) if labels else None,
    )


def _concatenated(parts: Sequence[Outputs]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _shapes(arrays: Mapping[str, Array]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape[1:]) for name, array in arrays.items())
