"""Whatever a search may propose is built, loaded, and computed as it was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.choices import FLOAT, Candidate, Choice, Precision
from autoq.core.layers import Layer
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.testing.bench import INT8, ModelBench, build_bench, share_changed_by_optimizing
from autoq.testing.models import TINY_MODELS, attention, residual_cnn

MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    **TINY_MODELS,
    "static residual_cnn": lambda: residual_cnn(batch=4),
    "static attention": lambda: attention(batch=4, length=6),
}
BenchOf = Callable[[str], ModelBench]
TARGET = OnnxRuntimeTarget()
GRAINS = st.sampled_from(["channel", "tensor"])
CALIBRATIONS = st.sampled_from(["minmax", "percentile99.9", "entropy", "mse"])
SPARSITIES = st.sampled_from([0.0, 0.0, 0.5])


@pytest.fixture(scope="session")
def bench_of(tmp_path_factory: pytest.TempPathFactory) -> BenchOf:
    """Benches by the name of their model, each calibrated once."""
    return cache(lambda name: build_bench(MODELS[name](), tmp_path_factory.mktemp("bench")))


@st.composite
def choices(draw: st.DrawFn, layer: Layer, *, mixed: bool) -> Choice:
    bits = draw(st.integers(2, INT8.weight_bits))
    static = Choice.of("int8", weight_bits=bits, granularity=draw(GRAINS), calibration=draw(CALIBRATIONS))
    options = [FLOAT, static, INT8]
    if mixed:
        options.append(Choice.of("int8_s8", weight_bits=bits, calibration=draw(CALIBRATIONS)))
        options.append(Choice.of("fp32", sparsity=draw(SPARSITIES)))
        options.append(Choice.of("fp16"))
        options.append(Choice.of("int8", weight_bits=bits, rounding="gptq", sparsity=draw(SPARSITIES)))
    if mixed and layer.is_matmul:
        block = draw(st.sampled_from(["block32", "block128"]))
        options.append(Choice.of("int8_dynamic", weight_bits=bits, granularity=draw(GRAINS)))
        options.append(Choice.of("int8_outlier", weight_bits=bits, granularity=draw(GRAINS)))
        options.append(Choice.of("int8_weight", weight_bits=bits, granularity=block))
        options.append(Choice.of("int4_weight", granularity=block, sparsity=draw(SPARSITIES)))
    return draw(st.sampled_from([option for option in options if TARGET.judge(layer, option).legal]))


@st.composite
def candidates(draw: st.DrawFn, bench: ModelBench, *, mixed: bool) -> Candidate:
    layers = {layer.name: draw(choices(layer, mixed=mixed)) for layer in bench.model.summary.layers}
    return Candidate.of(layers, {op: draw(st.sampled_from(Precision)) for op in bench.op_names})


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_runtime_computes_what_was_written(name: str, bench_of: BenchOf, data: st.DataObject) -> None:
    """Optimised and unoptimised differ by rounding alone.

    An integer kernel rounds to the step that float arithmetic rounds to, except where the two fall on
    either side of an edge: a few values in a thousand, one step each. Root mean squares of 0.16 of what
    quantisation itself does were seen, where little else was quantised. ONNX Runtime's integer Softmax
    rounds down instead of to the nearest: an eighth of its values are one step low, which alone may be
    half of what quantisation does. A layer that is quantised against what was chosen gives 0.7 and more.
    """
    bench = bench_of(name)
    candidate = data.draw(candidates(bench, mixed=True))
    model = bench.build(candidate)
    assert all(np.isfinite(array).all() for array in bench.run(model).values())
    rounds_down = any("softmax" in op and p is Precision.INT8 for op, p in candidate.graph)
    assert share_changed_by_optimizing(bench, model) < (0.65 if rounds_down else 0.25)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_each_layer_runs_in_what_was_chosen(name: str, bench_of: BenchOf, data: st.DataObject) -> None:
    """Counted in the runtime's own graph: integer kernels for the static layers, float for the others."""
    bench = bench_of(name)
    candidate = data.draw(candidates(bench, mixed=False))
    ops = bench.fused_ops(bench.build(candidate))

    def count(*kinds: str, static: bool) -> int:
        layers = bench.model.summary.layers
        chosen = [layer for layer in layers if candidate.by_layer[layer.name].format.is_static is static]
        return sum(layer.op in kinds for layer in chosen)

    n_products = sum(op.op == "MatMul" for op in bench.model.summary.ops)
    float_products = ops["Gemm"] + ops["FusedGemm"] + ops["MatMul"] + ops["FusedMatMul"]
    assert ops["QLinearConv"] == count("Conv", static=True)
    assert ops["Conv"] + ops["FusedConv"] == count("Conv", static=False)
    assert ops["QGemm"] == count("Gemm", static=True)
    assert ops["MatMulIntegerToFloat"] == count("MatMul", static=True)
    assert float_products + ops["QLinearMatMul"] == count("Gemm", "MatMul", static=False) + n_products


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_candidate_is_built_the_same_twice_and_is_never_larger_than_float(
    name: str, bench_of: BenchOf, data: st.DataObject
) -> None:
    bench = bench_of(name)
    candidate = data.draw(candidates(bench, mixed=True))
    first, second = bench.stitcher.assemble(candidate), bench.stitcher.assemble(candidate)
    assert first.artifact.content == second.artifact.content
    assert first.bundle_bytes == second.bundle_bytes
    # Tiny layers may lose in names and scales what they gain in weights.
    assert first.artifact.size_bytes < bench.model.artifact.size_bytes + 10_000
