"""What the rest of autoq knows of a graph: its layers and its weightless ops, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

GATES = {"LSTM": 4, "GRU": 3}  # recurrent ops, with the gates of each


@dataclass(frozen=True, slots=True)
class Layer:
    """A node with a weight of its own that can be compressed.

    A Gather looks rows up in its weight: a row is an output channel. An LSTM or GRU has one weight of
    shape (directions, gates * hidden, input + hidden): its W and R side by side along the inputs, gates
    in ONNX's order. Its directions are groups, and the channel axis runs over the rows of one.
    """

    name: str  # stable and readable: `layer1.0.conv1`
    op: str  # ONNX operator: Conv, ConvTranspose, Gemm, MatMul, Gather, LSTM, GRU
    weight_shape: tuple[int, ...]
    channel_axis: int  # axis of the weight that runs over output channels
    group: int = 1  # of a recurrent layer: directions
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
    def has_moments(self) -> bool:
        """Whether second-order methods may be used: its outputs are sums over its inputs."""
        return self.is_matmul or self.op in ("Conv", "ConvTranspose")

    @property
    def is_recurrent(self) -> bool:
        """Whether the layer is an LSTM or a GRU."""
        return self.op in GATES

    @property
    def input_size(self) -> int:
        """Features a recurrent layer reads at a time: columns of its weight that are W, not R."""
        return self.weight_shape[2] - self.weight_shape[1] // GATES[self.op]

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
