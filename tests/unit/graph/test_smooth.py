from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.core.data import Array, Feed
from autoq.graph.blocks import find_blocks
from autoq.graph.equalize import EqualizeLayers, ReplayEqualization
from autoq.graph.float_model import FloatModel, build_float_model, serialize
from autoq.graph.layers import find_layers
from autoq.graph.smooth import (
    ReplaySmoothing,
    SmoothActivations,
    SmoothingSite,
    smoothing_scales,
    smoothing_sites,
)
from autoq.testing.models import TINY_MODELS, GraphBuilder, attention, example_feed, mlp


def run(model: ir.Model, feed: Feed) -> Mapping[str, Array]:
    session = ort.InferenceSession(serialize(model).content)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def canonical(proto: onnx.ModelProto) -> FloatModel:
    return build_float_model(ir.from_proto(proto))


def drawn_maxima(model: FloatModel, *, seed: int = 0) -> dict[str, Array]:
    """Maxima over three orders of magnitude for every tensor that layers read."""
    rng = np.random.default_rng(seed)
    return {
        site.value_name: (10.0 ** rng.uniform(-1, 2, site.n_channels)).astype(np.float32)
        for site in smoothing_sites(model.graph)
    }


def smoothed(
    model: FloatModel, maxima: Mapping[str, Array], alpha: float
) -> tuple[ir.Model, dict[str, Array]]:
    edited, rewrite = model.clone(), SmoothActivations(maxima, alpha=alpha)
    rewrite(edited)
    return edited, rewrite.scales


def node_named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def source_of(model: ir.Model, layer: str) -> str:
    value = node_named(model, layer).inputs[0]
    assert value is not None
    return str(value.name)


def weight_of(model: ir.Model, layer: str) -> Array:
    value = node_named(model, layer).inputs[1]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def assert_equal_outputs(proto: onnx.ModelProto, *, alpha: float = 0.5, n_examples: int = 4) -> ir.Model:
    model = canonical(proto)
    edited, _ = smoothed(model, drawn_maxima(model), alpha)
    feed = example_feed(proto, n_examples=n_examples)
    expected, actual = run(model.graph, feed), run(edited, feed)
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max())
    onnx.checker.check_model(onnx.load_from_string(serialize(edited).content), full_check=True)
    return edited


def pre_norm(*, spelled_out: bool = False) -> onnx.ModelProto:
    """Two projections of a normalised stream, which the residual does not read."""
    net = GraphBuilder()
    x = net.input("x", "batch", "length", 8)
    scale, bias = net.constant("norm.weight", net.rng.uniform(0.5, 1.5, 8)), net.bias("norm.bias", 8)
    if spelled_out:
        axes = net.constant("axes", [-1], np.int64)
        centred = net.node("Sub", x, net.node("ReduceMean", x, axes))
        variance = net.node("ReduceMean", net.node("Mul", centred, centred), axes)
        deviation = net.node("Sqrt", net.node("Add", variance, net.constant("epsilon", 1e-5)))
        h = net.node("Add", net.node("Mul", net.node("Div", centred, deviation), scale), bias)
    else:
        h = net.node("LayerNormalization", x, scale, bias, axis=-1)
    gate, up = net.linear(h, "gate", 8, 12), net.linear(h, "up", 8, 12)
    y = net.node("Add", net.node("Sigmoid", gate), up)
    return net.build(y=(net.node("Add", net.linear(y, "down", 12, 8), x), ("batch", "length", 8)))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_a_smoothed_model_computes_the_same(build: Callable[[], onnx.ModelProto], alpha: float) -> None:
    assert_equal_outputs(build(), alpha=alpha)


@pytest.mark.parametrize("n_examples", [1, 5])
def test_a_smoothed_model_takes_any_batch(n_examples: int) -> None:
    assert_equal_outputs(attention(), n_examples=n_examples)


def test_sites_tell_who_reads_a_tensor_and_whether_it_folds() -> None:
    sites = smoothing_sites(canonical(pre_norm()).graph)
    assert [site.layers for site in sites] == [("gate", "up"), ("down",)]
    assert [site.folds for site in sites] == [True, False]
    assert sites[0] == SmoothingSite("layernormalization_0", ("gate", "up"), 8, folds=True)


