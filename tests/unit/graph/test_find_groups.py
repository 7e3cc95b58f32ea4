from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from autoq.core.groups import ChannelGroup, Grouping, GroupKind, Member, Role
from autoq.graph.find_groups import find_groups
from autoq.graph.float_model import build_float_model
from autoq.graph.narrow import narrow
from autoq.testing.models import (
    GraphBuilder,
    attention,
    depthwise_cnn,
    example_feed,
    gru_classifier,
    residual_cnn,
    tied_embedding,
    two_headed,
)


def grouping_of(proto: onnx.ModelProto) -> Grouping:
    return find_groups(build_float_model(ir.from_proto(proto)).graph)


def members_of(group: ChannelGroup) -> list[tuple[str, str]]:
    return [(member.layer, str(member.role)) for member in group.members]


def reasons(grouping: Grouping) -> dict[str, str]:
    return {one.layer: one.reason for one in grouping.left_alone}


def test_a_residual_stream_is_one_group_and_what_lies_inside_a_block_another() -> None:
    groups = {group.name: group for group in grouping_of(residual_cnn()).groups}
    assert members_of(groups["stem"]) == [
        ("stem", "writes"),
        ("block1.conv1", "reads"),
        ("block1.conv2", "writes"),
        ("block2.conv1", "reads"),
        ("block2.shortcut", "reads"),
    ]
    assert members_of(groups["block1.conv1"]) == [("block1.conv1", "writes"), ("block1.conv2", "reads")]
    assert groups["stem"].members[0].channels == tuple((index,) for index in range(8))


def test_a_depthwise_convolution_reads_and_writes_the_channels_it_keeps_apart() -> None:
    groups = {group.name: group for group in grouping_of(depthwise_cnn()).groups}
    ends = [("expand", "writes"), ("depthwise", "reads"), ("depthwise", "writes"), ("project", "reads")]
    assert members_of(groups["expand"]) == ends


def test_a_head_is_queries_keys_values_and_output_together() -> None:
    groups = grouping_of(attention()).groups
    heads = next(group for group in groups if group.kind is GroupKind.HEADS)
    assert heads.name == "attention heads"
    assert heads.size == 2
    parts = ["attention.q", "attention.k", "attention.v"]
    assert members_of(heads) == [*((part, "writes") for part in parts), ("attention.out", "reads")]
    both = tuple(tuple(range(start, start + 16)) for start in (0, 16))
    assert {member.channels for member in heads.members} == {both}
    assert ("mlp.up", 48) in [(group.name, group.size) for group in groups]


def test_a_hidden_unit_is_its_gates_and_the_column_of_its_recurrence() -> None:
    group = next(one for one in grouping_of(gru_classifier()).groups if one.kind is GroupKind.HIDDEN)
    layer = group.members[0].layer
    n_inputs, hidden = 8, group.size
    assert group.members[:2] == (
        Member(layer, Role.READS, tuple((n_inputs + unit,) for unit in range(hidden))),
        Member(layer, Role.WRITES, tuple((unit, hidden + unit, 2 * hidden + unit) for unit in range(hidden))),
    )


