from __future__ import annotations

import pytest

from autoq.core.choices import Choice
from autoq.core.layers import Layer
from autoq.targets.cpu import Cpu
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget

OLD_CPU = Cpu("old", "x86_64", ("avx2",), 2)
NEW_CPU = Cpu("new", "x86_64", ("avx2", "avx512_vnni"), 2)
CONV = Layer("conv", "Conv", (16, 8, 3, 3), channel_axis=0)
FC = Layer("fc", "Gemm", (10, 16), channel_axis=0)


@pytest.mark.parametrize("fmt", ["int8", "int8_s8", "int8_dynamic"])
def test_where_u8_by_s8_saturates_weights_have_at_most_7_bits(fmt: str) -> None:
    target = OnnxRuntimeTarget(cpu=OLD_CPU)
    verdict = target.judge(FC, Choice.of(fmt))
    assert not verdict.legal
    assert "reduce_range" in verdict.reason
    assert target.judge(FC, Choice.of(fmt, weight_bits=7)).legal
    assert OnnxRuntimeTarget(cpu=NEW_CPU).judge(FC, Choice.of(fmt)).native


@pytest.mark.parametrize("fmt", ["int8_dynamic", "int8_weight", "int4_weight"])
def test_formats_of_matrix_products_are_refused_for_convolutions(fmt: str) -> None:
    target = OnnxRuntimeTarget(cpu=NEW_CPU)
    verdict = target.judge(CONV, Choice.of(fmt))
    assert not verdict.legal
    assert "Conv" in verdict.reason
    assert target.judge(FC, Choice.of(fmt)).legal


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
