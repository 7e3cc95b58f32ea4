from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from autoq.core.data import Array, Feed
from autoq.core.errors import ModelError
from autoq.graph.canonical import WANTED_OPSET
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.testing.models import (
    TINY_MODELS,
    GraphBuilder,
    attention,
    batchnorm_cnn,
    depthwise_cnn,
    example_feed,
    mlp,
    residual_cnn,
)


def run(content: bytes, feed: Feed) -> Mapping[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(content, options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def canonical(proto: onnx.ModelProto) -> FloatModel:
    return build_float_model(ir.from_proto(proto))


def written(model: FloatModel) -> onnx.ModelProto:
    assert model.artifact.content is not None
    return onnx.load_from_string(model.artifact.content)


def assert_equal_outputs(proto: onnx.ModelProto, model: FloatModel, *, n_examples: int = 3) -> None:
    feed = example_feed(proto, n_examples=n_examples)
    assert model.artifact.content is not None
    before, after = run(proto.SerializeToString(), feed), run(model.artifact.content, feed)
    assert list(before) == list(after)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-5, atol=1e-5 * np.abs(array).max())


def op_types(model: FloatModel) -> list[str]:
    return [node.op_type for node in model.graph.graph]


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_the_canonical_graph_computes_the_same(build: Callable[[], onnx.ModelProto]) -> None:
    model = canonical(build())
    assert_equal_outputs(build(), model)
    onnx.checker.check_model(written(model), full_check=True)


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_a_canonical_graph_is_canonical(build: Callable[[], onnx.ModelProto]) -> None:
    model = canonical(build())
    again = canonical(written(model))
    assert again.summary.layers == model.summary.layers
    assert again.summary.ops == model.summary.ops
    assert [str(node) for node in again.graph.graph] == [str(node) for node in model.graph.graph]


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20, 21, 22, 23, 24, 25, 26])
@pytest.mark.parametrize("build", [residual_cnn, mlp, batchnorm_cnn])
def test_opsets_from_13_on_load_and_compute_the_same(
    build: Callable[..., onnx.ModelProto], opset: int
) -> None:
    model = canonical(build(opset=opset))
    assert_equal_outputs(build(opset=opset), model)
    # Int4 weights need opset 21.
    assert model.graph.opset_imports[""] == max(opset, WANTED_OPSET)


def test_batch_norms_are_folded_into_weights_and_biases() -> None:
    model = canonical(batchnorm_cnn())
    assert "BatchNormalization" not in op_types(model)
    assert [layer.has_bias for layer in model.summary.layers] == [True, True, True]
    assert [layer.name for layer in model.summary.layers] == ["conv1", "conv2", "fc"]


def test_a_batch_norm_is_folded_where_a_bias_is_already() -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    figures = [net.constant(part, net.rng.uniform(0.5, 1.5, 4)) for part in ("g", "b", "m", "v")]
    proto = net.build(y=(net.node("BatchNormalization", x, *figures, epsilon=0.1), ("batch", 4, 6, 6)))
    model = canonical(proto)
    assert op_types(model) == ["Conv"]
    assert_equal_outputs(proto, model)


def test_batch_norms_of_transposed_convolutions_and_gemms_are_folded() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 3, 4, 4)
    x = net.node("ConvTranspose", x, net.weight("up.weight", 3, 5, 2, 2, fan_in=12), strides=[2, 2])
    figures = [net.constant(f"n1{part}", net.rng.uniform(0.5, 1.5, 5)) for part in "gbmv"]
    x = net.node("Flatten", net.node("GlobalAveragePool", net.node("BatchNormalization", x, *figures)))
    figures = [net.constant(f"n2{part}", net.rng.uniform(0.5, 1.5, 6)) for part in "gbmv"]
    x = net.node("BatchNormalization", net.gemm(x, "fc", 5, 6), *figures)
    proto = net.build(y=(x, ("batch", 6)))
    model = canonical(proto)
    assert "BatchNormalization" not in op_types(model)
    assert_equal_outputs(proto, model)


def test_a_batch_norm_that_cannot_be_folded_stays_and_computes_the_same() -> None:
    """The convolution's output is read twice, so it may not be scaled."""
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    figures = [net.constant(part, net.rng.uniform(0.5, 1.5, 4)) for part in ("g", "b", "m", "v")]
    y = net.node("Add", net.node("BatchNormalization", x, *figures), x)
    proto = net.build(y=(y, ("batch", 4, 6, 6)))
    model = canonical(proto)
    assert "BatchNormalization" in op_types(model)
    assert_equal_outputs(proto, model)


