from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.core.data import Array, Feed
from autoq.graph.blocks import find_blocks
from autoq.graph.equalize import EqualizeLayers, ReplayEqualization, equalization_scales
from autoq.graph.float_model import FloatModel, build_float_model, serialize
from autoq.graph.layers import find_layers
from autoq.testing.models import (
    TINY_MODELS,
    GraphBuilder,
    attention,
    decoder,
    depthwise_cnn,
    example_feed,
    grouped_cnn,
    mlp,
    residual_cnn,
    two_headed,
)


def run(model: ir.Model, feed: Feed) -> Mapping[str, Array]:
    session = ort.InferenceSession(serialize(model).content)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def canonical(proto: onnx.ModelProto) -> FloatModel:
    return build_float_model(ir.from_proto(proto))


def equalized(model: FloatModel) -> tuple[ir.Model, dict[str, Array]]:
    edited, rewrite = model.clone(), EqualizeLayers()
    rewrite(edited)
    return edited, rewrite.scales


def pairs(proto: onnx.ModelProto) -> set[str]:
    return set(equalization_scales(canonical(proto).graph))


def weight_of(model: ir.Model, layer: str) -> Array:
    value = next(node for node in model.graph if node.name == layer).inputs[1]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def assert_equal_outputs(proto: onnx.ModelProto, *, n_examples: int = 4) -> dict[str, Array]:
    model = canonical(proto)
    edited, scales = equalized(model)
    feed = example_feed(proto, n_examples=n_examples)
    expected, actual = run(model.graph, feed), run(edited, feed)
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max())
    return scales


def spread(net: GraphBuilder, name: str, *shape: int, axis: int, orders: float = 3.0) -> str:
    """Weights whose channels along one axis differ by powers of ten."""
    factors = 10.0 ** net.rng.uniform(-orders / 2, orders / 2, shape[axis])
    weight = net.rng.standard_normal(shape) * factors.reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )
    return net.constant(name, weight / np.sqrt(np.prod(shape[1:])))


def depthwise_chain(*, batch: int | str = "batch") -> onnx.ModelProto:
    """Conv, depthwise conv, conv, with another homogeneous op in each place and a pool."""
    net = GraphBuilder(seed=3)
    x = net.input("image", batch, 3, 12, 12)
    x = net.node("Conv", x, spread(net, "first.weight", 8, 3, 3, 3, axis=0), net.bias("first.bias", 8))
    x = net.node("Relu", x)
    weight = spread(net, "depthwise.weight", 8, 1, 3, 3, axis=0)
    x = net.node("Conv", x, weight, net.bias("depthwise.bias", 8), group=8)
    x = net.node("PRelu", x, net.constant("slope", net.rng.uniform(0.0, 0.5, (8, 1, 1))))
    x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("LeakyRelu", net.conv(x, "third", (8, 6)), alpha=0.1)
    x = net.conv(x, "last", (6, 4))
    return net.build(y=(x, (batch, 4, 4, 4)))


def badly_scaled_pair() -> onnx.ModelProto:
    """What one layer blows up by powers of ten, the next one shrinks again."""
    net = GraphBuilder(seed=1)
    factors = 10.0 ** net.rng.uniform(-1.5, 1.5, 32)
    up = net.constant("up.weight", net.rng.standard_normal((32, 16)) * factors[:, np.newaxis])
    down = net.constant("down.weight", net.rng.standard_normal((8, 32)) / factors)
    x = net.node("Gemm", net.input("x", "batch", 16), up, net.bias("up.bias", 32), transB=1)
    return net.build(y=(net.node("Gemm", net.node("Relu", x), down, transB=1), ("batch", 8)))


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_an_equalized_model_computes_the_same(build: Callable[[], onnx.ModelProto]) -> None:
    assert_equal_outputs(build())


@pytest.mark.parametrize("build", [depthwise_chain, badly_scaled_pair])
@pytest.mark.parametrize("n_examples", [1, 5])
def test_channels_of_very_different_ranges_compute_the_same(
    build: Callable[[], onnx.ModelProto], n_examples: int
) -> None:
    assert assert_equal_outputs(build(), n_examples=n_examples)


