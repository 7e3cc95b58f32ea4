from __future__ import annotations

from pathlib import Path

import pytest

from autoq.core.choices import Choice, Format
from autoq.core.layers import Layer
from autoq.targets.cpu import Cpu
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.testing.bench import INT8, build_bench
from autoq.testing.models import GraphBuilder

OLD_CPU = Cpu("old", "x86_64", ("avx2",), 2)
NEW_CPU = Cpu("new", "x86_64", ("avx2", "avx512_vnni"), 2)
CONV = Layer("conv", "Conv", (16, 8, 3, 3), channel_axis=0)
FC = Layer("fc", "Gemm", (10, 64), channel_axis=0)
EMBEDDING = Layer("embedding", "Gather", (100, 32), channel_axis=0)
LSTM = Layer("lstm", "LSTM", (2, 32, 20), channel_axis=1, group=2)
GRU = Layer("gru", "GRU", (1, 24, 20), channel_axis=1)
INTEGER_FORMATS = [fmt for fmt in Format if not fmt.is_float]


@pytest.mark.parametrize("fmt", ["int8", "int8_s8", "int8_outlier", "int8_dynamic"])
def test_where_u8_by_s8_saturates_weights_have_at_most_7_bits(fmt: str) -> None:
    target = OnnxRuntimeTarget(cpu=OLD_CPU)
    verdict = target.judge(FC, Choice.of(fmt))
    assert not verdict.legal
    assert "reduce_range" in verdict.reason
    assert target.judge(FC, Choice.of(fmt, weight_bits=7)).native  # as fast as int8 gets here
    assert not target.judge(FC, Choice.of(fmt, weight_bits=6)).native
    assert OnnxRuntimeTarget(cpu=NEW_CPU).judge(FC, Choice.of(fmt)).native


@pytest.mark.parametrize("fmt", ["int8", "int8_outlier", "int8_dynamic"])
def test_where_u8_by_s8_saturates_codebooks_are_refused(fmt: str) -> None:
    """Few levels, but spread over all of int8: their sums of two products do not fit 16 bits either."""
    codebook = Choice.of(fmt, weight_bits=3, grid="codebook")
    assert "codebooks use all 8 bits" in OnnxRuntimeTarget(cpu=OLD_CPU).judge(FC, codebook).reason
    assert OnnxRuntimeTarget(cpu=NEW_CPU).judge(FC, codebook).legal


@pytest.mark.parametrize("fmt", ["int8_outlier", "int8_dynamic", "int8_weight", "int4_weight"])
def test_formats_of_matrix_products_are_refused_for_convolutions(fmt: str) -> None:
    target = OnnxRuntimeTarget(cpu=NEW_CPU)
    verdict = target.judge(CONV, Choice.of(fmt))
    assert not verdict.legal
    assert "Conv" in verdict.reason
    assert target.judge(FC, Choice.of(fmt)).legal


def test_outliers_are_kept_where_they_are_a_small_part_of_the_inputs() -> None:
    target, choice = OnnxRuntimeTarget(cpu=NEW_CPU), Choice.of("int8_outlier")
    for weight_shape, channel_axis in (((31, 40), 1), ((40, 31), 0)):
        narrow = Layer("fc", "MatMul", weight_shape, channel_axis=channel_axis)
        assert "at least 32 inputs" in target.judge(narrow, choice).reason
    assert target.judge(Layer("fc", "MatMul", (32, 8), channel_axis=1), choice).native


@pytest.mark.parametrize(
    ("fmt", "bits", "native"),
    [
        ("int8", 8, True),
        ("int8", 4, False),
        ("int8_dynamic", 7, False),
        ("int8_weight", 8, True),
        ("int8_weight", 4, False),
        ("int4_weight", 4, True),
        ("int4_weight", 3, False),
    ],
)
def test_grids_narrower_than_their_container_are_storage_only(fmt: str, bits: int, native: bool) -> None:
    verdict = OnnxRuntimeTarget(cpu=NEW_CPU).judge(FC, Choice.of(fmt, weight_bits=bits))
    assert verdict.legal
    assert verdict.native is native
    if not native:
        assert f"{bits}-bit grid" in verdict.reason


