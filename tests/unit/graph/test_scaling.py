from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.core.data import Array, Feed
from autoq.graph.float_model import FloatModel, build_float_model, serialize
from autoq.graph.layers import is_layer
from autoq.graph.scaling import (
    Origin,
    check_factors,
    find_origin,
    input_maxima,
    input_width,
    live_channels,
    magnitudes,
    output_maxima,
    output_width,
    scale_inputs,
    scale_origin,
    trailing_axes,
)
from autoq.testing.models import GraphBuilder, example_feed


def run(model: ir.Model, feed: Feed) -> Mapping[str, Array]:
    session = ort.InferenceSession(serialize(model).content)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def canonical(proto: onnx.ModelProto) -> FloatModel:
    return build_float_model(ir.from_proto(proto))


def layer_named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def assert_close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def one_conv(group: int = 1) -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 6, 5, 5), "layer", (6, 12), group=group)
    return net.build(y=(x, ("batch", 12, 5, 5)))


def one_transposed_conv(group: int = 1) -> onnx.ModelProto:
    net = GraphBuilder()
    weight = net.weight("layer.weight", 6, 12 // group, 2, 2, fan_in=24)
    x = net.input("x", "batch", 6, 5, 5)
    x = net.node("ConvTranspose", x, weight, net.bias("layer.bias", 12), group=group)
    return net.build(y=(x, ("batch", 12, 6, 6)))


def one_conv1d() -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.node("Conv", net.input("x", "batch", 6, 9), net.weight("layer.weight", 12, 6, 3, fan_in=18))
    return net.build(y=(x, ("batch", 12, 7)))


def one_gemm() -> onnx.ModelProto:
    net = GraphBuilder()
    return net.build(y=(net.gemm(net.input("x", "batch", 6), "layer", 6, 12), ("batch", 12)))


def one_gemm_not_transposed() -> onnx.ModelProto:
    net = GraphBuilder()
    weight = net.weight("layer.weight", 6, 12, fan_in=6)
    x = net.node("Gemm", net.input("x", "batch", 6), weight, net.bias("layer.bias", 12))
    return net.build(y=(x, ("batch", 12)))


def one_matmul() -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4, 6), "layer", 6, 12)
    return net.build(y=(x, ("batch", 4, 12)))


LAYERS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "conv": one_conv,
    "conv in 2 groups": lambda: one_conv(2),
    "depthwise": lambda: one_conv(6),
    "conv1d": one_conv1d,
    "transposed conv": one_transposed_conv,
    "transposed conv in 3 groups": lambda: one_transposed_conv(3),
    "gemm": one_gemm,
    "gemm, not transposed": one_gemm_not_transposed,
    "matmul": one_matmul,
}
each_layer = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)


@each_layer
def test_scaling_the_origin_of_an_output_scales_the_output(build: Callable[[], onnx.ModelProto]) -> None:
    model, feed = canonical(build()), example_feed(build())
    edited = model.clone()
    trailing = trailing_axes(layer_named(edited, "layer"))
    origin = find_origin(edited.graph.outputs[0], width=12, trailing=trailing)
    assert origin is not None
    factors = np.linspace(0.1, 7.0, 12)
    scale_origin(edited.graph, origin, factors)
    expected = run(model.graph, feed)["y"] * factors.reshape(-1, *[1] * trailing)
    assert_close(run(edited, feed)["y"], expected)


@each_layer
def test_scaling_input_weights_is_scaling_the_input(build: Callable[[], onnx.ModelProto]) -> None:
    model, feed = canonical(build()), example_feed(build())
    edited = model.clone()
    layer = layer_named(edited, "layer")
    factors = np.linspace(0.1, 7.0, 6)
    scale_inputs(edited.graph, layer, factors)
    scaled = (feed["x"] * factors.reshape(-1, *[1] * trailing_axes(layer))).astype(np.float32)
    assert_close(run(edited, feed)["y"], run(model.graph, {"x": scaled})["y"])