def test_a_fixed_batch_is_equalized_as_well() -> None:
    assert set(assert_equal_outputs(depthwise_chain(batch=2))) == {"first", "depthwise", "third"}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (residual_cnn, {"block1.conv1", "block2.conv1"}),  # what an Add reads has another reader's scale
        (depthwise_cnn, set()),  # ReLU6 and adds everywhere
        (mlp, {"fc1", "fc2"}),
        (decoder, {"encode", "up"}),
        (grouped_cnn, {"stem", "grouped"}),  # a Flatten stands before `fc`
        (attention, {"attention.v"}),  # the heads take weighted sums of it
        (two_headed, set()),  # a Concat, a Flatten, an output
        (depthwise_chain, {"first", "depthwise", "third"}),
    ],
)
def test_pairs_are_found_where_nothing_but_equivariant_ops_stands_between(
    build: Callable[[], onnx.ModelProto], expected: set[str]
) -> None:
    assert pairs(build()) == expected


def test_a_matmul_with_its_bias_makes_a_pair() -> None:
    net = GraphBuilder()
    x = net.node("Relu", net.linear(net.input("x", "batch", "length", 6), "up", 6, 9))
    proto = net.build(y=(net.linear(x, "down", 9, 6), ("batch", "length", 6)))
    assert set(assert_equal_outputs(proto)) == {"up"}


def test_a_convolution_and_a_matmul_over_its_columns_make_no_pair() -> None:
    net = GraphBuilder()
    x = net.conv(net.input("x", "batch", 3, 6, 6), "conv", (3, 6))
    assert pairs(net.build(y=(net.linear(x, "rows", 6, 2), ("batch", 6, 6, 2)))) == set()


def test_a_result_that_is_an_output_makes_no_pair() -> None:
    net = GraphBuilder()
    x = net.node("Relu", net.gemm(net.input("x", "batch", 6), "fc1", 6, 6))
    proto = net.build(y=(net.gemm(x, "fc2", 6, 2), ("batch", 2)), hidden=(x, ("batch", 6)))
    assert pairs(proto) == set()


def test_a_result_that_two_layers_read_makes_no_pair() -> None:
    net = GraphBuilder()
    x = net.node("Relu", net.gemm(net.input("x", "batch", 6), "fc1", 6, 6))
    heads = {name: (net.gemm(x, name, 6, 2), ("batch", 2)) for name in ("a", "b")}
    assert pairs(net.build(**heads)) == set()


def test_one_pair_is_scaled_as_the_formula_says() -> None:
    model = canonical(badly_scaled_pair())
    first, second = weight_of(model.graph, "up"), weight_of(model.graph, "down")
    edited, scales = equalized(model)
    for channel in range(32):
        r1 = max(abs(float(weight)) for weight in first[channel])
        r2 = max(abs(float(row[channel])) for row in second)
        expected = (r1 * r2) ** 0.5 / r2
        np.testing.assert_allclose(scales["up"][channel], expected, rtol=1e-6)
        np.testing.assert_allclose(weight_of(edited, "up")[channel], first[channel] / expected, rtol=1e-6)
        columns = weight_of(edited, "down")[:, channel]
        np.testing.assert_allclose(columns, second[:, channel] * expected, rtol=1e-6)


