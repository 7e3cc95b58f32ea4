"""Narrowed models against the obvious: the whole model, in which readers weigh removed channels with 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.core.groups import ChannelGroup, Grouping, Role
from autoq.graph.find_groups import find_groups, map_channels
from autoq.graph.float_model import FloatModel, build_float_model, describe_graph
from autoq.graph.narrow import narrow
from autoq.graph.values import constant
from autoq.testing.families import FAMILIES
from autoq.testing.models import TINY_MODELS, GraphBuilder, example_feed, mlp, residual_cnn

Feeds = Mapping[str, npt.NDArray[Any]]
Kept = dict[str, list[int]]
SHARES = (0.75, 0.5)

# What is to be found in each family: (units, kind) of the groups in the order of the graph.
FOUND = {
    "vgg": [(16, "channels"), (32, "channels"), (24, "channels")],
    "resnet_basic": [(16, "channels")] * 2 + [(32, "channels")] * 3,
    "resnet_bottleneck": [(size, "channels") for size in (16, 8, 8, 32, 8, 8)],
    "resnext": [(size, "channels") for size in (16, 4, 32, 4)],
    "mobilenet_v2": [(size, "channels") for size in (8, 32, 12, 48, 48)],
    "mobilenet_v3": [(size, "channels") for size in (12, 32, 8, 48, 12)],
    "densenet": [(size, "channels") for size in (16, 8, 8, 8, 16, 8, 8)],
    "inception": [(size, "channels") for size in (16, 8, 8, 16, 8, 8, 8, 16, 8)],
    "unet": [(size, "channels") for size in (8, 8, 16, 16, 8, 8)],
    "shufflenet": [(6, "channels"), (6, "channels"), (12, "channels")],
    "vit": [(4, "heads"), (64, "channels")] * 2,
    "bert": [(4, "heads"), (64, "channels")] * 2 + [(24, "channels")],
    "gpt2": [(4, "heads"), (64, "channels")] * 2,
    "torch_encoder": [(32, "channels"), (4, "heads"), (4, "heads")],
    "bilstm": [(16, "channels"), (12, "hidden"), (12, "hidden")],
}


def tiny(proto: onnx.ModelProto) -> FloatModel:
    return build_float_model(ir.from_proto(proto))


def run(model: FloatModel, feeds: Feeds) -> list[npt.NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.artifact.content, options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, dict(feeds))]


def drawn(groups: Sequence[ChannelGroup], share: float) -> Kept:
    """Random units of each group, as many as the share says."""
    rng = np.random.default_rng(2)
    widths = {group.name: max(1, round(group.size * share)) for group in groups}
    return {
        one.name: sorted(rng.choice(one.size, widths[one.name], replace=False).tolist()) for one in groups
    }


def with_zeroed_columns(model: FloatModel, grouping: Grouping, kept: Kept) -> FloatModel:
    """Zero what readers weigh removed channels with, in the whole model."""
    graph = model.clone()
    nodes = {str(node.name): node for node in graph.graph}
    for group in grouping.groups:
        gone = sorted(set(range(group.size)) - set(kept[group.name]))
        for member in group.members:
            if member.role is Role.READS:
                channels = [channel for unit in gone for channel in member.channels[unit]]
                zero_columns(nodes[member.layer], channels)
    return describe_graph(graph)


def zero_columns(node: ir.Node, channels: Sequence[int]) -> None:
    weight = whole(node, 1)
    if node.op_type in ("LSTM", "GRU"):
        recurrence = whole(node, 2)
        n_inputs = weight.shape[2]
        weight[:, :, [channel for channel in channels if channel < n_inputs]] = 0
        recurrence[:, :, [channel - n_inputs for channel in channels if channel >= n_inputs]] = 0
        put(node, 2, recurrence)
    elif node.op_type == "Conv":
        n_groups, per_group = node.attributes.get_int("group", 1), weight.shape[1]
        by_group = weight.reshape(n_groups, -1, *weight.shape[1:])
        for channel in channels:
            by_group[channel // per_group, :, channel % per_group] = 0
    elif node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
        weight[:, channels] = 0
    else:  # ConvTranspose and products: inputs come first
        weight[channels] = 0
    put(node, 1, weight)


def whole(node: ir.Node, index: int) -> npt.NDArray[Any]:
    array = constant(node.inputs[index])
    assert array is not None
    return array.copy()


def put(node: ir.Node, index: int, array: npt.NDArray[Any]) -> None:
    value = node.inputs[index]
    assert value is not None
    value.const_value = ir.Tensor(array, name=value.name)


def check_against_zeroed(model: FloatModel, feeds: Feeds, share: float) -> None:
    grouping = find_groups(model.graph)
    kept = drawn(grouping.groups, share)
    narrowed = narrow(model, kept)
    onnx.shape_inference.infer_shapes(
        onnx.load_from_string(narrowed.artifact.content), check_type=True, strict_mode=True, data_prop=True
    )
    expected = run(with_zeroed_columns(model, grouping, kept), feeds)
    results = run(narrowed, feeds)
    for result, reference in zip(results, expected, strict=True):
        assert np.abs(result - reference).max() <= 1e-4
    assert [layer.name for layer in narrowed.summary.layers] == [layer.name for layer in model.summary.layers]
    if grouping.groups:
        assert narrowed.summary.size_bytes < model.summary.size_bytes
        moved = [np.abs(one - other).max() for one, other in zip(results, run(model, feeds), strict=True)]
        assert max(moved) > 1e-3  # or zeroing would show nothing


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_its_groups_and_narrowed_computes_what_it_does_with_channels_zeroed(name: str) -> None:
    model, rng = FAMILIES[name].export(), np.random.default_rng(1)
    found = [(group.size, str(group.kind)) for group in find_groups(model.graph).groups]
    assert found == FOUND[name]
    feeds = {key: example.draw(rng) for key, example in FAMILIES[name].example.items()}
    for share in SHARES:
        check_against_zeroed(model, feeds, share)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_tiny_model_narrowed_computes_what_it_does_with_channels_zeroed(name: str) -> None:
    proto = TINY_MODELS[name]()
    for share in SHARES:
        check_against_zeroed(tiny(proto), example_feed(proto), share)


def per_channel_slopes(net: GraphBuilder, x: str) -> str:
    return net.node("PRelu", x, net.constant("slope", np.linspace(-1, 1, 8).reshape(8, 1, 1)))


def channels_last(net: GraphBuilder, x: str) -> str:
    last = net.node("Transpose", x, perm=[0, 2, 3, 1])
    scaled = net.node("Mul", last, net.constant("gains", np.linspace(-1, 1, 8)))
    return net.node("Transpose", scaled, perm=[0, 3, 1, 2])


def depthwise_transposed(net: GraphBuilder, x: str) -> str:
    weight = net.weight("up.weight", 8, 1, 2, 2, fan_in=4)
    return net.node("ConvTranspose", x, weight, net.bias("up.bias", 8), group=8, strides=[2, 2])


def transposed_in_groups(net: GraphBuilder, x: str) -> str:
    weight = net.weight("up.weight", 8, 2, 2, 2, fan_in=8)
    return net.node("ConvTranspose", x, weight, net.bias("up.bias", 8), group=4, strides=[2, 2])


def resized_to_a_given_shape(net: GraphBuilder, x: str) -> str:
    batch = net.node("Shape", x, start=0, end=1)
    shape = net.node("Concat", batch, net.constant("rest", [8, 12, 12], np.int64), axis=0)
    return net.node("Resize", x, "", "", shape, mode="nearest")


def sliced_and_joined(net: GraphBuilder, x: str) -> str:
    axis = net.constant("axis", [1], np.int64)
    low, middle, high = (net.constant(f"b{at}", [at], np.int64) for at in (0, 3, 2**60))
    halves = [net.node("Slice", x, *bounds, axis) for bounds in ((low, middle), (middle, high))]
    return net.node("Concat", halves[1], net.node("Sigmoid", halves[0]), axis=1)


def split_unevenly(net: GraphBuilder, x: str) -> str:
    first, second = net.nodes("Split", x, net.constant("s", [3, 5], np.int64), n_outputs=2, axis=1)
    return net.node("Concat", net.node("Tanh", first), second, axis=1)


def gated_by_means(net: GraphBuilder, x: str) -> str:
    return net.node("Mul", x, net.node("Sigmoid", net.node("GlobalAveragePool", x)))


def gated_over_space(net: GraphBuilder, x: str) -> str:
    return net.node("Mul", x, net.node("Sigmoid", net.conv(x, "gate", (8, 1))))


def one_gate_expanded(net: GraphBuilder, x: str) -> str:
    pooled = net.node("GlobalMaxPool", x)
    return net.node("Add", x, net.node("Expand", pooled, net.constant("full", [1, 8, 6, 6], np.int64)))


def masked_by_channel(net: GraphBuilder, x: str) -> str:
    mask = net.constant("mask", (np.arange(8) % 2 == 0).reshape(8, 1, 1), np.bool_)
    return net.node("Where", mask, x, net.node("Neg", x))


def normalised_by_instance(net: GraphBuilder, x: str) -> str:
    return net.node("InstanceNormalization", x, net.bias("scale", 8), net.bias("shift", 8))


def normalised_in_groups(net: GraphBuilder, x: str) -> str:
    scale, shift = net.constant("scale", [1.0, 2.0, 0.5, 1.5]), net.bias("shift", 4)
    parted = net.node("Reshape", x, net.constant("parted", [0, 4, -1], np.int64))
    normed = net.node("InstanceNormalization", parted, scale, shift)
    return net.node("Reshape", normed, net.constant("joined", [0, 8, 6, 6], np.int64))


PASSED = (
    *(per_channel_slopes, channels_last, depthwise_transposed, transposed_in_groups),
    *(resized_to_a_given_shape, sliced_and_joined, split_unevenly, gated_by_means, gated_over_space),
    *(one_gate_expanded, masked_by_channel, normalised_by_instance, normalised_in_groups),
)


@pytest.mark.parametrize("between", PASSED)
def test_what_channels_pass_through_is_cut_with_them(between: Callable[[GraphBuilder, str], str]) -> None:
    net = GraphBuilder()
    x = net.conv(net.input("image", "batch", 3, 6, 6), "first", (3, 8))
    x = net.node("Relu", net.conv(between(net, x), "second", (8, 8)))
    proto = net.build(logits=(net.classify(x, 8), ("batch", 10)))
    model = tiny(proto)
    assert "first" in {group.name for group in find_groups(model.graph).groups}
    for share in SHARES:
        check_against_zeroed(model, example_feed(proto), share)


def test_every_group_can_be_narrowed_alone_down_to_one_unit() -> None:
    proto = residual_cnn()
    model, feeds = tiny(proto), example_feed(proto)
    grouping = find_groups(model.graph)
    for group in grouping.groups:
        kept = {one.name: list(range(one.size)) for one in grouping.groups} | {group.name: [1]}
        expected = run(with_zeroed_columns(model, grouping, kept), feeds)
        results = run(narrow(model, {group.name: [1]}), feeds)
        np.testing.assert_allclose(results[0], expected[0], atol=1e-4)


def test_a_model_is_not_changed_by_narrowing_it() -> None:
    model = tiny(residual_cnn())
    before = describe_graph(model.graph).artifact.digest
    narrow(model, {group.name: [0] for group in find_groups(model.graph).groups})
    assert describe_graph(model.graph).artifact.digest == before


def test_a_narrowed_model_can_be_narrowed_again() -> None:
    proto = residual_cnn()
    model = tiny(proto)
    once = narrow(model, {"stem": [1, 3, 6]})
    twice, straight = narrow(once, {"stem": [0, 2]}), narrow(model, {"stem": [1, 6]})
    assert twice.artifact.digest == straight.artifact.digest


def test_channels_known_before_give_the_same_model() -> None:
    model = tiny(residual_cnn())
    kept = {"block1.conv1": [0, 5]}
    known = narrow(model, kept, map_channels(model.graph))
    assert known.artifact.digest == narrow(model, kept).artifact.digest


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"fc1": []}, "may not fall to zero"),
        ({"fc1": [3, 2]}, "ascending units from 0 to 32"),
        ({"fc1": [0, 0]}, "ascending units from 0 to 32"),
        ({"fc1": [0, 33]}, "ascending units from 0 to 32"),
        ({"fc1": [-1, 3]}, "ascending units from 0 to 32"),
        ({"fc3": [0]}, "no channel group 'fc3'"),
    ],
)
def test_units_that_cannot_be_kept_are_refused(kept: Kept, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        narrow(tiny(mlp()), kept)


def test_a_constant_that_others_read_is_cut_for_one_node_only() -> None:
    net = GraphBuilder()
    shift = net.constant("shift", np.linspace(-1, 1, 8).reshape(1, 8, 1, 1))
    image = net.input("image", "batch", 3, 6, 6)
    x = net.node("Relu", net.node("Add", net.conv(image, "first", (3, 8)), shift))
    x = net.node("Relu", net.node("Mul", net.conv(x, "second", (8, 8)), shift))
    proto = net.build(logits=(net.classify(x, 8), ("batch", 10)))
    model = tiny(proto)
    grouping = find_groups(model.graph)
    kept = {"first": [0, 7], "second": [2, 3, 4]}
    expected = run(with_zeroed_columns(model, grouping, kept), example_feed(proto))
    np.testing.assert_allclose(run(narrow(model, kept), example_feed(proto))[0], expected[0], atol=1e-5)