@pytest.mark.parametrize("spelled_out", [False, True])
def test_a_norm_that_only_layers_read_takes_the_division(spelled_out: bool) -> None:
    proto = pre_norm(spelled_out=spelled_out)
    model = canonical(proto)
    assert [site.folds for site in smoothing_sites(model.graph)] == [True, False]
    edited = assert_equal_outputs(proto)
    assert op_types(edited).count("Mul") == op_types(model.graph).count("Mul") + 1  # for `down`
    assert source_of(edited, "gate") == source_of(model.graph, "gate")


def test_a_residual_beside_layers_is_left_alone_and_the_layers_share_one_product() -> None:
    model = canonical(attention())
    edited = assert_equal_outputs(attention())
    shared = {source_of(edited, f"attention.{part}") for part in "qkv"}
    assert shared == {"hidden_smoothed"}
    sums = [node for node in edited.graph if node.op_type == "Sum"]
    assert any(value is not None and value.name == "hidden" for one in sums for value in one.inputs)
    assert source_of(edited, "mlp.up") == f"{source_of(model.graph, 'mlp.up')}_smoothed"
    copies = [node for node in edited.graph if str(node.name).endswith("_smoothed")]
    assert len(copies) == len([site for site in smoothing_sites(model.graph) if not site.folds])


def test_a_layer_before_a_layer_takes_the_division() -> None:
    model = canonical(mlp())
    assert [site.folds for site in smoothing_sites(model.graph)] == [False, True, True]
    edited = assert_equal_outputs(mlp())
    assert op_types(edited).count("Mul") == 1


def test_a_gelu_that_ends_in_a_product_with_a_number_takes_the_division() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 5, 6), "up", 6, 9)
    gate = net.node(
        "Add", net.node("Erf", net.node("Mul", x, net.constant("c", 0.7))), net.constant("one", 1.0)
    )
    x = net.node("Mul", net.node("Mul", x, gate), net.constant("half", 0.5))
    proto = net.build(y=(net.linear(x, "down", 9, 6), ("batch", 5, 6)))
    assert [site.folds for site in smoothing_sites(canonical(proto).graph)] == [False, True]
    assert_equal_outputs(proto)


def test_the_copy_of_a_tensor_has_its_shape_and_type() -> None:
    edited = assert_equal_outputs(attention())
    copy = node_named(edited, "hidden_smoothed").outputs[0]
    original = edited.graph.inputs[0]
    assert (copy.name, copy.shape, copy.dtype) == ("hidden_smoothed", original.shape, original.dtype)


def test_a_name_that_is_taken_is_varied() -> None:
    net = GraphBuilder()
    x, taken = net.input("x", "batch", 6), net.input("x_smoothed", "batch", 2)
    y = net.node("Add", net.gemm(x, "fc", 6, 2), taken)
    edited = assert_equal_outputs(net.build(y=(y, ("batch", 2))))
    assert source_of(edited, "fc") == "x_smoothed_2"


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_layers_and_blocks_keep_their_names(build: Callable[[], onnx.ModelProto]) -> None:
    model = canonical(build())
    edited, _ = smoothed(model, drawn_maxima(model), 0.5)
    assert tuple(find_layers(edited)) == model.summary.layers
    before, after = find_blocks(model.graph), find_blocks(edited)
    assert [(one.name, one.results, one.tail) for one in after] == [
        (one.name, one.results, one.tail) for one in before
    ]


def test_scales_are_what_the_formula_says() -> None:
    model = canonical(pre_norm())
    maxima = drawn_maxima(model)
    name = source_of(model.graph, "gate")
    scales = smoothing_scales(model.graph, {name: maxima[name]}, alpha=0.3)
    raw = []
    for channel in range(8):
        rows = [weight_of(model.graph, layer)[channel] for layer in ("gate", "up")]
        largest = max(abs(float(weight)) for row in rows for weight in row)
        raw.append(float(maxima[name][channel]) ** 0.3 / largest**0.7)
    mean = np.prod(raw) ** (1 / 8)
    assert list(scales) == [name]
    np.testing.assert_allclose(scales[name], np.array(raw) / mean, rtol=1e-5)