@each_layer
def test_maxima_of_channels_are_those_found_by_probing(build: Callable[[], onnx.ModelProto]) -> None:
    """A channel's weights are the ones that change when the channel is switched off."""
    model = canonical(build())
    layer = layer_named(model.graph, "layer")
    assert (input_width(layer), output_width(layer)) == (6, 12)
    before = layer.inputs[1].const_value.numpy()  # type: ignore[union-attr]
    found = input_maxima(magnitudes(layer))
    for channel in range(6):
        clone = model.clone()
        probed = layer_named(clone, "layer")
        scale_inputs(clone.graph, probed, np.where(np.arange(6) == channel, 0.0, 1.0))
        gone = before[probed.inputs[1].const_value.numpy() != before]  # type: ignore[union-attr]
        assert found[channel] == np.abs(gone).max()
    found = output_maxima(magnitudes(layer))
    for channel in range(12):
        clone = model.clone()
        probed = layer_named(clone, "layer")
        origin = Origin(probed, ())
        scale_origin(clone.graph, origin, np.where(np.arange(12) == channel, 0.0, 1.0))
        gone = before[probed.inputs[1].const_value.numpy() != before]  # type: ignore[union-attr]
        assert found[channel] == np.abs(gone).max()


def test_scaling_a_clone_leaves_the_model_alone() -> None:
    model = canonical(one_conv())
    before = serialize(model.graph).digest
    clone = model.clone()
    scale_inputs(clone.graph, layer_named(clone, "layer"), np.full(6, 2.0))
    assert serialize(clone).digest != before
    assert serialize(model.graph).digest == before


def origin_before_a_layer(net: GraphBuilder, value: str, shape: tuple[int | str, ...]) -> Origin | None:
    """Let a layer named `reader` read `value`, and look for the value's origin."""
    if len(shape) == 4:
        y = net.conv(value, "reader", (int(shape[1]), 2), 1)
        proto = net.build(y=(y, (shape[0], 2, shape[2], shape[3])))
    else:
        y = net.linear(value, "reader", int(shape[-1]), 2)
        proto = net.build(y=(y, (*shape[:-1], 2)))
    return assert_scaling_is_exact(proto)


def assert_scaling_is_exact(proto: onnx.ModelProto) -> Origin | None:
    """Scale the origin of what `reader` reads, if it has one; the reader must be able to undo it."""
    model = canonical(proto)
    edited = model.clone()
    reader = layer_named(edited, "reader")
    source, width = reader.inputs[0], input_width(reader)
    assert source is not None
    origin = find_origin(source, width=width, trailing=trailing_axes(reader))
    if origin is not None:
        factors = np.geomspace(0.2, 5.0, width)
        scale_origin(edited.graph, origin, 1.0 / factors)
        scale_inputs(edited.graph, reader, factors)
        feed = example_feed(proto)
        assert_close(run(edited, feed)["y"], run(model.graph, feed)["y"])
    return origin


@pytest.mark.parametrize("op", ["Relu", "LeakyRelu"])
def test_homogeneous_activations_are_passed(op: str) -> None:
    net = GraphBuilder()
    x = net.node(op, net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4)))
    origin = origin_before_a_layer(net, x, ("batch", 4, 6, 6))
    assert origin is not None
    assert origin.node.name == "conv"


def test_a_prelu_is_passed_on_the_side_of_its_data() -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    x = net.node("PRelu", x, net.constant("slope", net.rng.uniform(-1.0, 1.0, (4, 1, 1))))
    origin = origin_before_a_layer(net, x, ("batch", 4, 6, 6))
    assert origin is not None
    assert origin.node.name == "conv"


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools_of_feature_maps_are_passed(op: str) -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4))
    x = net.node(op, x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    origin = origin_before_a_layer(net, x, ("batch", 4, 3, 3))
    assert origin is not None
    assert origin.node.name == "conv"


def test_a_pool_over_the_channels_of_rows_is_not_passed() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4, 6), "linear", 6, 8)
    x = net.node("MaxPool", x, kernel_shape=[2], strides=[2])
    assert origin_before_a_layer(net, x, ("batch", 4, 4)) is None


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Gelu", "Softmax", "HardSwish", "Elu"])
def test_other_activations_are_not_passed(op: str) -> None:
    net = GraphBuilder()
    x = net.node(op, net.linear(net.input("x", "batch", 4, 6), "linear", 6, 8))
    assert origin_before_a_layer(net, x, ("batch", 4, 8)) is None


