"""A small convolutional network with random weights: something to time when no model is at hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from autoq.core.artifacts import ModelArtifact
from autoq.graph.float_model import serialize
from autoq.graph.values import add_initializer

INPUT = "image"
SHAPE = (1, 32, 32, 32)
_DEPTH = 6


def reference_model() -> ModelArtifact:
    """Build six 3x3 convolutions of 32 channels with ReLU: about a millisecond on one core."""
    rng = np.random.default_rng(0)
    value = ir.Value(name=INPUT, shape=ir.Shape(SHAPE), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([value], [], nodes=[], name="reference", opset_imports={"": 21})
    for index in range(_DEPTH):
        weight = rng.standard_normal((SHAPE[1], SHAPE[1], 3, 3)).astype(np.float32) * 0.08
        pads = [ir.AttrInt64s("pads", [1, 1, 1, 1])]
        conv = ir.Node("", "Conv", [value, add_initializer(graph, f"weight{index}", weight)], pads)
        relu = ir.Node("", "Relu", [conv.outputs[0]])
        graph.extend([conv, relu])
        conv.outputs[0].name, relu.outputs[0].name = f"conv{index}", f"relu{index}"
        value = relu.outputs[0]
    value.shape, value.type = ir.Shape(SHAPE), ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(value)
    return serialize(ir.Model(graph, ir_version=10))