def column_maxima(model: ir.Model, layer: str) -> Array:
    weight = np.abs(weight_of(model, layer))
    maxima: Array = weight.max(axis=0) if node_named(model, layer).op_type == "Gemm" else weight.max(axis=1)
    return maxima


def test_alpha_1_makes_all_channels_of_the_tensor_alike() -> None:
    model = canonical(mlp())
    maxima = drawn_maxima(model)
    _, scales = smoothed(model, maxima, 1.0)
    for name, vector in scales.items():
        np.testing.assert_allclose(maxima[name] / vector, (maxima[name] / vector).mean(), rtol=1e-5)


def test_alpha_0_makes_all_channels_of_the_weights_alike() -> None:
    model = canonical(mlp())
    edited, _ = smoothed(model, drawn_maxima(model), 0.0)
    for layer in ("fc1", "fc2", "fc3"):
        maxima = column_maxima(edited, layer)
        np.testing.assert_allclose(maxima, maxima.mean(), rtol=1e-5)


def test_alpha_one_half_balances_tensors_and_final_weights_along_a_chain() -> None:
    model = canonical(mlp())
    maxima = drawn_maxima(model)
    edited, scales = smoothed(model, maxima, 0.5)
    for layer in ("fc1", "fc2", "fc3"):
        name = source_of(model.graph, layer)
        ratio = column_maxima(edited, layer) / (maxima[name] / scales[name])
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)


def test_scales_have_a_geometric_mean_of_1() -> None:
    model = canonical(attention())
    for vector in smoothing_scales(model.graph, drawn_maxima(model), alpha=0.5).values():
        np.testing.assert_allclose(np.log(vector).mean(), 0.0, atol=1e-6)


def test_dead_channels_keep_their_scale() -> None:
    net = GraphBuilder()
    weight = net.rng.standard_normal((6, 4))
    weight[1] = 0.0
    x = net.node("MatMul", net.input("x", "batch", 6), net.constant("fc.weight", weight))
    model = canonical(net.build(y=(x, ("batch", 4))))
    maxima = np.array([3.0, 5.0, 0.0, 100.0, 1e-9, 0.1], np.float32)
    scales = smoothing_scales(model.graph, {"x": maxima}, alpha=0.5)["x"]
    assert scales[[1, 2, 4]].tolist() == [1.0] * 3
    assert (scales[[0, 3, 5]] != 1.0).all()
    silent = smoothing_scales(model.graph, {"x": np.zeros(6, np.float32)}, alpha=0.5)
    assert silent["x"].tolist() == [1.0] * 6


def test_extreme_channels_are_clamped() -> None:
    net = GraphBuilder()
    weight = net.constant("fc.weight", np.ones((9, 2)))
    model = canonical(net.build(y=(net.node("MatMul", net.input("x", "batch", 9), weight), ("batch", 2))))
    maxima = np.array([1e5, *[1.0] * 8], np.float32)
    scales = smoothing_scales(model.graph, {"x": maxima}, alpha=1.0)["x"]
    assert scales[0] == 1000.0
    assert (scales[1:] < 1.0).all()


def test_only_tensors_with_maxima_are_smoothed() -> None:
    model = canonical(mlp())
    name = source_of(model.graph, "fc2")
    edited, scales = smoothed(model, {name: drawn_maxima(model)[name], "nobody": np.ones(3, np.float32)}, 0.5)
    assert list(scales) == [name]
    np.testing.assert_array_equal(weight_of(edited, "fc3"), weight_of(model.graph, "fc3"))


def test_a_tensor_whose_layers_take_different_axes_for_channels_is_no_site() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 6, 6, 6)
    outputs = {"a": net.conv(x, "conv", (6, 2)), "b": net.linear(x, "rows", 6, 2)}
    shapes = {"a": ("batch", 2, 6, 6), "b": ("batch", 6, 6, 2)}
    proto = net.build(**{name: (value, shapes[name]) for name, value in outputs.items()})
    assert smoothing_sites(canonical(proto).graph) == []