def test_all_ranges_along_a_chain_are_equal() -> None:
    edited, _ = equalized(canonical(depthwise_chain()))
    layers = ["first", "depthwise", "third", "last"]
    first, depthwise, third, last = (np.abs(weight_of(edited, name)) for name in layers)
    np.testing.assert_allclose(first.max(axis=(1, 2, 3)), depthwise.max(axis=(1, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(depthwise.max(axis=(1, 2, 3)), third.max(axis=(0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(third.max(axis=(1, 2, 3)), last.max(axis=(0, 2, 3)), rtol=1e-3)


def test_an_equalized_model_has_nothing_left_to_equalize() -> None:
    edited, _ = equalized(canonical(depthwise_chain()))
    for scales in equalization_scales(edited).values():
        np.testing.assert_allclose(scales, 1.0, rtol=1e-3)


def test_dead_channels_keep_their_scale() -> None:
    net = GraphBuilder()
    up, down = net.rng.standard_normal((6, 4)), net.rng.standard_normal((3, 6))
    up[1], down[:, 2], up[3], down[:, 3], up[4] = 0.0, 0.0, 0.0, 0.0, 1e-12
    x = net.node("Gemm", net.input("x", "batch", 4), net.constant("up.weight", up), transB=1)
    x = net.node("Gemm", net.node("Relu", x), net.constant("down.weight", down), transB=1)
    scales = assert_equal_outputs(net.build(y=(x, ("batch", 3))))["up"]
    assert scales[[1, 2, 3, 4]].tolist() == [1.0] * 4
    assert (scales[[0, 5]] != 1.0).all()


def test_a_pair_with_only_dead_channels_stays_as_it_is() -> None:
    net = GraphBuilder()
    x = net.node("Gemm", net.input("x", "batch", 4), net.constant("up.weight", np.zeros((4, 6))))
    proto = net.build(y=(net.gemm(x, "down", 6, 3), ("batch", 3)))
    assert assert_equal_outputs(proto)["up"].tolist() == [1.0] * 6


def siamese() -> onnx.ModelProto:
    """Two branches with the same first weight; only one branch is a pair."""
    net = GraphBuilder()
    weight, bias = spread(net, "tied.weight", 6, 6, axis=0), net.bias("tied.bias", 6)
    a = net.node("Relu", net.node("Gemm", net.input("a", "batch", 6), weight, bias, transB=1))
    b = net.node("Tanh", net.node("Gemm", net.input("b", "batch", 6), weight, bias, transB=1))
    return net.build(y=(net.gemm(a, "fc", 6, 2), ("batch", 2)), z=(b, ("batch", 6)))


def test_a_weight_that_another_layer_shares_is_not_altered_there() -> None:
    assert set(assert_equal_outputs(siamese())) == {"tied"}
    model = canonical(siamese())
    edited, _ = equalized(model)
    names = [layer.name for layer in model.summary.layers]
    assert (weight_of(edited, names[0]) != weight_of(model.graph, names[0])).any()
    np.testing.assert_array_equal(weight_of(edited, names[1]), weight_of(model.graph, names[1]))


def test_two_layers_in_a_row_with_one_weight_become_two_weights() -> None:
    net = GraphBuilder()
    weight = spread(net, "tied.weight", 6, 6, axis=0)
    x = net.node("Relu", net.node("MatMul", net.input("x", "batch", 6), weight))
    assert set(assert_equal_outputs(net.build(y=(net.node("MatMul", x, weight), ("batch", 6))))) == {"tied"}


@pytest.mark.parametrize("build", [depthwise_chain, badly_scaled_pair, residual_cnn, siamese])
def test_replayed_scales_give_the_same_bytes(build: Callable[[], onnx.ModelProto]) -> None:
    model = canonical(build())
    edited, scales = equalized(model)
    stored = {name: np.frombuffer(scales[name].tobytes(), np.float32) for name in reversed(scales)}
    again = canonical(build()).clone()
    ReplayEqualization(stored)(again)
    assert serialize(again).content == serialize(edited).content


def test_scales_of_layers_that_start_no_pair_are_refused() -> None:
    model = canonical(mlp())
    for name in ("fc3", "nobody"):
        with pytest.raises(ir.passes.PreconditionError, match=name):
            ReplayEqualization({name: np.ones(10, np.float32)})(model.clone())


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_layers_blocks_and_values_keep_their_names(build: Callable[[], onnx.ModelProto]) -> None:
    model = canonical(build())
    edited, _ = equalized(model)
    assert tuple(find_layers(edited)) == model.summary.layers
    assert find_blocks(edited) == find_blocks(model.graph)
    kept = [name for name in edited.graph.initializers if not name.endswith("_scaled")]  # own copies
    assert kept == list(model.graph.graph.initializers)
    onnx.checker.check_model(onnx.load_from_string(serialize(edited).content), full_check=True)


def test_the_float_model_itself_is_not_altered() -> None:
    model = canonical(depthwise_chain())
    equalized(model)
    assert serialize(model.graph).content == model.artifact.content


def test_equalizing_makes_per_tensor_weights_lose_less() -> None:
    model = canonical(badly_scaled_pair())
    edited, _ = equalized(model)
    feed = example_feed(badly_scaled_pair(), n_examples=64)
    expected = run(model.graph, feed)["y"]
    plain, better = (np.linalg.norm(run(rounded(one), feed)["y"] - expected) for one in (model.graph, edited))
    assert better < plain / 3


def rounded(model: ir.Model) -> ir.Model:
    """Round every weight to 255 steps per tensor."""
    model = model.clone()
    for layer in find_layers(model):
        value = next(node for node in model.graph if node.name == layer.name).inputs[1]
        assert value is not None
        weight = weight_of(model, layer.name)
        step = np.abs(weight).max() / 127
        value.const_value = ir.tensor((np.rint(weight / step) * step).astype(np.float32), name=value.name)
    return model
