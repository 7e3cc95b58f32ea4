from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from autoq.graph.float_model import build_float_model
from autoq.graph.naming import NameNodes
from autoq.testing.models import TINY_MODELS, GraphBuilder, tagger


def node_names(proto: onnx.ModelProto) -> list[str]:
    return [str(node.name) for node in build_float_model(ir.from_proto(proto)).graph.graph]


def two_convs(*weights: str, names: tuple[str, str] = ("", "")) -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.input("x", "batch", 3, 6, 6)
    for weight in weights:
        x = net.node("Conv", x, net.weight(weight, 3, 3, 1, 1, fan_in=3))
    proto = net.build(y=(x, ("batch", 3, 6, 6)))
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    return proto


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_names_are_unique_and_come_out_the_same_again(build: Callable[[], onnx.ModelProto]) -> None:
    names = node_names(build())
    assert len(set(names)) == len(names)
    assert names == node_names(build())


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1"),
        ("dense/kernel", "dense"),
        ("model/block:0/w", "model.block.0"),
        ("plain", "plain"),
        ("weight", "weight"),
    ],
)
def test_a_layer_is_called_after_its_weight(weight: str, name: str) -> None:
    assert node_names(two_convs(weight, "other.weight"))[0] == name


def test_embeddings_and_recurrences_are_called_after_their_weights() -> None:
    names = node_names(tagger())
    assert {"embeddings.word", "embeddings.kind", "lstm"} <= set(names)


def test_a_list_of_indices_is_not_taken_for_a_table() -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 3)
    sizes = net.constant("sizes.weight", [3.0, 4.0])
    picked = net.node("Gather", sizes, net.node("Cast", net.node("ReduceMax", x, keepdims=0), to=7))
    names = node_names(net.build(y=(net.gemm(net.node("Mul", x, picked), "fc", 3, 3), ("batch", 3))))
    assert "sizes" not in names


def test_layers_that_share_a_name_are_counted() -> None:
    assert node_names(two_convs("a/b.weight", "a.b.weight")) == ["a.b", "a.b_2"]


@pytest.mark.parametrize("weight", ["val_97", "onnx::Conv_120", "12", "const_fold_opt__33"])
def test_where_the_weight_has_a_made_up_name_the_node_keeps_its_own(weight: str) -> None:
    proto = two_convs(weight, "other.weight", names=("/features/0/Conv", ""))
    assert node_names(proto)[0] == "features.0"


def test_a_node_that_has_no_name_at_all_gets_that_of_its_op() -> None:
    assert node_names(two_convs("val_1", "val_2")) == ["conv", "conv_2"]


def test_a_made_up_weight_gives_way_to_the_module_scope() -> None:
    model = ir.from_proto(two_convs("val_1", "val_2"))
    for node, scope in zip(model.graph, ("encoder.0.fc", "encoder.1.fc"), strict=True):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = f"['', 'encoder', '{scope}', 'node_Conv_7']"
    NameNodes()(model)
    assert [node.name for node in model.graph] == ["encoder.0.fc", "encoder.1.fc"]


def test_a_node_without_a_weight_is_told_apart_from_its_module() -> None:
    net = GraphBuilder()
    model = ir.from_proto(net.build(y=(net.node("Relu", net.input("x", "b", 3)), ("b", 3))))
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = '["", "encoder.act", "relu"]'
    NameNodes()(model)
    assert model.graph[0].name == "encoder.act.relu"


def test_a_node_that_reads_axes_leaves_the_name_of_the_module_to_its_layer() -> None:
    net = GraphBuilder()
    x = net.node("Unsqueeze", net.input("x", "b", 3), net.constant("axes", [1], np.int64))
    x = net.node("MatMul", x, net.weight("val_3", 3, 4, fan_in=3))
    model = ir.from_proto(net.build(y=(x, ("b", 1, 4))))
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = '["", "lstm", "node"]'
    NameNodes()(model)
    assert [node.name for node in model.graph] == ["lstm.unsqueeze", "lstm"]


@pytest.mark.parametrize("broken", ["['unclosed", "", "{}", "[]", "['', '', 'node_1']"])
def test_a_scope_that_cannot_be_read_is_left_aside(broken: str) -> None:
    model = ir.from_proto(two_convs("val_1", "val_2", names=("first", "second")))
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = broken
    NameNodes()(model)
    assert [node.name for node in model.graph] == ["first", "second"]


def test_every_store_can_hold_the_names() -> None:
    weird = two_convs("großes Netz/weight 1", "b|c\\d\"e'", names=("", ""))
    for name in node_names(weird):
        assert name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert np.char.str_len(name) < 250