def test_a_clip_is_not_passed() -> None:
    net = GraphBuilder()
    x = net.relu6(net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 4)))
    assert origin_before_a_layer(net, x, ("batch", 4, 6, 6)) is None


def test_a_value_that_is_read_twice_on_the_way_stops_the_search() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4, 6), "linear", 6, 8)
    y = net.linear(net.node("Relu", x), "reader", 8, 2)
    proto = net.build(y=(y, ("batch", 4, 2)), also=(net.node("Neg", x), ("batch", 4, 8)))
    assert assert_scaling_is_exact(proto) is None


def test_an_output_on_the_way_stops_the_search() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4, 6), "linear", 6, 8)
    y = net.linear(net.node("Relu", x), "reader", 8, 2)
    assert assert_scaling_is_exact(net.build(y=(y, ("batch", 4, 2)), x0=(x, ("batch", 4, 8)))) is None


def test_a_reader_in_the_body_of_a_condition_stops_the_search() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4, 6), "linear", 6, 8)
    info = onnx.helper.make_tensor_value_info
    bodies = {}
    for branch in ("then", "else"):
        name = f"{branch}_result"
        body = onnx.helper.make_node("Neg" if branch == "then" else "Abs", [x], [name])
        result = info(name, onnx.TensorProto.FLOAT, ("batch", 4, 8))
        bodies[f"{branch}_branch"] = onnx.helper.make_graph([body], branch, [], [result])
    flag = net.input("flag", dtype=onnx.TensorProto.BOOL)
    other = net.node("If", flag, **bodies)
    y = net.linear(net.node("Relu", x), "reader", 8, 2)
    model = canonical(net.build(y=(y, ("batch", 4, 2)), other=(other, ("batch", 4, 8))))
    source = layer_named(model.graph, "reader").inputs[0]
    assert source is not None
    assert find_origin(source, width=8, trailing=0) is None


def test_a_layer_norm_takes_factors_into_scale_and_bias() -> None:
    net = GraphBuilder()
    scale = net.constant("norm.weight", net.rng.uniform(0.5, 1.5, 6))
    x = net.input("x", "batch", 4, 6)
    x = net.node("LayerNormalization", x, scale, net.bias("norm.bias", 6), axis=-1)
    origin = origin_before_a_layer(net, x, ("batch", 4, 6))
    assert origin is not None
    assert [vector.index for vector in origin.vectors] == [1, 2]


def test_a_norm_without_a_bias_takes_factors_into_its_scale() -> None:
    net = GraphBuilder(opset=23)
    scale = net.constant("norm.weight", net.rng.uniform(0.5, 1.5, 6))
    x = net.node("RMSNormalization", net.input("x", "batch", 4, 6), scale, axis=-1)
    origin = origin_before_a_layer(net, x, ("batch", 4, 6))
    assert origin is not None
    assert [vector.index for vector in origin.vectors] == [1]


def test_a_norm_of_feature_maps_takes_factors() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 4, 6, 6)
    scale = net.constant("norm.weight", net.rng.uniform(0.5, 1.5, 4))
    x = net.node("Relu", net.node("InstanceNormalization", x, scale, net.bias("norm.bias", 4)))
    assert origin_before_a_layer(net, x, ("batch", 4, 6, 6)) is not None


def test_a_norm_with_one_scale_for_all_channels_takes_none() -> None:
    net = GraphBuilder()
    x = net.node("LayerNormalization", net.input("x", "batch", 4, 6), net.constant("scale", [2.0]), axis=-1)
    assert origin_before_a_layer(net, x, ("batch", 4, 6)) is None


def test_the_mean_that_a_norm_also_writes_has_no_origin() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 4, 6)
    scale = net.constant("scale", np.ones(6))
    _, mean = net.nodes("LayerNormalization", x, scale, n_outputs=2, axis=-1)
    assert origin_before_a_layer(net, mean, ("batch", 4, 1)) is None