def test_one_weight_under_two_batch_norms_becomes_two() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 3, 6, 6)
    weight = net.weight("shared.weight", 3, 3, 3, 3, fan_in=27)
    for index in range(2):
        x = net.node("Conv", x, weight, pads=[1, 1, 1, 1])
        figures = [net.constant(f"{part}{index}", net.rng.uniform(0.5, 1.5, 3)) for part in "gbmv"]
        x = net.node("BatchNormalization", x, *figures)
    proto = net.build(y=(x, ("batch", 3, 6, 6)))
    model = canonical(proto)
    assert op_types(model) == ["Conv", "Conv"]
    assert_equal_outputs(proto, model)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("opset", "axes"), [(21, [2, 3]), (21, [-1, -2]), (13, [2, 3])])
def test_a_mean_over_both_spatial_axes_becomes_global_pooling(
    keepdims: int, opset: int, axes: list[int]
) -> None:
    net = GraphBuilder(opset=opset)
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    if opset < 18:
        y = net.node("ReduceMean", x, axes=axes, keepdims=keepdims)
    else:
        y = net.node("ReduceMean", x, net.constant("axes", axes, np.int64), keepdims=keepdims)
    proto = net.build(y=(y, ("batch", 4, 1, 1) if keepdims else ("batch", 4)))
    model = canonical(proto)
    assert op_types(model) == ["Conv", "GlobalAveragePool"] + ([] if keepdims else ["Reshape"])
    assert_equal_outputs(proto, model)


@pytest.mark.parametrize("axes", [[1], [1, 2, 3], [0, 2]])
def test_other_means_stay(axes: list[int]) -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    y = net.node("ReduceMean", x, net.constant("axes", axes, np.int64), keepdims=1)
    shape = [1 if axis in axes else size for axis, size in enumerate(("batch", 4, 6, 6))]
    model = canonical(net.build(y=(y, shape)))
    assert op_types(model) == ["Conv", "ReduceMean"]


def test_a_rank_2_matmul_with_its_bias_becomes_a_gemm() -> None:
    net = GraphBuilder()
    x = net.node("Relu", net.linear(net.input("x", "batch", 6), "fc1", 6, 5))
    proto = net.build(y=(net.linear(x, "fc2", 5, 4), ("batch", 4)))
    model = canonical(proto)
    assert op_types(model) == ["Gemm", "Relu", "Gemm"]
    assert [layer.name for layer in model.summary.layers] == ["fc1", "fc2"]
    assert_equal_outputs(proto, model)


def test_a_rank_3_matmul_keeps_its_add() -> None:
    model = canonical(attention())
    assert "Gemm" not in op_types(model)


def test_an_added_constant_that_is_no_bias_stays() -> None:
    net = GraphBuilder()
    product = net.node("MatMul", net.input("x", "batch", 6), net.weight("fc.weight", 6, 5, fan_in=6))
    proto = net.build(y=(net.node("Add", product, net.constant("table", np.ones((3, 5)))), ("batch", 5)))
    model = canonical(proto)
    assert op_types(model) == ["MatMul", "Add"]
    assert_equal_outputs(proto, model)


def test_constants_and_initializers_given_as_inputs_become_weights() -> None:
    """Both were usual in old exports."""
    proto = mlp(opset=13)
    weight = proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, weight.dims))
    bias = next(one for one in proto.graph.initializer if one.name == "fc1.bias")
    proto.graph.initializer.remove(bias)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["fc1.bias"], value=bias))
    model = canonical(proto)
    assert [spec.name for spec in model.summary.inputs] == ["features"]
    assert [layer.has_bias for layer in model.summary.layers] == [True, True, True]


def test_functions_are_inlined() -> None:
    function = helper.make_function(
        "custom",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 21)],
    )
    proto = mlp()
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    proto.graph.node.insert(0, helper.make_node("Twice", ["features"], ["doubled"], domain="custom"))
    proto.graph.node[1].input[0] = "doubled"
    model = canonical(proto)
    assert op_types(model) == ["Add", "Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    assert_equal_outputs(proto, model)


def test_nothing_that_is_written_tells_where_the_model_came_from() -> None:
    proto = depthwise_cnn()
    proto.producer_name = "secret exporter"
    proto.graph.doc_string = "secret graph"
    for node in proto.graph.node:
        node.doc_string = "secret node"
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File '/home/secret/model.py'")
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = "secret value"
        value.metadata_props.add(key="where", value="secret value")
    assert b"secret" in proto.SerializeToString()
    model = canonical(proto)
    assert model.artifact.content is not None
    assert b"secret" not in model.artifact.content


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("build", "stored", "layer"),
    [
        (residual_cnn, "block2.shortcut.weight", "block2.shortcut"),
        (residual_cnn, "block2.shortcut.bias", "block2.shortcut"),
        (mlp, "fc2.bias", "fc2"),
        (batchnorm_cnn, "conv1.bn.g", "conv1"),
        (batchnorm_cnn, "conv2.bn.b", "conv2"),
        (batchnorm_cnn, "conv2.bn.m", "conv2"),
    ],
)
def test_what_is_not_finite_is_refused_by_the_name_of_its_layer(
    build: Callable[..., onnx.ModelProto], stored: str, layer: str, bad: float
) -> None:
    proto = build()
    tensor = next(one for one in proto.graph.initializer if one.name == stored)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[-1] = bad
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match=f"layer '{layer}' has NaN or infinite weights or biases"):
        canonical(proto)


