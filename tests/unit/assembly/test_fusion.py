"""What ONNX Runtime really runs, read from its own optimised graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from autoq.core.choices import FLOAT, Candidate, Choice, Precision
from autoq.testing.bench import INT8, ModelBench, largest_difference
from autoq.testing.models import (
    GraphBuilder,
    attention,
    batchnorm_cnn,
    decoder,
    depthwise_cnn,
    grouped_cnn,
    inception,
    mlp,
    residual_cnn,
    swish,
    token_classifier,
    two_headed,
)

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]
LAYOUT = {"Transpose", "Flatten", "Reshape"}

FULLY_INTEGER: dict[Callable[[], onnx.ModelProto], Counter[str]] = {
    residual_cnn: Counter(QLinearConv=6, NhwcMaxPool=1, QLinearAdd=2, QLinearGlobalAveragePool=1, QGemm=1),
    depthwise_cnn: Counter(QLinearConv=5, QLinearAdd=1, QLinearGlobalAveragePool=1, QGemm=1),
    mlp: Counter(QGemm=3),
    inception: Counter(
        QLinearConv=5,
        NhwcMaxPool=1,
        QLinearAveragePool=1,
        QLinearConcat=1,
        QLinearGlobalAveragePool=1,
        QGemm=1,
    ),
    swish: Counter(QLinearConv=2, QLinearSigmoid=2, QLinearMul=2, QLinearGlobalAveragePool=1, QGemm=1),
    batchnorm_cnn: Counter(QLinearConv=2, QLinearGlobalAveragePool=1, QGemm=1),
    grouped_cnn: Counter(QLinearConv=3, QLinearGlobalAveragePool=1, QGemm=1),
}


def pixel_shuffle() -> onnx.ModelProto:
    """Moves between two convolutions."""
    net = GraphBuilder()
    x = net.node("Relu", net.conv(net.input("image", 1, 3, 8, 8), "conv1", (3, 8)))
    x = net.node("Reshape", x, net.constant("split", [1, 2, 2, 2, 8, 8], np.int64))
    x = net.node("Transpose", x, perm=[0, 3, 4, 1, 5, 2])
    x = net.node("Reshape", x, net.constant("join", [1, 2, 16, 16], np.int64))
    left, right = net.nodes("Split", x, n_outputs=2, axis=2, num_outputs=2)
    starts, ends = net.constant("starts", [0], np.int64), net.constant("ends", [4], np.int64)
    cut = net.node("Slice", left, starts, ends, net.constant("axes", [2], np.int64))
    x = net.node("Concat", cut, right, axis=2)
    return net.build(y=(net.classify(net.conv(x, "conv2", (2, 8)), 8), (1, 10)))


def twice_read_input() -> onnx.ModelProto:
    net = GraphBuilder()
    image = net.input("image", "batch", 3, 8, 8)
    left, right = net.conv(image, "left", (3, 8)), net.conv(image, "right", (3, 8), 1)
    return net.build(y=(net.classify(net.node("Relu", net.node("Add", left, right)), 8), ("batch", 10)))


def without(counts: Counter[str], names: set[str]) -> Counter[str]:
    return Counter({op: count for op, count in counts.items() if op not in names})


@pytest.mark.parametrize("bits", [INT8.weight_bits, 4, 2])
@pytest.mark.parametrize("build", FULLY_INTEGER, ids=lambda build: build.__name__)
def test_a_model_in_int8_runs_on_integers_from_end_to_end(
    build: Callable[[], onnx.ModelProto], bits: int, bench_of: BenchOf
) -> None:
    bench = bench_of(build)
    ops = bench.fused_ops(bench.build(bench.uniform(Choice.of("int8", weight_bits=bits))))
    # One Q at the input. The last Gemm writes floats itself, so there is no DQ at all.
    assert without(ops, LAYOUT) == FULLY_INTEGER[build] + Counter(QuantizeLinear=1)


def test_a_convolution_at_the_end_leaves_one_dequantize_at_the_output(bench_of: BenchOf) -> None:
    bench = bench_of(decoder)
    ops = bench.fused_ops(bench.build(bench.uniform(INT8, but={"up": FLOAT})))
    assert ops["QLinearConv"] == 2
    # Around the float layer: one DQ before, one Q after.
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == (2, 2)


def test_every_input_is_quantised_once_and_each_output_dequantised_once(bench_of: BenchOf) -> None:
    bench = bench_of(two_headed)
    ops = bench.fused_ops(bench.build(bench.uniform(INT8)))
    expected = Counter(
        QLinearConv=1,
        QGemm=3,
        QLinearConcat=1,
        QLinearGlobalAveragePool=1,
        QuantizeLinear=2,
        DequantizeLinear=1,  # of `embedding`, which a layer reads as well
    )
    assert without(ops, LAYOUT) == expected


def test_an_input_that_two_layers_read_is_quantised_once(bench_of: BenchOf) -> None:
    bench = bench_of(twice_read_input)
    ops = bench.fused_ops(bench.build(bench.uniform(INT8)))
    assert (ops["QuantizeLinear"], ops["QLinearConv"], ops["QLinearAdd"]) == (1, 2, 1)


def test_a_float_layer_reads_the_input_itself_beside_an_integer_one(bench_of: BenchOf) -> None:
    bench = bench_of(twice_read_input)
    model = bench.build(bench.uniform(INT8, but={"right": FLOAT}))
    assert model.content is not None
    graph = onnx.load_from_string(model.content).graph
    assert next(node for node in graph.node if node.name == "right").input[0] == "image"
    assert next(node for node in graph.node if node.name == "left").input[0] == "image_dequantized"


def test_moves_stay_on_integers(bench_of: BenchOf) -> None:
    bench = bench_of(pixel_shuffle)
    model = bench.build(bench.uniform(INT8))
    ops = bench.fused_ops(model)
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == (1, 0)
    assert (ops["QLinearConv"], ops["QGemm"]) == (2, 1)
    assert {"Split", "Slice"} <= set(ops)
    assert largest_difference(bench.run(model), bench.run(model, optimize=False)) < 1e-5


def test_the_plain_graph_of_an_integer_model_has_no_pair_that_nobody_reads(bench_of: BenchOf) -> None:
    for build in (residual_cnn, depthwise_cnn, attention, two_headed, token_classifier):
        bench = bench_of(build)
        for candidate in (bench.uniform(INT8), bench.uniform(INT8, precision=Precision.FLOAT)):
            content = bench.build(candidate).content
            assert content is not None
            graph = onnx.load_from_string(content).graph
            read = {name for node in graph.node for name in node.input} | {out.name for out in graph.output}
            assert {name for node in graph.node for name in node.output} <= read
            assert {tensor.name for tensor in graph.initializer} <= read


def test_transformers_multiply_integers_and_keep_norms_float(bench_of: BenchOf) -> None:
    bench = bench_of(attention)
    ops = bench.fused_ops(bench.build(bench.uniform(INT8)))
    assert ops["MatMulIntegerToFloat"] == 6
    assert ops["QLinearMatMul"] == 2
    assert ops["QLinearSoftmax"] == 1
    assert (ops["SkipLayerNormalization"], ops["LayerNormalization"]) == (0, 2)
    assert not {"MatMul", "FusedMatMul", "Gemm"} & set(ops)


def spelt_out_norm() -> onnx.ModelProto:
    """A residual Add and the norm after it in the operators of opsets before 17."""
    net = GraphBuilder()
    hidden = net.input("hidden", "batch", "length", 32)
    x = net.node("Add", net.linear(hidden, "dense", 32, 32), hidden)
    centred = net.node("Sub", x, net.node("ReduceMean", x, net.constant("axes", [-1], np.int64)))
    square = net.node("Pow", centred, net.constant("two", 2.0))
    variance = net.node("ReduceMean", square, net.constant("axes2", [-1], np.int64))
    deviation = net.node("Sqrt", net.node("Add", variance, net.constant("epsilon", 1e-5)))
    scaled = net.node("Mul", net.node("Div", centred, deviation), net.bias("gamma", 32))
    return net.build(encoded=(net.node("Add", scaled, net.bias("beta", 32)), ("batch", "length", 32)))


@pytest.mark.parametrize(("build", "n_norms"), [(attention, 2), (spelt_out_norm, 1)])
def test_a_residual_add_is_not_joined_with_the_norm_after_it(
    bench_of: BenchOf, build: Callable[[], onnx.ModelProto], n_norms: int
) -> None:
    """The joint kernel takes several times as long as both apart."""
    bench = bench_of(build)
    for candidate in (bench.uniform(FLOAT), bench.uniform(Choice.of("int8_dynamic"))):
        ops = bench.fused_ops(bench.build(candidate))
        assert (ops["SkipLayerNormalization"], ops["LayerNormalization"], ops["Sum"]) == (0, n_norms, n_norms)


def added_before_norm(*, n_branches: int = 2) -> onnx.ModelProto:
    """Convolutions side by side, their sum, and a norm over its last axis."""
    net = GraphBuilder()
    image = net.input("image", "batch", 3, 8, 8)
    branches = [net.conv(image, f"branch{index}", (3, 8)) for index in range(n_branches)]
    x = net.node("Add" if n_branches == 2 else "Sum", *branches)
    norm = net.node("LayerNormalization", x, net.bias("gamma", 8), net.bias("beta", 8), axis=-1)
    return net.build(logits=(net.classify(norm, 8), ("batch", 10)))


def test_an_add_before_a_norm_has_its_integer_kernel_where_that_is_chosen(bench_of: BenchOf) -> None:
    bench = bench_of(added_before_norm)
    (name,) = (op.name for op in bench.model.summary.ops if op.op == "Sum")
    integer = bench.fused_ops(bench.build(bench.uniform(INT8)))
    assert (integer["QLinearAdd"], integer["Add"], integer["Sum"]) == (1, 0, 0)
    floating = bench.fused_ops(bench.build(bench.uniform(INT8, but_ops={name: Precision.FLOAT})))
    assert (floating["QLinearAdd"], floating["Add"], floating["Sum"]) == (0, 0, 1)


def test_a_sum_of_three_stays_float(bench_of: BenchOf) -> None:
    bench = bench_of(lambda: added_before_norm(n_branches=3))
    ops = bench.fused_ops(bench.build(bench.uniform(INT8)))
    assert (ops["QLinearConv"], ops["QLinearAdd"], ops["Sum"]) == (3, 0, 1)


def test_ops_that_are_chosen_float_stay_float(bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    ops = bench.fused_ops(bench.build(bench.uniform(INT8, precision=Precision.FLOAT)))
    assert (ops["Add"], ops["QLinearAdd"]) == (2, 0)
    assert (ops["GlobalAveragePool"], ops["MaxPool"]) == (1, 1)
    assert (ops["QLinearConv"], ops["Conv"]) == (6, 0)


def test_a_float_softmax_stays_float_among_integers(bench_of: BenchOf) -> None:
    bench = bench_of(attention)
    candidate = bench.uniform(INT8, but_ops={"softmax_14": Precision.FLOAT})
    ops = bench.fused_ops(bench.build(candidate))
    assert (ops["Softmax"], ops["QLinearSoftmax"], ops["QLinearMatMul"]) == (1, 0, 2)


@pytest.mark.parametrize("build", [mlp, batchnorm_cnn, grouped_cnn], ids=lambda build: build.__name__)
def test_signed_activations_fuse_in_plain_chains(
    build: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(build)
    candidate = bench.uniform(Choice.of("int8_s8", weight_bits=INT8.weight_bits))
    model = bench.build(candidate)
    assert model.content is not None
    zeros = [
        tensor
        for tensor in onnx.load_from_string(model.content).graph.initializer
        if tensor.name.endswith("_zero_point") and "quantized" not in tensor.name
    ]
    assert {tensor.data_type for tensor in zeros} == {onnx.TensorProto.INT8}
    assert without(bench.fused_ops(model), LAYOUT) == FULLY_INTEGER[build] + Counter(QuantizeLinear=1)


@pytest.mark.parametrize("layer", ["fc1", "fc2", "fc3"])
def test_one_integer_gemm_among_floats_runs_on_integers(layer: str, bench_of: BenchOf) -> None:
    """With a ReLU and no Q after it, the runtime would fuse a float Gemm out of it."""
    bench = bench_of(mlp)
    ops = bench.fused_ops(bench.build(Candidate.of({layer: INT8})))
    assert ops["QGemm"] == 1
    assert ops["Gemm"] + ops["FusedGemm"] == 2


@pytest.mark.parametrize("calibration", ["minmax", "percentile99.9", "entropy", "mse"])
def test_clips_are_absorbed_whatever_fixes_the_range(calibration: str, bench_of: BenchOf) -> None:
    bench = bench_of(depthwise_cnn)
    choice = Choice.of("int8", calibration=calibration, weight_bits=INT8.weight_bits)
    ops = bench.fused_ops(bench.build(bench.uniform(choice)))
    assert "Clip" not in ops
    assert ops["QLinearConv"] == 5
