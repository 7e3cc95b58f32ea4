from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from autoq.core.errors import ModelError
from autoq.core.layers import Layer, OpFamily
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.testing.models import (
    GraphBuilder,
    attention,
    decoder,
    depthwise_cnn,
    grouped_cnn,
    inception,
    mlp,
    swish,
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


def test_an_embedding_and_a_product_of_activations_are_no_layers() -> None:
    assert list(layers_of(token_classifier())) == ["encode", "fc"]
    assert len(layers_of(attention())) == 6


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