def test_a_norm_that_is_spelled_out_takes_factors_into_its_last_product_and_sum() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 4, 6)
    x = net.node("Mul", net.node("Tanh", x), net.constant("scale", net.rng.uniform(0.5, 1.5, (1, 1, 6))))
    x = net.node("Add", net.bias("bias", 6), x)
    origin = origin_before_a_layer(net, x, ("batch", 4, 6))
    assert origin is not None
    assert [(vector.node.op_type, vector.index) for vector in origin.vectors] == [("Add", 0), ("Mul", 1)]


def test_scalars_become_vectors() -> None:
    net = GraphBuilder()
    x = net.node("Mul", net.node("Tanh", net.input("x", "batch", 4, 6, 6)), net.constant("half", 0.5))
    x = net.node("Relu", net.node("Add", x, net.constant("shift", [[0.25]])))
    origin = origin_before_a_layer(net, x, ("batch", 4, 6, 6))
    assert origin is not None
    shapes = [vector.node.inputs[vector.index].shape for vector in origin.vectors]  # type: ignore[union-attr]
    assert [tuple(shape or ()) for shape in shapes] == [(4, 1, 1), (4, 1, 1)]


def test_a_constant_that_differs_along_other_axes_takes_no_factors() -> None:
    net = GraphBuilder()
    x = net.node("Mul", net.input("x", "batch", 4, 6), net.constant("scale", np.ones((4, 1))))
    assert origin_before_a_layer(net, x, ("batch", 4, 6)) is None
    net = GraphBuilder()
    x = net.node("Mul", net.input("x", "batch", 6, 6, 6), net.constant("scale", np.ones(6)))
    assert origin_before_a_layer(net, x, ("batch", 6, 6, 6)) is None


def test_a_sum_that_widens_its_operand_has_no_origin() -> None:
    net = GraphBuilder()
    x = net.node("Mul", net.input("x", "batch", 4, 1), net.constant("half", 0.5))
    x = net.node("Add", x, net.bias("bias", 6))
    assert origin_before_a_layer(net, x, ("batch", 4, 6)) is None


def test_a_layer_on_another_axis_is_no_origin() -> None:
    """What a convolution writes in columns, a MatMul reads in rows."""
    net = GraphBuilder()
    x = net.node("Relu", net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 6)))
    y = net.linear(x, "reader", 6, 2)
    assert assert_scaling_is_exact(net.build(y=(y, ("batch", 6, 6, 2)))) is None


def test_a_gated_product_is_passed_on_the_side_that_has_an_origin() -> None:
    """SwiGLU: the gate is read by its own sigmoid, the other factor by nothing else."""
    net = GraphBuilder()
    x = net.input("x", "batch", 4, 6)
    gate = net.linear(x, "gate", 6, 8)
    x = net.node("Mul", net.node("Mul", gate, net.node("Sigmoid", gate)), net.linear(x, "up", 6, 8))
    origin = origin_before_a_layer(net, x, ("batch", 4, 8))
    assert origin is not None
    assert origin.node.name == "up"


def test_a_square_is_not_passed() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4, 6), "linear", 6, 8)
    assert origin_before_a_layer(net, net.node("Mul", x, x), ("batch", 4, 8)) is None


def test_a_product_that_widens_its_operand_has_no_origin() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 4, 6)
    x = net.node("Mul", net.linear(x, "narrow", 6, 1), net.node("Tanh", x))
    assert origin_before_a_layer(net, x, ("batch", 4, 6)) is None


def test_a_quotient_is_passed_on_the_side_of_its_dividend() -> None:
    for turned in (False, True):
        net = GraphBuilder()
        x = net.input("x", "batch", 4, 6)
        sides = [net.linear(x, "linear", 6, 8), net.node("Exp", net.linear(x, "other", 6, 8))]
        quotient = net.node("Div", *(reversed(sides) if turned else sides))
        origin = origin_before_a_layer(net, quotient, ("batch", 4, 8))
        assert (origin is None) == turned