def test_a_tensor_that_is_an_output_gets_a_copy() -> None:
    net = GraphBuilder()
    x = net.gemm(net.input("x", "batch", 6), "fc1", 6, 6)
    proto = net.build(y=(net.gemm(x, "fc2", 6, 2), ("batch", 2)), hidden=(x, ("batch", 6)))
    assert [site.folds for site in smoothing_sites(canonical(proto).graph)] == [False, False]
    assert source_of(assert_equal_outputs(proto), "fc2") == "hidden_smoothed"


def test_norms_that_share_their_scale_get_one_each() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 5, 6)
    scale, bias = net.constant("norm.weight", net.rng.uniform(0.5, 1.5, 6)), net.bias("norm.bias", 6)
    for name in ("first", "second"):
        x = net.node("LayerNormalization", x, scale, bias, axis=-1)
        x = net.node("Tanh", net.linear(x, name, 6, 6))
    proto = net.build(y=(x, ("batch", 5, 6)))
    assert [site.folds for site in smoothing_sites(canonical(proto).graph)] == [True, True]
    assert_equal_outputs(proto)


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_replayed_scales_give_the_same_bytes(build: Callable[[], onnx.ModelProto]) -> None:
    model = canonical(build())
    edited, scales = smoothed(model, drawn_maxima(model), 0.6)
    stored = {name: np.frombuffer(scales[name].tobytes(), np.float32) for name in reversed(scales)}
    again = canonical(build()).clone()
    ReplaySmoothing(stored)(again)
    assert serialize(again).content == serialize(edited).content


def test_equalizing_then_smoothing_replays_to_the_same_bytes() -> None:
    model = canonical(attention())
    edited, equalizing = model.clone(), EqualizeLayers()
    equalizing(edited)
    edited = edited.clone()
    smoothing = SmoothActivations(drawn_maxima(model), alpha=0.5)
    smoothing(edited)
    again = model.clone()
    ReplayEqualization(equalizing.scales)(again)
    ReplaySmoothing(smoothing.scales)(again)
    assert serialize(again).content == serialize(edited).content


def test_scales_of_tensors_that_no_layer_reads_are_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="nobody"):
        ReplaySmoothing({"nobody": np.ones(6, np.float32)})(canonical(mlp()).clone())


@pytest.mark.parametrize(
    ("maxima", "alpha", "message"),
    [
        (np.ones(20, np.float32), 1.5, r"alpha is 1\.5"),
        (np.ones(3, np.float32), 0.5, r"'features' has 20 channels, its maxima have the shape \(3,\)"),
        (np.full(20, np.nan, np.float32), 0.5, "not finite"),
        (np.full(20, -1.0, np.float32), 0.5, "negative"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(maxima: Array, alpha: float, message: str) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=message):
        SmoothActivations({"features": maxima}, alpha=alpha)(canonical(mlp()).clone())


def test_smoothing_an_outlying_channel_makes_int8_lose_less() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 16)
    proto = net.build(y=(net.node("MatMul", x, net.weight("fc.weight", 16, 8, fan_in=16)), ("batch", 8)))
    model = canonical(proto)
    rows = example_feed(proto, n_examples=64)["x"]
    rows[:, 3] *= 100.0
    edited, scales = smoothed(model, {"x": np.abs(rows).max(axis=0)}, 0.5)
    weight, better = weight_of(model.graph, "fc"), weight_of(edited, "fc")
    expected = rows.astype(np.float64) @ weight
    plain_error = np.linalg.norm(rounded(rows) @ rounded(weight) - expected)
    assert np.linalg.norm(rounded(rows / scales["x"]) @ rounded(better) - expected) < plain_error / 3


def rounded(array: Array) -> Array:
    """Round to 255 steps per tensor."""
    step = np.abs(array).max() / 127
    result: Array = np.rint(array / step) * step
    return result
