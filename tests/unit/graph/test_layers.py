from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from autoq.core.errors import ModelError
from autoq.core.layers import Layer, OpFamily
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.graph.layers import layer_weight, weight_parts
from autoq.graph.values import constant
from autoq.testing.models import (
    GraphBuilder,
    attention,
    decoder,
    depthwise_cnn,
    grouped_cnn,
    gru_classifier,
    inception,
    mlp,
    swish,
    tagger,
    token_classifier,
    two_headed,
)


def canonical(proto: onnx.ModelProto) -> FloatModel:
    return build_float_model(ir.from_proto(proto))


def layers_of(proto: onnx.ModelProto) -> dict[str, Layer]:
    return {layer.name: layer for layer in canonical(proto).summary.layers}


def test_layers_are_described_with_their_channel_axis() -> None:
    assert layers_of(mlp())["fc1"] == Layer("fc1", "Gemm", (33, 20), 0, has_bias=True)
    assert layers_of(attention())["mlp.up"] == Layer("mlp.up", "MatMul", (32, 48), 1)
    assert layers_of(decoder())["up"] == Layer("up", "ConvTranspose", (8, 6, 2, 2), 1, has_bias=True)
    assert layers_of(grouped_cnn())["grouped"].group == 2
    assert layers_of(depthwise_cnn())["depthwise"].is_depthwise


def test_layers_come_in_graph_order() -> None:
    assert list(layers_of(depthwise_cnn())) == ["stem", "expand", "depthwise", "project", "last", "fc"]


def test_a_product_of_activations_is_no_layer() -> None:
    assert len(layers_of(attention())) == 6


def test_an_embedding_is_a_layer_of_one_row_a_word() -> None:
    layers = layers_of(token_classifier())
    assert list(layers) == ["embedding", "encode", "fc"]
    assert layers["embedding"] == Layer("embedding", "Gather", (24, 16), 0)


def test_an_lstm_is_a_layer_with_both_its_weights_side_by_side() -> None:
    lstm = layers_of(tagger())["lstm"]
    assert lstm == Layer("lstm", "LSTM", (2, 64, 48), 1, group=2, has_bias=True)
    assert lstm.is_recurrent
    assert lstm.input_size == 32


def test_a_gru_is_a_layer_of_three_gates() -> None:
    gru = layers_of(gru_classifier())["gru"]
    assert gru == Layer("gru", "GRU", (1, 36, 20), 1, has_bias=True)
    assert gru.input_size == 8


def test_the_weight_of_a_recurrence_is_split_as_it_was_joined() -> None:
    model = canonical(tagger()).graph
    (node,) = (node for node in model.graph if node.op_type == "LSTM")
    weight = layer_weight(node)
    for index, part in weight_parts(node, weight):
        np.testing.assert_array_equal(part, constant(node.inputs[index]))
    np.testing.assert_array_equal(np.concatenate([p for _, p in weight_parts(node, weight)], axis=2), weight)


def looked_up(table: np.ndarray, *, axis: int = 0, indices: list[int] | None = None) -> onnx.ModelProto:
    """A lookup of fed or of constant indices, and a layer so that there is one."""
    net = GraphBuilder()
    rows = net.input("rows", "batch", dtype=onnx.TensorProto.INT64)
    known = rows if indices is None else net.constant("known", indices, np.int64)
    values = net.constant("table", table, table.dtype)
    found = net.node("Gather", values, known, axis=axis)
    total = net.node("ReduceSum", net.node("Cast", found, to=onnx.TensorProto.FLOAT))
    x = net.node(
        "Add", net.node("Cast", net.node("Unsqueeze", rows, net.constant("a", [1], np.int64)), to=1), total
    )
    return net.build(y=(net.gemm(x, "fc", 1, 3), ("batch", 3)))


def test_lookups_in_other_axes_types_and_ranks_are_no_layers() -> None:
    table = np.ones((4, 6), np.float32)
    assert list(layers_of(looked_up(table))) == ["table", "fc"]
    assert list(layers_of(looked_up(table, axis=-2))) == ["table", "fc"]
    for other in (
        looked_up(table, axis=1),
        looked_up(table, indices=[0, 2]),
        looked_up(table.astype(np.int64)),
        looked_up(table[0]),
    ):
        assert list(layers_of(other)) == ["fc"]