def test_flattened_maps_give_a_channel_one_column_for_each_position() -> None:
    net = GraphBuilder()
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, 4, 4), "conv", (3, 6)))
    x = net.node("Flatten", net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    (group,) = grouping_of(net.build(logits=(net.gemm(x, "fc", 24, 5), ("batch", 5)))).groups
    assert group.members[1].channels == tuple(tuple(range(4 * unit, 4 * unit + 4)) for unit in range(6))


def test_halves_of_a_split_that_go_other_ways_are_groups_of_their_own() -> None:
    net = GraphBuilder()
    x = net.gemm(net.input("features", "batch", 6), "both", 6, 8)
    left, right = net.nodes("Split", x, n_outputs=2, axis=1, num_outputs=2)
    added = net.node("Add", net.gemm(left, "first", 4, 5), net.gemm(net.node("Relu", right), "second", 4, 5))
    grouping = grouping_of(net.build(logits=(added, ("batch", 5))))
    assert [(group.name, group.size) for group in grouping.groups] == [("both", 4), ("both_2", 4)]
    assert grouping.groups[1].members[0].channels == ((4,), (5,), (6,), (7,))


def test_a_norm_over_groups_of_channels_ties_those_of_a_group() -> None:
    net = GraphBuilder()
    x = net.conv(net.input("image", "batch", 3, 4, 4), "conv", (3, 6))
    parted = net.node("Reshape", x, net.constant("parted", [0, 2, -1], np.int64))
    scale, shift = net.constant("scale", [1.0, 2.0]), net.constant("shift", [0.0, 0.5])
    normed = net.node("InstanceNormalization", parted, scale, shift)
    x = net.node("Reshape", normed, net.constant("joined", [0, 6, 4, 4], np.int64))
    (group,) = grouping_of(net.build(logits=(net.classify(x, 6), ("batch", 10)))).groups
    assert group.members[0].channels == ((0, 1, 2), (3, 4, 5))


def test_a_gated_unit_ties_both_halves() -> None:
    net = GraphBuilder()
    x = net.gemm(net.input("features", "batch", 6), "both", 6, 8)
    value, gate = net.nodes("Split", x, n_outputs=2, axis=1, num_outputs=2)
    gated = net.node("Mul", value, net.node("Sigmoid", gate))
    (group,) = grouping_of(net.build(logits=(net.gemm(gated, "fc", 4, 5), ("batch", 5)))).groups
    assert group.members[0].channels == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_channels_that_reach_an_output_are_left_alone() -> None:
    assert reasons(grouping_of(residual_cnn()))["fc"] == "they reach the output 'logits'"
    stays = reasons(grouping_of(two_headed()))
    assert any(reason == "they reach the output 'embedding'" for reason in stays.values())


def test_a_residual_stream_that_is_normalised_over_is_left_alone() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("features", "batch", "length", 6), "in", 6, 32)
    y = net.node("Add", x, net.linear(net.node("Relu", x), "branch", 32, 32))
    scale, shift = net.constant("scale", net.rng.uniform(0.5, 1.5, 32)), net.bias("shift", 32)
    normed = net.node("LayerNormalization", y, scale, shift, axis=-1)
    grouping = grouping_of(net.build(logits=(net.linear(normed, "fc", 32, 5), ("batch", "length", 5))))
    assert not grouping.groups
    assert "normalises over them" in reasons(grouping)["in"]
    assert reasons(grouping)["branch"] == reasons(grouping)["in"]


def test_weights_that_two_nodes_share_are_left_alone() -> None:
    stays = reasons(grouping_of(tied_embedding()))
    assert any("shared by several nodes" in reason for reason in stays.values())


Between = Callable[[GraphBuilder, str], str]


def softmax_over_channels(net: GraphBuilder, x: str) -> str:
    return net.node("Softmax", x, axis=1)


def channel_mean(net: GraphBuilder, x: str) -> str:
    return net.node("Sub", x, net.node("ReduceMean", x, net.constant("axes", [1], np.int64), keepdims=1))


def gram_matrix(net: GraphBuilder, x: str) -> str:
    flat = net.node("Reshape", x, net.constant("flat", [0, 6, 16], np.int64))
    gram = net.node("MatMul", flat, net.node("Transpose", flat, perm=[0, 2, 1]))
    total = net.node("ReduceSum", gram, net.constant("all", [1, 2], np.int64), keepdims=1)
    return net.node("Add", x, net.node("Unsqueeze", total, net.constant("last", [3], np.int64)))


def divided_by_their_number(net: GraphBuilder, x: str) -> str:
    counted = net.node("Cast", net.node("Shape", x), to=TensorProto.FLOAT)
    return net.node("Div", x, net.node("ReduceMax", counted, keepdims=0))


def sorted_values(net: GraphBuilder, x: str) -> str:
    values, _ = net.nodes("TopK", net.node("Flatten", x), net.constant("k", [1], np.int64), n_outputs=2)
    return net.node("Add", x, net.node("ReduceMean", values, keepdims=0))