@pytest.mark.parametrize("layer", [CONV, FC, EMBEDDING, LSTM, GRU], ids=lambda layer: layer.op)
def test_half_weights_are_storage_only_everywhere(layer: Layer) -> None:
    verdict = OnnxRuntimeTarget(cpu=NEW_CPU).judge(layer, Choice.of("fp16", sparsity=0.5))
    assert (verdict.legal, verdict.native) == (True, False)
    assert "speed of fp32" in verdict.reason


@pytest.mark.parametrize("fmt", INTEGER_FORMATS)
def test_no_integer_format_has_a_kernel_for_a_gru(fmt: Format) -> None:
    verdict = OnnxRuntimeTarget(cpu=NEW_CPU).judge(GRU, Choice.of(fmt))
    assert not verdict.legal
    assert verdict.reason == "ONNX Runtime has no integer GRU kernel"


@pytest.mark.parametrize("fmt", INTEGER_FORMATS)
def test_an_lstm_is_int8_dynamic_or_float(fmt: Format) -> None:
    verdict = OnnxRuntimeTarget(cpu=NEW_CPU).judge(LSTM, Choice.of(fmt))
    assert verdict.legal is (fmt is Format.INT8_DYNAMIC)
    assert verdict.legal or "LSTM" in verdict.reason


@pytest.mark.parametrize("fmt", INTEGER_FORMATS)
def test_an_embedding_is_weight_only_or_float(fmt: Format) -> None:
    verdict = OnnxRuntimeTarget(cpu=NEW_CPU).judge(EMBEDDING, Choice.of(fmt))
    assert verdict.legal is fmt.is_weight_only
    assert verdict.legal or "no kernel for Gather" in verdict.reason


def test_4_bit_embeddings_of_odd_width_are_refused() -> None:
    target = OnnxRuntimeTarget(cpu=NEW_CPU)
    odd = Layer("embedding", "Gather", (100, 33), channel_axis=0)
    verdict = target.judge(odd, Choice.of("int4_weight"))
    assert not verdict.legal
    assert "odd" in verdict.reason
    assert target.judge(odd, Choice.of("int8_weight")).native


def test_an_old_cpu_takes_an_lstm_at_7_bits() -> None:
    target = OnnxRuntimeTarget(cpu=OLD_CPU)
    assert not target.judge(LSTM, Choice.of("int8_dynamic")).legal
    assert target.judge(LSTM, Choice.of("int8_dynamic", weight_bits=7)).legal


def test_an_integer_transposed_convolution_is_smaller_and_no_faster(tmp_path: Path) -> None:
    """Should its kernel appear with another version of the runtime, the verdict has to change."""
    net = GraphBuilder()
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, 8, 8), "down", (3, 8)))
    x = net.node("ConvTranspose", x, net.weight("up.weight", 8, 8, 2, 2, fan_in=32), strides=[2, 2])
    bench = build_bench(net.build(y=(net.classify(net.node("Relu", x), 8), ("batch", 10))), tmp_path)
    layer = next(one for one in bench.model.summary.layers if one.op == "ConvTranspose")
    verdict = OnnxRuntimeTarget().judge(layer, INT8)
    assert (verdict.legal, verdict.native) == (True, False)
    assert bench.fused_ops(bench.build(bench.uniform(INT8)))["ConvTranspose"] == 1


def test_a_grouped_transposed_convolution_has_no_scales_per_channel() -> None:
    target = OnnxRuntimeTarget(cpu=NEW_CPU)
    grouped = Layer("up", "ConvTranspose", (16, 4, 2, 2), channel_axis=1, group=2)
    assert not target.judge(grouped, Choice.of("int8", granularity="channel")).legal
    assert target.judge(grouped, Choice.of("int8", granularity="tensor")).legal


def test_threads_and_batch_size_are_part_of_name_and_environment() -> None:
    target = OnnxRuntimeTarget(threads=3, batch_size=8, cpu=NEW_CPU)
    assert target.name == "onnxruntime-cpu-3t-b8"
    environment = target.environment()
    assert (environment["threads"], environment["batch_size"]) == (3, 8)
    assert environment["cpu"]["instruction_sets"] == ["avx2", "avx512_vnni"]