def recurrent(op: str = "LSTM", **attributes: Any) -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.input("x", 5, "batch", 8)
    states = net.recurrence(x, "rnn", 8, 6, op=op, **attributes)[0]
    return net.build(y=(net.linear(states, "fc", 6, 3), (5, 1, "batch", 3)))


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("attributes", [{}, {"direction": "reverse"}, {"activations": None}])
def test_plain_recurrences_are_layers(op: str, attributes: dict[str, Any]) -> None:
    if "activations" in attributes:
        attributes = {"activations": ["Sigmoid", "Tanh", "Tanh"][: 3 if op == "LSTM" else 2]}
    assert list(layers_of(recurrent(op, **attributes))) == ["rnn", "fc"]


@pytest.mark.parametrize(
    "attributes",
    [{"clip": 3.0}, {"input_forget": 1}, {"activations": ["HardSigmoid", "Tanh", "Tanh"]}],
)
def test_recurrences_that_the_integer_kernel_does_not_compute_are_left_alone(
    attributes: dict[str, Any],
) -> None:
    assert list(layers_of(recurrent(**attributes))) == ["fc"]


def test_a_recurrence_whose_second_weight_is_fed_is_no_layer() -> None:
    net = GraphBuilder()
    x, fed = net.input("x", 5, "batch", 8), net.input("fed", 1, 24, 6)
    states = net.node("LSTM", x, net.weight("rnn.weight", 1, 24, 8, fan_in=8), fed, hidden_size=6)
    proto = net.build(y=(net.linear(states, "fc", 6, 3), (5, 1, "batch", 3)))
    assert list(layers_of(proto)) == ["fc"]


@pytest.mark.parametrize(
    ("attributes", "bias_shape"),
    [({"alpha": 0.5}, 4), ({"beta": 2.0}, 4), ({"transA": 1}, 4), ({}, 1)],
)
def test_gemms_that_the_fast_kernels_cannot_compute_are_left_alone(
    attributes: dict[str, float], bias_shape: int
) -> None:
    net = GraphBuilder()
    x = net.input("x", 6, 6)
    bias = net.constant("b", np.ones(bias_shape))
    x = net.node("Gemm", x, net.weight("odd.weight", 6, 4, fan_in=6), bias, **attributes)
    proto = net.build(y=(net.gemm(x, "plain", 4, 3), (6, 3)))
    assert list(layers_of(proto)) == ["plain"]


def test_weightless_ops_have_their_family() -> None:
    def families(proto: onnx.ModelProto) -> set[OpFamily]:
        return {op.family for op in canonical(proto).summary.ops}

    assert families(inception()) == {OpFamily.POOL, OpFamily.CONCAT}
    assert families(swish()) == {OpFamily.ACTIVATION, OpFamily.MUL, OpFamily.POOL}
    assert {OpFamily.SOFTMAX, OpFamily.MATMUL, OpFamily.ADD} <= families(attention())


def test_inputs_and_outputs_are_described() -> None:
    summary = canonical(token_classifier()).summary
    (tokens,) = summary.inputs
    assert (tokens.name, tokens.dtype, tokens.shape) == ("tokens", "int64", ("batch", "length"))
    assert [spec.name for spec in canonical(two_headed()).summary.outputs] == ["logits", "embedding"]


def test_one_of_several_outputs_must_be_named() -> None:
    model = canonical(two_headed())
    assert model.output("embedding").shape == ("batch", 12)
    with pytest.raises(ModelError, match=r"2 outputs \(name one of: logits, embedding\)"):
        model.output(None)
    with pytest.raises(ModelError, match=r"no output 'scores' \(it has: logits, embedding\)"):
        model.output("scores")
    assert canonical(mlp()).output(None).name == "logits"


@pytest.mark.parametrize(
    ("attributes", "may_be_int8"),
    [({}, True), ({"dilations": [1, 1]}, True), ({"dilations": [2, 2]}, False), ({"ceil_mode": 1}, False)],
)
def test_average_pools_that_the_integer_kernel_computes_otherwise_stay_float(
    attributes: dict[str, Any], may_be_int8: bool
) -> None:
    net = GraphBuilder()
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, 12, 12), "conv", (3, 8)))
    x = net.node("AveragePool", x, kernel_shape=[2, 2], **attributes)
    ops = canonical(net.build(y=(net.classify(x, 8), ("batch", 10)))).summary.ops
    assert ("AveragePool" in {op.op for op in ops}) == may_be_int8
