"""What the rest of autoq knows of a graph: its layers and its weightless ops, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Layer:
    """A node with a weight of its own that can be compressed."""

    name: str  # stable and readable: `layer1.0.conv1`
    op: str  # ONNX operator: Conv, ConvTranspose, Gemm, MatMul
    weight_shape: tuple[int, ...]
    channel_axis: int  # axis of the weight that runs over output channels
    group: int = 1
    has_bias: bool = False

    @property
    def n_params(self) -> int:
        """Number of weights, bias not counted."""
        return math.prod(self.weight_shape)

    @property
    def is_matmul(self) -> bool:
        """Whether the layer is a matrix product, Gemm or MatMul."""
        return self.op in ("Gemm", "MatMul")

    @property
    def is_depthwise(self) -> bool:
        """Whether every input channel has filters of its own."""
        return self.op == "Conv" and self.group > 1 and self.weight_shape[1] == 1


class OpFamily(StrEnum):
    """Kinds of weightless ops whose precision is a graph-wide choice."""

    ADD = "add"
    MUL = "mul"
    CONCAT = "concat"
    POOL = "pool"
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    MATMUL = "matmul"  # product of two activations, as in attention


@dataclass(frozen=True, slots=True)
class WeightlessOp:
    """A node without a weight that may run in int8 between quantised layers."""

    name: str
    op: str
    family: OpFamily


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model: dtype as numpy writes it, None for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]  # a str is the name of a dynamic axis


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Everything search and targets need to know of a model."""

    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    ops: tuple[WeightlessOp, ...]
    size_bytes: int