def test_a_model_without_a_compressible_layer_is_refused() -> None:
    net = GraphBuilder()
    proto = net.build(y=(net.node("Relu", net.input("x", "batch", 3)), ("batch", 3)))
    with pytest.raises(ModelError, match="no layer that can be compressed"):
        canonical(proto)


def test_metadata_that_users_read_at_run_time_stay() -> None:
    proto = mlp()
    proto.metadata_props.add(key="classes", value="cat,dog")
    assert dict(canonical(proto).graph.metadata_props) == {"classes": "cat,dog"}


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_one_model_has_one_digest(build: Callable[[], onnx.ModelProto]) -> None:
    assert canonical(build()).summary.digest == canonical(build()).summary.digest


# --- identities ---------------------------------------------------------------------------------------


def test_identities_go_where_nobody_needs_their_name() -> None:
    net = GraphBuilder(seed=0)
    x = net.node("Identity", net.input("x", "n", 4))
    x = net.node("Identity", net.node("Relu", net.gemm(net.node("Identity", x), "fc", 4, 3)))
    proto = net.build(y=(net.node("Identity", x), ("n", 3)))
    model = canonical(proto)
    assert op_types(model) == ["Gemm", "Relu"]
    assert_equal_outputs(proto, model)


def test_two_outputs_of_one_value_keep_their_names() -> None:
    net = GraphBuilder(seed=0)
    x = net.node("Relu", net.gemm(net.input("x", "n", 4), "fc", 4, 3))
    names = {"first": (net.node("Identity", x), ("n", 3)), "second": (net.node("Identity", x), ("n", 3))}
    proto = net.build(**names)
    model = canonical(proto)
    assert [output.name for output in model.summary.outputs] == ["first", "second"]
    assert_equal_outputs(proto, model)


def test_an_input_that_is_an_output_too_keeps_its_identity() -> None:
    net = GraphBuilder(seed=0)
    x = net.input("x", "n", 4)
    y = net.gemm(x, "fc", 4, 3)
    proto = net.build(y=(y, ("n", 3)), same=(net.node("Identity", x), ("n", 4)))
    model = canonical(proto)
    assert "Identity" in op_types(model)
    assert_equal_outputs(proto, model)


def branching(then_value: str) -> onnx.ModelProto:
    """A layer, and an If of which one branch hands on a value from outside."""
    net = GraphBuilder(seed=0)
    hidden = net.gemm(net.input("x", "n", 4), "fc", 4, 3)
    total = net.node("ReduceSum", hidden, keepdims=0)
    positive = net.node("Greater", total, net.constant("zero", 0.0))
    outer = net.node("Identity", hidden)
    given = {"hidden": hidden, "outer": outer}[then_value]

    def branch(name: str, op: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", 3])
        return helper.make_graph([helper.make_node(op, [given], [output.name])], name, [], [output])

    y = net.node("If", positive, then_branch=branch("then", "Identity"), else_branch=branch("else", "Neg"))
    return net.build(y=(y, ("n", 3)))


@pytest.mark.parametrize("value", ["hidden", "outer"])
def test_a_branch_may_hand_on_a_value_from_outside(value: str) -> None:
    proto = branching(value)
    assert_equal_outputs(proto, canonical(proto))


# --- what exporters write -----------------------------------------------------------------------------


def test_axes_that_say_minus_one_or_a_question_mark_may_have_any_length() -> None:
    proto = residual_cnn()
    for axis, size in enumerate((-1, None, "?", "?")):
        dim = proto.graph.input[0].type.tensor_type.shape.dim[axis]
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size
    shape = canonical(proto).summary.inputs[0].shape
    assert (shape[0], *shape[2:]) == (None, None, None)


def test_a_shape_that_cannot_be_inferred_is_not_told_to_the_user(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    net = GraphBuilder(seed=0)
    x = net.gemm(net.input("x", 2, 4), "fc", 4, 3)
    proto = net.build(y=(net.node("Reshape", x, net.constant("shape", [3, 2], np.int64)), (3, 2)))
    proto.graph.value_info.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [7, 9]))
    canonical(proto)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "said"),
    [("quantised", "it is quantised already"), ("in a body", "in the bodies of If, Loop or Scan")],
)
def test_why_there_is_no_layer_is_told(kind: str, said: str) -> None:
    net = GraphBuilder(seed=0)
    x = net.input("x", "n", 4)
    if kind == "quantised":
        x, n_outputs = net.node("DequantizeLinear", *net.nodes("DynamicQuantizeLinear", x, n_outputs=3)), 4
    else:
        weight = net.constant("weight", np.ones((4, 3)))
        output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])
        body = helper.make_graph([helper.make_node("MatMul", [x, weight], ["out"])], "body", [], [output])
        total = net.node("ReduceSum", x, keepdims=0)
        positive = net.node("Greater", total, net.constant("zero", 0.0))
        x, n_outputs = net.node("If", positive, then_branch=body, else_branch=body), 3
    with pytest.raises(ModelError) as caught:
        canonical(net.build(y=(x, ("n", n_outputs))))
    assert said in str(caught.value.hint)


