from __future__ import annotations

import numpy as np
import pytest

from autoq.core.data import Batch, Split
from autoq.evaluation.batches import Feeding, cut_into_pieces, run_pieces, run_split
from autoq.evaluation.order import Scene, ScoringOrder, joined_by_shape
from autoq.evaluation.ports import Session

RAGGED = Split(
    tuple(
        Batch({"x": np.arange(n * width, dtype=np.float32).reshape(n, width)}, np.arange(n))
        for n, width in ((5, 2), (4, 3), (1, 2))
    )
)


class Doubling:
    """Doubles its input."""

    def run(self, feed: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        return {"y": 2 * feed["x"]}  # type: ignore[index]


def test_every_example_comes_once_in_whole_batches() -> None:
    order = ScoringOrder.of(RAGGED, 2, seed=3)
    positions = np.concatenate([piece.positions for piece in order.pieces])
    assert sorted(positions) == list(range(10))
    assert sorted(piece.n_examples for piece in order.pieces) == [1, 1, 2, 2, 2, 2]
    assert (order.n_examples, order.largest) == (10, 2)


def test_the_seed_decides_the_order() -> None:
    orders = [ScoringOrder.of(RAGGED, 1, seed=seed).pieces for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_blocks_are_the_order_cut_at_whole_batches() -> None:
    order = ScoringOrder.of(RAGGED, 2, seed=0)
    blocks = list(order.blocks(3, 2))
    assert [piece for block in blocks for piece in block] == list(order.pieces)
    sizes = [sum(piece.n_examples for piece in block) for block in blocks]
    assert sizes[0] in (3, 4)
    assert all(size in (2, 3) for size in sizes[1:-1])
    first = order.first(3)
    assert first == order.pieces[: len(first)]
    assert 3 <= sum(piece.n_examples for piece in first) <= 4
    assert order.first(1000) == order.pieces


@pytest.mark.parametrize("n_workers", [1, 3])
def test_batches_run_in_any_order_give_what_the_split_gives(n_workers: int) -> None:
    session: Session = Doubling()  # type: ignore[assignment]
    feeding = Feeding(2, n_workers=n_workers)
    order = ScoringOrder.of(RAGGED, 2, seed=1)
    blocks = list(order.blocks(3, 2))
    found = [one for block in run_pieces(session, RAGGED, feeding, blocks) for one in block]
    by_position = {
        position: row
        for piece, outputs in zip(order.pieces, found, strict=True)
        for position, row in zip(piece.positions, outputs["y"], strict=True)
    }
    for chunk in run_split(session, RAGGED, feeding):
        for offset, row in enumerate(chunk.outputs["y"]):
            assert by_position[chunk.start + offset].tolist() == row.tolist()


def test_scenes_of_one_shape_are_joined_with_their_positions() -> None:
    scenes = [
        Scene(
            piece.positions, batch := {"y": np.zeros((piece.n_examples, 3 if index == 1 else 2))}, batch, None
        )
        for piece in cut_into_pieces(RAGGED, 2)
        for index in [piece.batch_index]
    ]
    joined = joined_by_shape(scenes)
    assert [scene.positions.tolist() for scene in joined] == [[0, 1, 2, 3, 4, 9], [5, 6, 7, 8]]
    assert [scene.outputs["y"].shape for scene in joined] == [(6, 2), (4, 3)]
