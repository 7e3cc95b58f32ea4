from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from autoq.graph.blocks import Block, BlockKind, find_blocks, quantizable_values
from autoq.graph.float_model import build_float_model
from autoq.testing.models import (
    GraphBuilder,
    attention,
    depthwise_cnn,
    gru_classifier,
    inception,
    mlp,
    residual_cnn,
    swish,
    tagger,
)


def blocks_of(proto: onnx.ModelProto) -> dict[str, Block]:
    return {block.name: block for block in find_blocks(build_float_model(ir.from_proto(proto)).graph)}


def test_a_layer_absorbs_the_relu_after_it() -> None:
    blocks = blocks_of(residual_cnn())
    assert blocks["stem"] == Block("stem", BlockKind.LAYER, "Conv", ("image",), ("relu_1",), "relu_1")
    assert blocks["block1.conv2"].tail is None  # an Add reads it


def test_an_add_absorbs_its_relu_and_reads_both_branches() -> None:
    add = blocks_of(residual_cnn())["add_6"]
    assert add.kind is BlockKind.OP
    assert add.sources == ("conv_5", "maxpool_2")
    assert add.results == ("relu_7",)


def test_a_clip_from_zero_is_absorbed_with_its_bound() -> None:
    stem = blocks_of(depthwise_cnn())["stem"]
    assert (stem.tail, stem.upper_bound) == ("clip_1", 6.0)


def test_a_clip_that_does_not_start_at_zero_is_not_absorbed() -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    y = net.node("Clip", x, net.constant("low", -1.0), net.constant("high", 1.0))
    conv = blocks_of(net.build(y=(y, ("batch", 4, 6, 6))))["conv"]
    assert (conv.tail, conv.upper_bound, conv.results) == (None, None, ("conv_0",))


def test_a_result_that_is_read_twice_is_not_swallowed() -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    y = net.node("Add", net.node("Relu", x), x)
    conv = blocks_of(net.build(y=(y, ("batch", 4, 6, 6))))["conv"]
    assert (conv.tail, conv.results) == (None, ("conv_0",))


def test_a_result_that_is_an_output_is_not_swallowed() -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    shape = ("batch", 4, 6, 6)
    blocks = blocks_of(net.build(before=(x, shape), after=(net.node("Relu", x), shape)))
    assert blocks["conv"].results == ("before",)


def test_a_matmul_absorbs_the_add_of_its_bias_and_nothing_more() -> None:
    up = blocks_of(attention())["mlp.up"]
    assert up.op == "MatMul"
    assert up.tail is not None
    assert up.tail.startswith("add")


def test_moves_are_told_from_arithmetic() -> None:
    kinds = {name: block.kind for name, block in blocks_of(inception()).items()}
    assert kinds["maxpool_9"] is BlockKind.MOVE
    assert kinds["averagepool_2"] is BlockKind.OP
    assert kinds["concat_10"] is BlockKind.OP
    assert kinds["flatten_14"] is BlockKind.MOVE


def test_sigmoid_and_mul_are_ops_of_their_own() -> None:
    blocks = blocks_of(swish())
    assert blocks["mul_2"].sources == ("conv_0", "sigmoid_1")
    assert blocks["conv1"].tail is None


def test_arithmetic_with_constants_and_float_ops_are_in_no_block() -> None:
    names = set(blocks_of(attention()))
    model = build_float_model(ir.from_proto(attention()))
    outside = {node.op_type for node in model.graph.graph if node.name not in names}
    assert {"Div", "Erf", "LayerNormalization"} <= outside


@pytest.mark.parametrize("build", [residual_cnn, mlp, attention])
def test_every_source_and_result_but_those_of_moves_may_need_a_range(build: object) -> None:
    assert callable(build)
    blocks = list(blocks_of(build()).values())
    values = quantizable_values(blocks)
    assert len(set(values)) == len(values)
    expected = {
        value
        for block in blocks
        if block.kind is not BlockKind.MOVE
        for value in (*block.sources, *block.results)
    }
    assert set(values) == expected


@pytest.mark.parametrize("op", ["Gather", "LSTM", "GRU"])
def test_lookups_and_recurrences_are_blocks_that_ask_for_no_range(op: str) -> None:
    proto = gru_classifier() if op == "GRU" else tagger()
    blocks = list(blocks_of(proto).values())
    chosen = [block for block in blocks if block.op == op]
    assert chosen
    others = {value for block in blocks if block.op != op for value in (*block.sources, *block.results)}
    for block in chosen:
        assert (block.kind, block.sources) == (BlockKind.LAYER, ())
        assert block.results
        assert not set(quantizable_values(blocks)) & (set(block.results) - others)


def test_integer_inputs_are_never_asked_for_a_range() -> None:
    blocks = list(blocks_of(tagger()).values())
    assert not {"words", "kinds"} & set(quantizable_values(blocks))
