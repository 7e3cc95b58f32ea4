"""Narrowed models of every family against the obvious: the whole model, with the columns of readers zeroed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.core.groups import ChannelGroup, Role
from autoq.graph.find_groups import find_groups
from autoq.graph.float_model import FloatModel, build_float_model, describe_graph
from autoq.graph.layers import find_layers
from autoq.graph.narrow import narrow
from autoq.graph.torch_export import export_torch
from autoq.graph.values import constant
from autoq.testing.families import EXAMPLES, FAMILIES

Feeds = dict[str, npt.NDArray[np.generic]]


@cache
def exported(family: str) -> FloatModel:
    return build_float_model(export_torch(f"autoq.testing.families:{family}", Path(), EXAMPLES[family]))


def feeds(family: str) -> Feeds:
    rng = np.random.default_rng(1)
    return {name: example.draw(rng) for name, example in EXAMPLES[family].items()}


def run(model: FloatModel, family: str) -> npt.NDArray[np.float32]:
    session = ort.InferenceSession(model.artifact.content)
    (result,) = session.run(None, feeds(family))
    return np.asarray(result)


def kept_at(groups: tuple[ChannelGroup, ...], share: float) -> dict[str, list[int]]:
    """Random units of each group, another set in each."""
    rng = np.random.default_rng(2)
    widths = {group.name: max(1, round(group.size * share)) for group in groups}
    return {
        group.name: sorted(rng.choice(group.size, widths[group.name], replace=False).tolist()) for group in groups
    }


def with_zeroed_columns(model: FloatModel, groups: tuple[ChannelGroup, ...], kept: dict[str, list[int]]) -> FloatModel:
    """Zero what readers weigh removed channels with, in the whole model."""
    graph = model.clone()
    layers = {layer.name: layer for layer in find_layers(graph)}
    nodes = {node.name: node for node in graph.graph}
    for group in groups:
        for member in group.members:
            if member.role is Role.WRITES:
                continue
            gone = [
                channel
                for unit, channels in enumerate(member.channels)
                if unit not in kept[group.name]
                for channel in channels
            ]
            zero_columns(nodes[member.layer], layers[member.layer].group, gone)
    return describe_graph(graph)


def zero_columns(node: ir.Node, n_groups: int, channels: list[int]) -> None:
    """Zero what a layer weighs some of its input channels with."""
    parts = [(1, constant(node.inputs[1]).copy())]
    if node.op_type in ("LSTM", "GRU"):
        parts.append((2, constant(node.inputs[2]).copy()))
        n_inputs = parts[0][1].shape[2]
        for channel in channels:
            parts[channel >= n_inputs][1][:, :, channel % n_inputs if channel < n_inputs else channel - n_inputs] = 0
    elif node.op_type == "Conv":
        weight = parts[0][1]
        per_group, rows = weight.shape[1], len(weight) // n_groups
        for channel in channels:
            start = channel // per_group * rows
            weight[start : start + rows, channel % per_group] = 0
    elif node.op_type == "ConvTranspose" or not node.attributes.get_int("transB", 0):
        parts[0][1][channels] = 0
    else:
        parts[0][1][:, channels] = 0
    for index, array in parts:
        node.inputs[index].const_value = ir.Tensor(array, name=node.inputs[index].name)
