from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from autoq.assembly import compress_layers
from autoq.assembly.weights import add_grid
from autoq.core.choices import FLOAT, Candidate, Choice, Precision
from autoq.testing.bench import INT8, ModelBench, build_bench, largest_difference
from autoq.testing.models import (
    TINY_MODELS,
    GraphBuilder,
    attention,
    depthwise_cnn,
    mlp,
    residual_cnn,
    two_headed,
)

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]

CHOICES = [
    INT8,
    Choice.of("int8", weight_bits=4),
    Choice.of("int8", weight_bits=2),
    Choice.of("int8_dynamic"),
    Choice.of("int4_weight"),
    Choice.of("fp32", sparsity=0.5),
]


def graph_of(content: bytes | None) -> onnx.GraphProto:
    assert content is not None
    return onnx.load_from_string(content).graph


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_the_float_candidate_is_the_float_model_byte_for_byte(
    build: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(build)
    assert bench.build(Candidate.of({})).content == bench.model.artifact.content
    named = bench.uniform(FLOAT, precision=Precision.FLOAT)
    assert bench.build(named).content == bench.model.artifact.content
    assert bench.stitcher.float_model() is bench.model.artifact


@pytest.mark.parametrize("build", [residual_cnn, attention], ids=["residual_cnn", "attention"])
def test_one_candidate_is_one_string_of_bytes(
    build: Callable[[], onnx.ModelProto], bench_of: BenchOf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench, other = bench_of(build), build_bench(build(), tmp_path_factory.mktemp("other"))
    candidate = bench.uniform(Choice.of("int8", weight_bits=4, calibration="mse"))
    first = bench.build(candidate).content
    assert bench.build(candidate).content == first
    assert other.build(candidate).content == first


def test_the_bytes_do_not_depend_on_the_process(bench_of: BenchOf) -> None:
    """Strings hash differently in every process, and so do sets of names."""
    script = (
        "from pathlib import Path; import tempfile\n"
        "from autoq.testing.bench import INT8, build_bench\n"
        "from autoq.testing.models import residual_cnn\n"
        "bench = build_bench(residual_cnn(), Path(tempfile.mkdtemp()))\n"
        "print(bench.build(bench.uniform(INT8)).digest)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    digests = {process.communicate(timeout=60)[0].strip() for process in processes}
    bench = bench_of(residual_cnn)
    assert digests == {bench.build(bench.uniform(INT8)).digest}


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_what_is_written_is_valid_and_keeps_inputs_and_outputs(
    build: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(build)
    before = graph_of(bench.model.artifact.content)
    for choice in (INT8, Choice.of("int8", weight_bits=2)):
        content = bench.build(bench.uniform(choice)).content
        assert content is not None
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        after = graph_of(content)
        assert list(after.input) == list(before.input)
        assert [value.name for value in after.output] == [value.name for value in before.output]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_compressing_leaves_the_float_model_as_it_was(choice: Choice, bench_of: BenchOf) -> None:
    bench = bench_of(mlp)
    before = bench.build(Candidate.of({})).content
    bench.build(bench.uniform(choice))
    assert bench.build(Candidate.of({})).content == before


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("build", [residual_cnn, depthwise_cnn, mlp], ids=lambda build: build.__name__)
def test_narrow_weights_compute_bit_for_bit_what_int8_weights_compute(
    build: Callable[[], onnx.ModelProto], bits: int, bench_of: BenchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(build)
    candidate = bench.uniform(Choice.of("int8", weight_bits=bits))
    narrow = bench.build(candidate)
    monkeypatch.setattr(
        compress_layers, "add_grid", lambda model, node, name, grid, _: add_grid(model, node, name, grid, 8)
    )
    wide = bench.build(candidate)
    types = {tensor.data_type for tensor in graph_of(wide.content).initializer}
    assert not types & {TensorProto.INT4, TensorProto.INT2}
    assert bench.fused_ops(narrow) == bench.fused_ops(wide)
    for optimize in (True, False):
        left, right = bench.run(narrow, optimize=optimize), bench.run(wide, optimize=optimize)
        for name, array in right.items():
            assert left[name].tobytes() == array.tobytes()


def wide_mlp() -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.node("Relu", net.gemm(net.input("x", "batch", 256), "fc1", 256, 256))
    return net.build(y=(net.gemm(x, "fc2", 256, 256), ("batch", 256)))


@pytest.mark.parametrize(
    ("bits", "data_type", "bytes_per_weight"),
    [(8, TensorProto.INT8, 1.0), (4, TensorProto.INT4, 0.5), (2, TensorProto.INT2, 0.25)],
)
def test_narrow_weights_make_a_smaller_file(
    bits: int, data_type: int, bytes_per_weight: float, bench_of: BenchOf
) -> None:
    bench = bench_of(wide_mlp)
    model = bench.build(bench.uniform(Choice.of("int8", weight_bits=min(bits, INT8.weight_bits))))
    weights = [tensor for tensor in graph_of(model.content).initializer if tensor.data_type == data_type]
    assert sum(list(tensor.dims) == [256, 256] for tensor in weights) == 2
    n_weights = 2 * 256 * 256
    # Scales, biases and zero points: 256 x 2 layers x (4 + 4 + 4 + 1 + 4) bytes, and names.
    assert 0 < model.size_bytes - n_weights * bytes_per_weight < 13_000


def test_the_bundle_shrinks_with_bits_and_zeros(bench_of: BenchOf) -> None:
    bench = bench_of(wide_mlp)

    def bundle(choice: Choice) -> int:
        return bench.stitcher.assemble(bench.uniform(choice)).bundle_bytes

    sizes = [bundle(Choice.of("int8", weight_bits=bits)) for bits in (INT8.weight_bits, 6, 4, 2)]
    assert sizes == sorted(sizes, reverse=True)
    assert bundle(Choice.of("int8", weight_bits=INT8.weight_bits, sparsity=0.7)) < sizes[0]
    assert sizes[0] < bundle(FLOAT)


def test_layers_whose_bits_save_no_time_are_named(bench_of: BenchOf) -> None:
    bench = bench_of(mlp)
    candidate = Candidate.of({"fc1": Choice.of("int8", weight_bits=4), "fc2": INT8})
    narrow = bench.stitcher.assemble(candidate).storage_only
    assert narrow == ("fc1",)


def test_pruned_float_weights_are_zero_in_the_file(bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    content = bench.build(bench.uniform(Choice.of("fp32", sparsity=0.5))).content
    for tensor in graph_of(content).initializer:
        if tensor.name.endswith(".weight"):
            weight = onnx.numpy_helper.to_array(tensor)
            assert (weight == 0).sum() == round(0.5 * weight.size)


def test_an_output_that_a_layer_reads_as_well_is_written_once(bench_of: BenchOf) -> None:
    bench = bench_of(two_headed)
    for choices in ({"join": INT8}, {"join": INT8, "fc": INT8}, {"fc": INT8}):
        model = bench.build(Candidate.of(choices))
        outputs, plain = bench.run(model), bench.run(bench.model.artifact)
        assert list(outputs) == ["logits", "embedding"]
        assert largest_difference(outputs, plain) < 0.05
        assert largest_difference(outputs, bench.run(model, optimize=False)) < 1e-4


def channel(weight_scale: float, bias: float) -> onnx.ModelProto:
    """A layer whose third channel has weights of one magnitude and a bias of another."""
    net = GraphBuilder()
    weight = net.rng.standard_normal((8, 6))
    weight[2] *= weight_scale
    biases = np.full(8, 0.1)
    biases[2] = bias
    x = net.input("x", "batch", 6)
    x = net.node("Gemm", x, net.constant("fc.weight", weight), net.constant("fc.bias", biases), transB=1)
    return net.build(y=(x, ("batch", 8)))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(
    ("weight_scale", "bias"),
    [(0.0, 0.013), (1e-9, 0.3), (1e-9, -300.0), (1e-30, 0.3), (1e-44, 0.3), (1.0, 1e7), (1e-20, 0.0)],
)
def test_a_bias_far_larger_than_its_weights_survives(
    weight_scale: float, bias: float, granularity: str, bench_of: BenchOf
) -> None:
    """As a float it would be rounded to int32 by the runtime, and overflow there."""
    bench = bench_of(partial(channel, weight_scale, bias))
    choice = Choice.of("int8", weight_bits=INT8.weight_bits, granularity=granularity)
    model = bench.build(Candidate.of({"fc": choice}))
    found, plain = bench.run(model)["y"], bench.run(bench.model.artifact)["y"]
    assert bench.fused_ops(model)["QGemm"] == 1
    np.testing.assert_allclose(found, bench.run(model, optimize=False)["y"], rtol=1e-5, atol=1e-5)
    if granularity == "channel":
        np.testing.assert_allclose(found[:, 2], plain[:, 2], rtol=0.01, atol=0.001)
    others = [0, 1, *range(3, 8)]
    tolerance = 0.05 * np.abs(plain[:, others]).max() if abs(bias) < 1e6 or granularity == "channel" else 10.0
    np.testing.assert_allclose(found[:, others], plain[:, others], atol=tolerance)


def tied() -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.input("x", "batch", 16)
    weight, bias = net.weight("tied.weight", 16, 16, fan_in=16), net.bias("tied.bias", 16)
    for _ in range(2):
        x = net.node("Relu", net.node("Gemm", x, weight, bias, transB=1))
    return net.build(y=(net.node("Gemm", x, weight, bias, transB=1), ("batch", 16)))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_layers_that_share_a_weight_may_be_compressed_alike_or_apart(
    choice: Choice, bench_of: BenchOf
) -> None:
    bench = bench_of(tied)
    for candidate in (bench.uniform(choice), Candidate.of({"tied": choice, "tied_2": INT8})):
        model = bench.build(candidate)
        assert largest_difference(bench.run(model), bench.run(model, optimize=False)) < 1e-3


def test_names_that_assembly_would_give_may_be_taken(tmp_path_factory: pytest.TempPathFactory) -> None:
    net = GraphBuilder()
    x = net.gemm(net.input("x_quantized", "batch", 8), "x", 8, 8)
    x = net.node("Relu", net.gemm(x, "x_quantized_quantized", 8, 8))
    proto = net.build(x_dequantized=(net.gemm(x, "x_scale", 8, 8), ("batch", 8)))
    bench = build_bench(proto, tmp_path_factory.mktemp("names"))
    for choice in CHOICES:
        model = bench.build(bench.uniform(choice))
        assert list(bench.run(model)) == ["x_dequantized"]


def dead_relu6() -> onnx.ModelProto:
    """A Clip that never sees anything above zero."""
    net = GraphBuilder()
    x = net.conv(net.input("image", "batch", 3, 6, 6), "conv1", (3, 4))
    x = net.relu6(net.node("Mul", net.node("Relu", x), net.constant("minus", -1.0)))
    x = net.relu6(net.conv(x, "conv2", (4, 4)))
    return net.build(y=(net.classify(x, 4), ("batch", 10)))


def test_tensors_of_zeros_are_no_trouble(bench_of: BenchOf) -> None:
    bench = bench_of(dead_relu6)
    model = bench.build(bench.uniform(INT8))
    assert largest_difference(bench.run(model), bench.run(model, optimize=False)) < 1e-5
    assert largest_difference(bench.run(model), bench.run(bench.model.artifact)) < 0.05