def attended(*, swap: tuple[int, ...] = (0, 2, 1, 3), from_left: bool = True) -> Origin | None:
    """Let two heads of size 3 mix a projection, and look for the origin of what they make."""
    net = GraphBuilder()
    x = net.input("x", 4, 5, 6)
    heads = net.node("Reshape", net.linear(x, "value", 6, 6), net.constant("split", [4, 5, 2, 3], np.int64))
    heads = net.node("Transpose", heads, perm=swap)
    size = 5 if swap == (0, 2, 1, 3) else 2
    if from_left:
        weights = net.constant("weights", net.rng.uniform(0, 1, (size, size)))
        mixed = net.node("MatMul", net.node("Abs", weights), heads)
    else:
        mixed = net.node("MatMul", heads, net.node("Abs", net.constant("weights", np.eye(3) + 0.1)))
    mixed = net.node("Transpose", mixed, perm=swap)
    joined = net.node("Reshape", mixed, net.constant("join", [4, 5, 6], np.int64))
    return origin_before_a_layer(net, joined, (4, 5, 6))


def test_attention_is_passed_on_the_side_of_its_values() -> None:
    origin = attended()
    assert origin is not None
    assert origin.node.name == "value"
    assert attended(from_left=False) is None  # mixes channels
    assert attended(swap=(0, 1, 2, 3)) is None


def test_attention_over_values_that_heads_share_is_not_passed() -> None:
    """One head of values for two of queries: a channel of it becomes two."""
    net = GraphBuilder()
    x = net.input("x", "batch", 5, 6)
    heads = net.node("Reshape", net.linear(x, "value", 6, 3), net.constant("split", [0, 0, 1, 3], np.int64))
    heads = net.node("Transpose", heads, perm=[0, 2, 1, 3])
    mixed = net.node("MatMul", net.constant("weights", net.rng.uniform(0, 1, (2, 5, 5))), heads)
    mixed = net.node("Transpose", mixed, perm=[0, 2, 1, 3])
    joined = net.node("Reshape", mixed, net.constant("join", [0, 0, 6], np.int64))
    assert origin_before_a_layer(net, joined, ("batch", 5, 6)) is None


def test_a_reshape_that_is_no_attention_is_not_passed() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4, 6), "linear", 6, 8)
    x = net.node("Reshape", x, net.constant("shape", [0, 2, 16], np.int64))
    assert origin_before_a_layer(net, x, ("batch", 2, 16)) is None


def test_constants_that_others_read_are_copied() -> None:
    net = GraphBuilder()
    a, b = net.input("a", "batch", 6), net.input("b", "batch", 6)
    weight, bias = net.weight("tied.weight", 6, 6, fan_in=6), net.bias("tied.bias", 6)
    first = net.node("Gemm", a, weight, bias, transB=1)
    second = net.node("Gemm", b, weight, bias, transB=1)
    y = net.gemm(first, "reader", 6, 2)
    proto = net.build(y=(y, ("batch", 2)), other=(second, ("batch", 6)))
    assert assert_scaling_is_exact(proto) is not None
    model = canonical(proto)
    edited = model.clone()
    layers = [node for node in edited.graph if is_layer(node)]
    tied = layers[0].inputs[1]
    assert tied is layers[1].inputs[1]
    origin = find_origin(layers[0].outputs[0], width=6, trailing=0)
    assert origin is not None
    scale_origin(edited.graph, origin, np.full(6, 3.0))
    assert layers[1].inputs[1] is tied
    assert [str(value.name) for value in layers[0].inputs[1:] if value] == [
        "tied.weight_scaled",
        "tied.bias_scaled",
    ]
    feed = example_feed(proto)
    np.testing.assert_array_equal(run(edited, feed)["other"], run(model.graph, feed)["other"])


def test_channels_far_below_the_largest_are_dead() -> None:
    assert live_channels(np.array([1.0, 1e-3, 1e-9, 0.0])).tolist() == [True, True, False, False]
    assert live_channels(np.zeros(3)).tolist() == [False] * 3


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"b": np.ones(2, np.float32)}, r"nothing to scale exactly at: \['b'\]"),
        ({"a": np.ones(3, np.float32)}, r"'a' has 2 channels, not \(3,\)"),
        ({"a": np.array([1.0, 0.0], np.float32)}, "not all positive"),
        ({"a": np.array([1.0, np.nan], np.float32)}, "not all positive"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors: dict[str, Array], message: str) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=message):
        check_factors(factors, {"a": 2})
