"""Tiny ONNX models, one for each pattern that compression has to get right. Weights are seeded.

Every function builds a checked `onnx.ModelProto`; `TINY_MODELS` holds them by name. The batch axis is
dynamic unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoq.core.data import Array, Feed
from autoq.core.layers import GATES

OPSET = 21
N_TOKENS = 24  # rows of the embedding
_DYNAMIC_LENGTH = 6
_IR_VERSION = 10


class GraphBuilder:
    """Collects nodes and weights; every method returns the name of the value it makes."""

    def __init__(self, *, seed: int = 0, opset: int = OPSET) -> None:
        self.rng = np.random.default_rng(seed)
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> str:
        """Declare a graph input; axes named by a str are dynamic."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Add an initializer."""
        self._initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, *shape: int, fan_in: int) -> str:
        """Add normal weights that keep the variance of what they multiply, times two."""
        return self.constant(name, self.rng.standard_normal(shape) * np.sqrt(2.0 / fan_in))

    def bias(self, name: str, size: int) -> str:
        """Add a small bias."""
        return self.constant(name, self.rng.standard_normal(size) * 0.1)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, named after its op and position."""
        return self.nodes(op, *inputs, n_outputs=1, **attributes)[0]

    def nodes(self, op: str, *inputs: str, n_outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = f"{op.lower()}_{len(self._nodes)}"
        outputs = [name, *(f"{name}_{index}" for index in range(1, n_outputs))]
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs

    def conv(
        self, source: str, name: str, channels: tuple[int, int], kernel: int = 3, **attributes: Any
    ) -> str:
        """Add a padded convolution with a bias; `channels` is (in, out)."""
        n_in, n_out = channels
        per_group = n_in // attributes.get("group", 1)
        weight = self.weight(f"{name}.weight", n_out, per_group, kernel, kernel, fan_in=per_group * kernel**2)
        pads = [kernel // 2] * 4
        return self.node("Conv", source, weight, self.bias(f"{name}.bias", n_out), pads=pads, **attributes)

    def gemm(self, source: str, name: str, n_in: int, n_out: int) -> str:
        """Add a fully connected layer as torch exports it: weight (out, in), transB=1."""
        weight = self.weight(f"{name}.weight", n_out, n_in, fan_in=n_in)
        return self.node("Gemm", source, weight, self.bias(f"{name}.bias", n_out), transB=1)

    def linear(self, source: str, name: str, n_in: int, n_out: int) -> str:
        """Add a fully connected layer on any rank: MatMul, then Add of a bias."""
        product = self.node("MatMul", source, self.weight(f"{name}.weight", n_in, n_out, fan_in=n_in))
        return self.node("Add", product, self.bias(f"{name}.bias", n_out))

    def recurrence(self, source: str, name: str, n_in: int, hidden: int, **attributes: Any) -> list[str]:
        """Add an LSTM, or with `op="GRU"` a GRU, over (length, batch, in); return all its outputs."""
        op = attributes.pop("op", "LSTM")
        dirs = 2 if attributes.get("direction") == "bidirectional" else 1
        rows = GATES[op] * hidden
        weights = [
            self.weight(f"{name}.weight", dirs, rows, n_in, fan_in=n_in),
            self.weight(f"{name}.recurrence", dirs, rows, hidden, fan_in=hidden),
            self.constant(f"{name}.bias", self.rng.standard_normal((dirs, 2 * rows)) * 0.1),
        ]
        n_outputs = 3 if op == "LSTM" else 2
        return self.nodes(op, source, *weights, n_outputs=n_outputs, hidden_size=hidden, **attributes)

    def relu6(self, source: str) -> str:
        """Add Clip(0, 6)."""
        bounds = [f"{source}_min", f"{source}_max"]
        return self.node("Clip", source, self.constant(bounds[0], 0.0), self.constant(bounds[1], 6.0))

    def classify(self, source: str, n_channels: int, n_classes: int = 10) -> str:
        """Add global average pooling and a fully connected layer named `fc`."""
        pooled = self.node("Flatten", self.node("GlobalAveragePool", source))
        return self.gemm(pooled, "fc", n_channels, n_classes)

    def build(
        self, integers: Sequence[str] = (), **outputs: tuple[str, Sequence[int | str]]
    ) -> onnx.ModelProto:
        """Finish the model.

        Args:
            integers: The outputs that are int64; the others are floats.
            **outputs: The value and shape of each output.
        """
        produced = {value: name for name, (value, _) in outputs.items()}
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [produced.get(name, name) for name in names]
        infos = [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in integers else TensorProto.FLOAT, shape
            )
            for name, (_, shape) in outputs.items()
        ]
        graph = helper.make_graph(self._nodes, "tiny", self._inputs, infos, self._initializers)
        imports = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_cnn(*, seed: int = 0, opset: int = OPSET, batch: int | str = "batch") -> onnx.ModelProto:
    """Build a ResNet in small: stem, pooling, an identity block, a strided block with a shortcut."""
    net = GraphBuilder(seed=seed, opset=opset)
    image = net.input("image", batch, 3, 16, 16)
    x = net.node("Relu", net.conv(image, "stem", (3, 8)))
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.node("Relu", net.conv(x, "block1.conv1", (8, 8)))
    x = net.node("Relu", net.node("Add", net.conv(y, "block1.conv2", (8, 8)), x))
    y = net.node("Relu", net.conv(x, "block2.conv1", (8, 16), strides=[2, 2]))
    shortcut = net.conv(x, "block2.shortcut", (8, 16), 1, strides=[2, 2])
    x = net.node("Relu", net.node("Add", net.conv(y, "block2.conv2", (16, 16)), shortcut))
    return net.build(logits=(net.classify(x, 16), (batch, 10)))


def depthwise_cnn(*, seed: int = 0) -> onnx.ModelProto:
    """Build an inverted residual of MobileNetV2: Clip(0, 6), depthwise, a linear projection, ReduceMean."""
    net = GraphBuilder(seed=seed)
    x = net.relu6(net.conv(net.input("image", "batch", 3, 12, 12), "stem", (3, 8)))
    y = net.relu6(net.conv(x, "expand", (8, 16), 1))
    y = net.relu6(net.conv(y, "depthwise", (16, 16), group=16))
    x = net.node("Add", net.conv(y, "project", (16, 8), 1), x)
    x = net.relu6(net.conv(x, "last", (8, 16), 1))
    axes = net.constant("axes", [2, 3], np.int64)
    pooled = net.node("ReduceMean", x, axes, keepdims=0)
    return net.build(logits=(net.gemm(pooled, "fc", 16, 10), ("batch", 10)))


def mlp(*, seed: int = 0, opset: int = OPSET, batch: int | str = "batch") -> onnx.ModelProto:
    """Build three Gemm layers with ReLU between them."""
    net = GraphBuilder(seed=seed, opset=opset)
    x = net.node("Relu", net.gemm(net.input("features", batch, 20), "fc1", 20, 33))
    x = net.node("Relu", net.gemm(x, "fc2", 33, 16))
    return net.build(logits=(net.gemm(x, "fc3", 16, 10), (batch, 10)))


def attention(*, seed: int = 0, batch: int | str = "batch", length: int | str = "length") -> onnx.ModelProto:
    """Build a transformer block: two-headed attention, layer norm, GELU by Erf, a residual stream."""
    net = GraphBuilder(seed=seed)
    x = net.input("hidden", batch, length, 32)
    return net.build(encoded=(_transformer_block(net, x), (batch, length, 32)))


def sentence_embedder(*, seed: int = 0) -> onnx.ModelProto:
    """Build a transformer block over tokens and a mask of padding, and the mean of what is no padding."""
    net = GraphBuilder(seed=seed)
    tokens = net.input("tokens", "batch", "length", dtype=TensorProto.INT64)
    mask = net.input("mask", "batch", "length", dtype=TensorProto.INT64)
    table = net.constant("embedding.weight", net.rng.standard_normal((N_TOKENS, 32)))
    keep = net.node("Unsqueeze", mask, net.constant("key_axes", [1, 2], np.int64))
    x = _transformer_block(
        net, net.node("Gather", table, tokens), net.node("Cast", keep, to=TensorProto.BOOL)
    )
    x = net.node("Relu", net.linear(x, "project", 32, 24))
    weight = net.node("Cast", mask, to=TensorProto.FLOAT)
    weight = net.node("Unsqueeze", weight, net.constant("channel_axis", [2], np.int64))
    axes = net.constant("length_axis", [1], np.int64)
    total = net.node("ReduceSum", net.node("Mul", x, weight), axes, keepdims=0)
    count = net.node("Max", net.node("ReduceSum", weight, axes, keepdims=0), net.constant("least", 1.0))
    return net.build(embedding=(net.node("Div", total, count), ("batch", 24)))


def inception(*, seed: int = 0) -> onnx.ModelProto:
    """Build four branches of other widths and kernels, joined by Concat."""
    net = GraphBuilder(seed=seed)
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, 12, 12), "stem", (3, 8)))
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    average = net.node("AveragePool", x, count_include_pad=1, **window)
    branches = [
        net.node("Relu", net.conv(x, "branch1", (8, 4), 1)),
        net.node("Relu", net.conv(x, "branch3", (8, 8))),
        net.node("Relu", net.conv(average, "branch_pool", (8, 4), 1)),
        net.node("MaxPool", x, **window),
    ]
    x = net.node("Relu", net.conv(net.node("Concat", *branches, axis=1), "merge", (24, 8), 1))
    return net.build(logits=(net.classify(x, 8), ("batch", 10)))


def swish(*, seed: int = 0) -> onnx.ModelProto:
    """Build two convolutions whose activation is x times its sigmoid."""
    net = GraphBuilder(seed=seed)
    x = net.conv(net.input("image", "batch", 3, 12, 12), "conv1", (3, 8))
    x = net.node("Mul", x, net.node("Sigmoid", x))
    x = net.conv(x, "conv2", (8, 8))
    x = net.node("Mul", x, net.node("Sigmoid", x))
    return net.build(logits=(net.classify(x, 8), ("batch", 10)))


def batchnorm_cnn(*, seed: int = 0, opset: int = OPSET) -> onnx.ModelProto:
    """Build convolutions without biases, each with a batch norm of its own, as trained models have."""
    net = GraphBuilder(seed=seed, opset=opset)
    x = net.input("image", "batch", 3, 12, 12)
    for name, n_in in (("conv1", 3), ("conv2", 8)):
        weight = net.weight(f"{name}.weight", 8, n_in, 3, 3, fan_in=n_in * 9)
        x = net.node("Conv", x, weight, pads=[1, 1, 1, 1])
        figures = [
            net.constant(f"{name}.bn.{part}", net.rng.uniform(0.5, 1.5, 8)) for part in ("g", "b", "m", "v")
        ]
        x = net.node("Relu", net.node("BatchNormalization", x, *figures))
    return net.build(logits=(net.classify(x, 8), ("batch", 10)))


def decoder(*, seed: int = 0) -> onnx.ModelProto:
    """Build a ConvTranspose between two convolutions."""
    net = GraphBuilder(seed=seed)
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, 8, 8), "encode", (3, 8)))
    weight = net.weight("up.weight", 8, 6, 2, 2, fan_in=8 * 4)
    x = net.node("ConvTranspose", x, weight, net.bias("up.bias", 6), strides=[2, 2])
    x = net.conv(net.node("Relu", x), "decode", (6, 3))
    return net.build(picture=(x, ("batch", 3, 16, 16)))


def grouped_cnn(*, seed: int = 0) -> onnx.ModelProto:
    """Build a convolution with two groups between two plain ones."""
    net = GraphBuilder(seed=seed)
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, 12, 12), "stem", (3, 8)))
    x = net.node("Relu", net.conv(x, "grouped", (8, 8), group=2))
    x = net.node("Relu", net.conv(x, "last", (8, 8), 1))
    return net.build(logits=(net.classify(x, 8), ("batch", 10)))


def two_headed(*, seed: int = 0) -> onnx.ModelProto:
    """Build two inputs and two outputs; `embedding` is an output that a layer reads as well."""
    net = GraphBuilder(seed=seed)
    image = net.input("image", "batch", 3, 8, 8)
    extra = net.input("extra", "batch", 5)
    x = net.node("Relu", net.conv(image, "stem", (3, 8)))
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    y = net.node("Relu", net.gemm(extra, "extra_fc", 5, 8))
    embedding = net.node("Relu", net.gemm(net.node("Concat", x, y, axis=1), "join", 16, 12))
    logits = net.gemm(embedding, "fc", 12, 10)
    return net.build(logits=(logits, ("batch", 10)), embedding=(embedding, ("batch", 12)))


def token_classifier(*, seed: int = 0) -> onnx.ModelProto:
    """Build integer inputs, an embedding, a bias-free MatMul and a pooled classifier."""
    net = GraphBuilder(seed=seed)
    tokens = net.input("tokens", "batch", "length", dtype=TensorProto.INT64)
    table = net.constant("embedding.weight", net.rng.standard_normal((N_TOKENS, 16)))
    x = net.node("Gather", table, tokens)
    hidden = net.weight("encode.weight", 16, 16, fan_in=16)
    x = net.node("Relu", net.node("MatMul", x, hidden))
    pooled = net.node("ReduceMean", x, net.constant("axes", [1], np.int64), keepdims=0)
    return net.build(logits=(net.gemm(pooled, "fc", 16, 10), ("batch", 10)))


def tied_embedding(*, seed: int = 0) -> onnx.ModelProto:
    """Build a language model in small: its output projection multiplies by the table it looks words up in."""
    net = GraphBuilder(seed=seed)
    tokens = net.input("tokens", "batch", dtype=TensorProto.INT64)
    table = net.weight("embedding.weight", N_TOKENS, 48, fan_in=48)
    x = net.node("Relu", net.gemm(net.node("Gather", table, tokens), "hidden", 48, 48))
    return net.build(scores=(net.node("Gemm", x, table, transB=1), ("batch", N_TOKENS)))


def tagger(*, seed: int = 0) -> onnx.ModelProto:
    """Build words and their kinds, two embeddings, a bidirectional LSTM, and layers of every other kind."""
    net = GraphBuilder(seed=seed)
    words = net.input("words", "batch", "length", dtype=TensorProto.INT64)
    kinds = net.input("kinds", "batch", "length", dtype=TensorProto.INT64)
    tables = [net.weight(f"embeddings.{name}.weight", N_TOKENS, 32, fan_in=2) for name in ("word", "kind")]
    found = [net.node("Gather", table, ids) for table, ids in zip(tables, (words, kinds), strict=True)]
    x = net.node("Transpose", net.node("Add", *found), perm=[1, 0, 2])
    states = net.recurrence(x, "lstm", 32, 16, direction="bidirectional")[0]
    x = net.node("Transpose", states, perm=[2, 0, 1, 3])
    x = net.node("Reshape", x, net.constant("join", [0, 0, 32], np.int64))
    for name in ("first", "second", "third"):
        x = net.node("Relu", net.linear(x, name, 32, 32))
    # Rows of words as pictures of one pixel, for a convolution beside the rest.
    x = net.node("Transpose", x, perm=[0, 2, 1])
    x = net.node("Unsqueeze", x, net.constant("last_axis", [3], np.int64))
    x = net.node("Relu", net.conv(x, "conv", (32, 16), 1))
    return net.build(logits=(net.classify(x, 16), ("batch", 10)))


def gru_classifier(*, seed: int = 0) -> onnx.ModelProto:
    """Build a GRU over (length, batch, features), read backwards, and a classifier of its mean state."""
    net = GraphBuilder(seed=seed)
    x = net.node("Transpose", net.input("frames", "batch", "length", 8), perm=[1, 0, 2])
    states = net.recurrence(x, "gru", 8, 12, op="GRU", direction="reverse", linear_before_reset=1)[0]
    mean = net.node("ReduceMean", states, net.constant("axes", [0, 1], np.int64), keepdims=0)
    return net.build(logits=(net.gemm(mean, "fc", 12, 10), ("batch", 10)))


TINY_MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    builder.__name__: builder
    for builder in (
        residual_cnn,
        depthwise_cnn,
        mlp,
        attention,
        sentence_embedder,
        inception,
        swish,
        batchnorm_cnn,
        decoder,
        grouped_cnn,
        two_headed,
        token_classifier,
        tied_embedding,
        tagger,
        gru_classifier,
    )
}


def example_feed(model: onnx.ModelProto, *, n_examples: int = 4, seed: int = 0) -> Feed:
    """Draw inputs for a model: normal floats, tokens; the first axis is the batch where it is dynamic."""
    rng = np.random.default_rng(seed)
    return {value.name: _example(value.type.tensor_type, n_examples, rng) for value in model.graph.input}


def _example(tensor: onnx.TypeProto.Tensor, n_examples: int, rng: np.random.Generator) -> Array:
    shape = [
        axis.dim_value or (n_examples if position == 0 else _DYNAMIC_LENGTH)
        for position, axis in enumerate(tensor.shape.dim)
    ]
    if tensor.elem_type in (TensorProto.INT32, TensorProto.INT64):
        return rng.integers(0, N_TOKENS, shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return rng.standard_normal(shape).astype(np.float32)


def _transformer_block(net: GraphBuilder, x: str, keep: str | None = None) -> str:
    """Attend with two heads, to those keys that are kept; then feed forward."""
    split = net.constant("split_heads", [0, 0, 2, 16], np.int64)
    q, k, v = (net.node("Reshape", net.linear(x, f"attention.{part}", 32, 32), split) for part in "qkv")
    q, v = (net.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
    k = net.node("Transpose", k, perm=[0, 2, 3, 1])
    scores = net.node("Div", net.node("MatMul", q, k), net.constant("temperature", 4.0))
    if keep is not None:
        scores = net.node("Where", keep, scores, net.constant("lowest", np.finfo(np.float32).min))
    mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), v)
    joined = net.node("Transpose", mixed, perm=[0, 2, 1, 3])
    joined = net.node("Reshape", joined, net.constant("join_heads", [0, 0, 32], np.int64))
    x = net.node("Add", net.linear(joined, "attention.out", 32, 32), x)
    x = _layer_norm(net, x, "norm1")
    y = net.linear(_gelu(net, net.linear(x, "mlp.up", 32, 48)), "mlp.down", 48, 32)
    return _layer_norm(net, net.node("Add", y, x), "norm2")


def _layer_norm(net: GraphBuilder, source: str, name: str) -> str:
    scale = net.constant(f"{name}.weight", net.rng.uniform(0.5, 1.5, 32))
    return net.node("LayerNormalization", source, scale, net.bias(f"{name}.bias", 32), axis=-1)


def _gelu(net: GraphBuilder, source: str) -> str:
    """x / 2 * (1 + erf(x / sqrt 2)), as exporters spell it."""
    half = net.node("Mul", source, net.constant(f"{source}_half", 0.5))
    erf = net.node("Erf", net.node("Div", source, net.constant(f"{source}_sqrt2", np.sqrt(2.0))))
    return net.node("Mul", half, net.node("Add", erf, net.constant(f"{source}_one", 1.0)))
