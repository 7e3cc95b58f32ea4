"""The rewrites that clear the way for channels: each computes the same, with less in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.graph.drop_zero_states import DropZeroStates
from autoq.graph.find_groups import clarify
from autoq.graph.float_model import build_float_model, describe_graph
from autoq.graph.settle_shapes import SettleShapes
from autoq.graph.split_before_transpose import SplitBeforeTranspose
from autoq.graph.values import constant
from autoq.testing.models import TINY_MODELS, GraphBuilder, example_feed


def run(model: ir.Model, proto: onnx.ModelProto) -> list[npt.NDArray[Any]]:
    session = ort.InferenceSession(describe_graph(model).artifact.content, providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(None, dict(example_feed(proto)))]


def heads_by_computed_shape(net: GraphBuilder, *, order: tuple[int, int]) -> str:
    """Heads whose shape is joined from the lengths of what is split, as TorchScript exports them."""
    x = net.linear(net.input("hidden", "batch", "length", 8), "in", 8, 12)
    lengths = net.node("Shape", x)
    picked = [
        net.node("Gather", lengths, net.constant(f"axis{axis}", [axis], np.int64), axis=0) for axis in order
    ]
    ends = [net.constant("heads", [3], np.int64), net.constant("size", [4], np.int64)]
    return net.node("Reshape", x, net.node("Concat", *picked, *ends, axis=0))


def test_a_shape_with_one_unknown_entry_becomes_a_constant() -> None:
    net = GraphBuilder()
    x = net.gemm(net.input("features", "batch", 8), "in", 8, 12)
    size = net.node("Slice", net.node("Shape", x), *(net.constant(f"b{i}", [i], np.int64) for i in (0, 1)))
    width = net.node("Mul", net.constant("three", [3], np.int64), net.constant("two", [2], np.int64))
    shape = net.node("Concat", size, net.constant("halves", [2], np.int64), width, axis=0)
    proto = net.build(parted=(net.node("Reshape", x, shape), ("batch", 2, 6)))
    model = build_float_model(ir.from_proto(proto)).clone()
    before = run(model, proto)
    assert SettleShapes()(model).modified
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    target = constant(reshape.inputs[1])
    assert target is not None
    assert target.tolist() == [0, 2, 6]  # the batch is copied
    np.testing.assert_array_equal(run(model, proto)[0], before[0])


@pytest.mark.parametrize(("order", "settled"), [((0, 1), [0, 0, 3, 4]), ((1, 0), None)])
def test_lengths_are_copied_from_the_same_axes_only(
    order: tuple[int, int], settled: list[int] | None
) -> None:
    net = GraphBuilder()
    shape = ("batch", "length", 3, 4) if settled else ("length", "batch", 3, 4)
    proto = net.build(parted=(heads_by_computed_shape(net, order=order), shape))
    model = build_float_model(ir.from_proto(proto)).clone()
    before = run(model, proto)
    assert SettleShapes()(model).modified is (settled is not None)
    target = constant(next(node for node in model.graph if node.op_type == "Reshape").inputs[1])
    assert (None if target is None else target.tolist()) == settled
    np.testing.assert_array_equal(run(model, proto)[0], before[0])


def transposed_by_way_of_merged_batches(net: GraphBuilder, *, parted: tuple[int, ...]) -> str:
    x = net.linear(net.input("hidden", "batch", 6, 8), "in", 8, 12)
    heads = net.node("Reshape", x, net.constant("heads", [-1, 6, 3, 4], np.int64))
    heads = net.node("Transpose", heads, perm=[0, 2, 1, 3])
    merged = net.node("Reshape", heads, net.constant("merged", [-1, 6, 4], np.int64))
    turned = net.node("Transpose", merged, perm=[0, 2, 1])
    return net.node("Reshape", turned, net.constant("parted", parted, np.int64))


def test_an_axis_that_is_split_after_a_transpose_is_split_before() -> None:
    net = GraphBuilder()
    keys = transposed_by_way_of_merged_batches(net, parted=(-1, 3, 4, 6))
    proto = net.build(keys=(keys, ("batch", 3, 4, 6)))
    model = build_float_model(ir.from_proto(proto)).clone()
    before = run(model, proto)
    assert SplitBeforeTranspose()(model).modified
    transposed = [node.inputs[0] for node in model.graph if node.op_type == "Transpose"]
    assert [len(value.shape) for value in transposed if value is not None and value.shape is not None] == [
        4,
        4,
    ]
    np.testing.assert_array_equal(run(model, proto)[0], before[0])


def test_axes_that_are_mixed_after_a_transpose_stay() -> None:
    net = GraphBuilder()
    keys = transposed_by_way_of_merged_batches(net, parted=(-1, 3, 6, 4))
    proto = net.build(keys=(keys, ("batch", 3, 6, 4)))
    assert not SplitBeforeTranspose()(build_float_model(ir.from_proto(proto)).clone()).modified


def lstm_from(net: GraphBuilder, fill: float) -> onnx.ModelProto:
    """An LSTM whose initial states are one number, repeated for the size of the batch."""
    x = net.input("frames", 5, "batch", 6)
    batch = net.node("Shape", x, start=1, end=2)
    ends = [net.constant(name, [size], np.int64) for name, size in (("dirs", 1), ("hidden", 4))]
    shape = net.node("Concat", ends[0], batch, ends[1], axis=0)
    state = net.node("Expand", net.constant("fill", fill), shape)
    weights = [
        net.weight("lstm.weight", 1, 16, 6, fan_in=6),
        net.weight("lstm.recurrence", 1, 16, 4, fan_in=4),
        net.constant("lstm.bias", net.rng.standard_normal((1, 32)) * 0.1),
    ]
    (y,) = net.nodes("LSTM", x, *weights, "", state, state, n_outputs=1, hidden_size=4)
    return net.build(states=(y, (5, 1, "batch", 4)))


@pytest.mark.parametrize(("fill", "dropped"), [(0.0, True), (0.5, False)])
def test_only_an_initial_state_of_zeros_is_dropped(fill: float, dropped: bool) -> None:
    proto = lstm_from(GraphBuilder(), fill)
    model = build_float_model(ir.from_proto(proto)).clone()
    before = run(model, proto)
    assert DropZeroStates()(model).modified is dropped
    np.testing.assert_array_equal(run(model, proto)[0], before[0])


def test_a_state_of_zeros_that_is_fed_stays() -> None:
    net = GraphBuilder()
    x, state = net.input("frames", 5, "batch", 6), net.input("state", 1, "batch", 4)
    weights = [
        net.weight("lstm.weight", 1, 16, 6, fan_in=6),
        net.weight("lstm.recurrence", 1, 16, 4, fan_in=4),
        net.constant("lstm.bias", np.zeros((1, 32))),
    ]
    (y,) = net.nodes("LSTM", x, *weights, "", state, state, n_outputs=1, hidden_size=4)
    proto = net.build(states=(y, (5, 1, "batch", 4)))
    assert not DropZeroStates()(build_float_model(ir.from_proto(proto)).clone()).modified


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_clarified_model_computes_the_same(name: str) -> None:
    proto = TINY_MODELS[name]()
    model = build_float_model(ir.from_proto(proto)).clone()
    before = run(model, proto)
    clarify(model)
    for one, other in zip(run(model, proto), before, strict=True):
        np.testing.assert_array_equal(one, other)