def depth_to_space(net: GraphBuilder, x: str) -> str:
    deeper = net.conv(x, "deeper", (6, 24))
    return net.node("DepthToSpace", deeper, blocksize=2)


def padded(net: GraphBuilder, x: str) -> str:
    wider = net.node("Pad", x, net.constant("pads", [0, 2, 0, 0, 0, 0, 0, 0], np.int64))
    bounds = [net.constant(name, [at], np.int64) for name, at in (("start", 2), ("end", 8), ("axis", 1))]
    return net.node("Slice", wider, *bounds)


def met_by_the_input(net: GraphBuilder, x: str) -> str:
    image = net.node("Concat", "image", "image", axis=1)
    return net.node("Add", x, image)


CASES: dict[Between, str] = {
    softmax_over_channels: "Softmax 'softmax_1' normalises over them",
    channel_mean: "ReduceMean 'reducemean_1' reduces over them",
    gram_matrix: "ReduceSum 'reducesum_4' reduces over them",
    divided_by_their_number: "Shape 'shape_1' counts them",
    sorted_values: "TopK 'topk_2' reads them, which cannot be followed",
    depth_to_space: "DepthToSpace 'depthtospace_2' reads them, which cannot be followed",
    padded: "Pad 'pad_1' pads their axis",
    met_by_the_input: "Add 'add_2' joins them with something of fixed width",
}


@pytest.mark.parametrize("between", CASES)
def test_what_cannot_do_without_a_channel_keeps_it_and_the_rest_still_runs_narrowed(between: Between) -> None:
    net = GraphBuilder()
    image = net.input("image", "batch", 3, 4, 4)
    x = between(net, net.conv(image, "kept", (3, 6)))
    x = net.conv(x, "free", (6, 8))
    proto = net.build(logits=(net.classify(net.node("Relu", x), 8), ("batch", 10)))
    model = build_float_model(ir.from_proto(proto))
    grouping = find_groups(model.graph)
    stays = reasons(grouping)
    left = "deeper" if between is depth_to_space else "kept"
    assert CASES[between] in stays[left]
    narrowed = narrow(model, {group.name: [0, 2] for group in grouping.groups})
    assert "free" in {group.name for group in grouping.groups}
    (logits,) = ort.InferenceSession(narrowed.artifact.content).run(None, dict(example_feed(proto)))
    assert np.isfinite(np.asarray(logits)).all()


def test_what_control_flow_reads_is_left_alone() -> None:
    net = GraphBuilder()
    x = net.node("Relu", net.gemm(net.input("features", "batch", 6), "outer", 6, 8))
    proto = net.build(logits=(net.gemm(x, "fc", 8, 5), ("batch", 5)))
    graph = proto.graph
    total = helper.make_node("ReduceMean", [x], ["inner"], keepdims=1)
    body = helper.make_graph([total], "body", [], [helper.make_tensor_value_info("inner", 1, None)])
    graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    graph.node.append(
        helper.make_node("If", ["flag"], ["mean"], then_branch=body, else_branch=body, name="if")
    )
    graph.output.append(helper.make_tensor_value_info("mean", 1, [1, 1]))
    grouping = grouping_of(proto)
    assert not grouping.groups
    assert "inside control flow" in reasons(grouping)["outer"]


def test_what_an_operator_of_another_domain_reads_is_left_alone() -> None:
    net = GraphBuilder()
    x = net.gemm(net.input("features", "batch", 6), "outer", 6, 8)
    proto = net.build(logits=(net.gemm(net.node("Relu", x), "fc", 8, 5), ("batch", 5)))
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    grouping = grouping_of(proto)
    assert not grouping.groups
    assert "cannot be followed" in reasons(grouping)["outer"]


def test_a_single_channel_is_left_alone() -> None:
    net = GraphBuilder()
    x = net.node("Sigmoid", net.conv(net.input("image", "batch", 3, 4, 4), "gate", (3, 1)))
    x = net.conv(x, "next", (1, 4))
    grouping = grouping_of(net.build(maps=(x, ("batch", 4, 4, 4))))
    assert reasons(grouping)["gate"] == "there is only one"