LARGE = 600  # squared more than what is folded for being small


def test_a_large_weight_that_an_embedding_shares_with_the_projection_gives_two_layers() -> None:
    net = GraphBuilder()
    table = net.weight("table", LARGE, LARGE, fan_in=LARGE)
    x = net.node("Gather", table, net.input("ids", "batch", "length", dtype=TensorProto.INT64))
    scores = net.node("MatMul", net.node("Relu", x), net.node("Transpose", table, perm=[1, 0]))
    proto = net.build(y=(scores, ("batch", "length", LARGE)))
    model = canonical(proto)
    assert [(layer.op, layer.weight_shape) for layer in model.summary.layers] == [
        ("Gather", (LARGE, LARGE)),
        ("MatMul", (LARGE, LARGE)),
    ]
    assert model.summary.ops == ()
    assert_equal_outputs(proto, model)


@pytest.mark.parametrize("lengths", [None, [LARGE, 2 * LARGE, LARGE]], ids=["even", "given"])
def test_packed_projections_are_a_layer_each(lengths: list[int] | None) -> None:
    net = GraphBuilder()
    width = sum(lengths) if lengths else 3 * LARGE
    packed = net.weight("packed", width, LARGE, fan_in=LARGE)
    if lengths:
        parts = net.nodes("Split", packed, net.constant("lengths", lengths, np.int64), n_outputs=3)
    else:
        parts = net.nodes("Split", packed, n_outputs=3, num_outputs=3)
    x = net.input("x", "batch", LARGE)
    products = [net.node("MatMul", x, net.node("Transpose", part, perm=[1, 0])) for part in parts]
    proto = net.build(y=(net.node("Concat", *products, axis=1), ("batch", width)))
    model = canonical(proto)
    assert op_types(model) == ["MatMul", "MatMul", "MatMul", "Concat"]
    assert [layer.weight_shape[1] for layer in model.summary.layers] == (lengths or [LARGE] * 3)
    assert_equal_outputs(proto, model)


def test_a_weight_that_is_reshaped_is_a_weight() -> None:
    net = GraphBuilder()
    stored = net.weight("conv.weight", LARGE, LARGE, fan_in=LARGE)
    weight = net.node("Reshape", stored, net.constant("shape", [LARGE, LARGE, 1, 1], np.int64))
    x = net.node("Conv", net.input("image", "batch", LARGE, 2, 2), weight)
    model = canonical(net.build(y=(x, ("batch", LARGE, 2, 2))))
    assert [layer.weight_shape for layer in model.summary.layers] == [(LARGE, LARGE, 1, 1)]


def test_what_is_computed_from_little_and_large_is_not_folded() -> None:
    """A table of nothing would be written out whole."""
    net = GraphBuilder()
    table = net.node("ConstantOfShape", net.constant("shape", [LARGE, LARGE], np.int64))
    product = net.node("MatMul", net.input("x", "batch", 6), net.weight("fc.weight", 6, LARGE, fan_in=6))
    product = net.node("Add", net.node("MatMul", product, table), net.constant("one", [1.0]))
    model = canonical(net.build(y=(product, ("batch", LARGE))))
    assert "ConstantOfShape" in op_types(model)
