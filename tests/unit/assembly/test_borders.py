from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoq.assembly.borders import Border, find_borders
from autoq.calibration.statistics import Extent, Statistics
from autoq.calibration.summaries import summarize
from autoq.graph.blocks import Block, BlockKind
from autoq.testing.bench import build_bench
from autoq.testing.models import GraphBuilder

NOTHING = Statistics({}, 0, 0.0)


def layer(name: str, *sources: str) -> Block:
    return Block(name, BlockKind.LAYER, "Conv", sources, (f"{name}_out",))


def test_the_borders_of_a_residual_network_are_its_tensors_between_layers_and_ops(tmp_path: Path) -> None:
    net = GraphBuilder(seed=0)
    image = net.input("image", "batch", 3, 8, 8)
    x = net.node("Relu", net.conv(image, "stem", (3, 4)))
    y = net.node("MaxPool", net.conv(x, "conv1", (4, 4)), kernel_shape=[2, 2], strides=[2, 2])
    z = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Add", y, z)
    model = net.build(logits=(net.classify(x, 4, 10), ("batch", 10)))
    found = build_bench(model, tmp_path).stitcher.borders()
    add = next(one.reader for one in found if one.writer == "conv1")
    pool = next(one.reader for one in found if one.writer == add)
    # Sizes are of one example; pooling moves integers, so what it halves is counted as it is read.
    assert found == [
        Border("stem", "conv1", 4 * 8 * 8),
        Border("conv1", add, 4 * 4 * 4),
        Border("stem", add, 4 * 4 * 4),
        Border(add, pool, 4 * 4 * 4),
        Border(pool, "fc", 4),
    ]


def test_a_move_hands_on_the_block_that_wrote_its_source() -> None:
    move = Block("split", BlockKind.MOVE, "Split", ("a_out",), ("left", "right"))
    again = Block("flat", BlockKind.MOVE, "Flatten", ("left",), ("flat_out",))
    found = find_borders(
        [layer("a", "input"), move, again, layer("b", "flat_out"), layer("c", "right")], NOTHING
    )
    assert [(one.writer, one.reader) for one in found] == [("a", "b"), ("a", "c")]


def test_what_no_block_writes_has_no_border() -> None:
    move = Block("flat", BlockKind.MOVE, "Flatten", ("input",), ("flat_out",))
    assert find_borders([move, layer("a", "flat_out"), layer("b", "unknown")], NOTHING) == []


def test_a_tensor_read_twice_by_one_block_is_one_border() -> None:
    square = Block("mul", BlockKind.OP, "Mul", ("a_out", "a_out"), ("squared",))
    found = find_borders([layer("a", "input"), square], NOTHING)
    assert [(one.writer, one.reader) for one in found] == [("a", "mul")]


def test_a_tensor_read_by_two_blocks_is_two_borders() -> None:
    found = find_borders([layer("a", "input"), layer("b", "a_out"), layer("c", "a_out")], NOTHING)
    assert [(one.writer, one.reader) for one in found] == [("a", "b"), ("a", "c")]


@pytest.mark.parametrize(("n_examples", "elements"), [(4, 10.0), (0, 40.0)])
def test_elements_are_of_one_example(n_examples: int, elements: float) -> None:
    statistics = Statistics({"a_out": summarize(np.ones(40, np.float32))}, n_examples, 0.0)
    (border,) = find_borders([layer("a", "input"), layer("b", "a_out")], statistics)
    assert border.elements == elements


def test_conversions_meet_padding_too() -> None:
    summaries, padded = {"a_out": summarize(np.ones(40, np.float32))}, {"a_out": Extent(-1.0, 1.0, 160)}
    statistics = Statistics(summaries, 4, 0.0, padded=padded)
    (border,) = find_borders([layer("a", "input"), layer("b", "a_out")], statistics)
    assert border.elements == 40.0
