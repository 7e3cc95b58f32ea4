"""Weights stored as float16: half the file, the same kernels, values rounded to float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from autoq.core.choices import Candidate, Choice, Precision
from autoq.core.errors import TrialError
from autoq.testing.bench import ModelBench, largest_difference
from autoq.testing.models import TINY_MODELS, GraphBuilder, gru_classifier, mlp, tagger

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]
HALF = Choice.of("fp16")


def wide() -> onnx.ModelProto:
    """A layer of every kind, with little beside its weights."""
    net = GraphBuilder()
    tokens = net.input("tokens", "batch", 6, dtype=TensorProto.INT64)
    x = net.node("Gather", net.weight("embedding.weight", 256, 128, fan_in=1), tokens)
    x = net.recurrence(net.node("Transpose", x, perm=[1, 0, 2]), "lstm", 128, 64)[1]
    x = net.recurrence(x, "gru", 64, 64, op="GRU")[1]
    x = net.linear(x, "matmul", 64, 256)
    x = net.node("Reshape", x, net.constant("shape", [-1, 256, 1, 1], np.int64))
    x = net.node("Relu", net.conv(x, "conv", (256, 128), 1))
    return net.build(y=(net.gemm(net.node("Flatten", x), "fc", 128, 256), ("batch", 256)))


def types(bench: ModelBench, candidate: Candidate) -> dict[str, int]:
    content = bench.build(candidate).content
    assert content is not None
    return {t.name: t.data_type for t in onnx.load_from_string(content).graph.initializer}


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_half_weights_compute_what_floats_rounded_to_them_compute(
    build: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(build)
    candidate = bench.uniform(HALF, precision=Precision.FLOAT)
    assert set(candidate.by_layer.values()) == {HALF}
    model = bench.build(candidate)
    variants = {
        name: replace(variant, weights=variant.weights.astype(np.float16).astype(np.float32))
        for name, variant in bench.stitcher.variants(candidate).items()
    }
    # Pruning by nothing: the same assembly with floats.
    floats = bench.build_from(
        bench.uniform(Choice.of("fp32", sparsity=0.001), precision=Precision.FLOAT), variants
    )
    assert bench.fused_ops(model) == bench.fused_ops(floats)
    for optimize in (True, False):
        assert largest_difference(bench.run(model, optimize=optimize), bench.run(floats)) < 1e-5
    assert largest_difference(bench.run(model), bench.run(bench.model.artifact)) < 0.01


def test_the_file_is_half_as_large(bench_of: BenchOf) -> None:
    bench = bench_of(wide)
    n_bytes = sum(4 * layer.n_params for layer in bench.model.summary.layers)
    saved = bench.model.artifact.size_bytes - bench.build(bench.uniform(HALF)).size_bytes
    assert saved == pytest.approx(n_bytes / 2, rel=0.01)
    assert "Cast" not in bench.fused_ops(bench.build(bench.uniform(HALF)))


def test_weights_are_stored_as_float16_and_biases_are_not(bench_of: BenchOf) -> None:
    stored = types(bench_of(mlp), bench_of(mlp).uniform(HALF))
    weights = {kind for name, kind in stored.items() if ".weight" in name}
    biases = {kind for name, kind in stored.items() if ".bias" in name}
    assert (weights, biases) == ({TensorProto.FLOAT16}, {TensorProto.FLOAT})


@pytest.mark.parametrize(("build", "layer"), [(tagger, "lstm"), (gru_classifier, "gru")])
def test_both_weights_of_a_recurrence_are_halved(
    build: Callable[[], onnx.ModelProto], layer: str, bench_of: BenchOf
) -> None:
    stored = types(bench_of(build), Candidate.of({layer: HALF}))
    halves = [name for name, kind in stored.items() if kind == TensorProto.FLOAT16]
    assert len(halves) == 2
    assert all(name.startswith(layer) for name in halves)


def test_pruned_half_weights_are_zero_in_the_file(bench_of: BenchOf) -> None:
    content = bench_of(mlp).build(bench_of(mlp).uniform(Choice.of("fp16", sparsity=0.5))).content
    assert content is not None
    halves = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(content).graph.initializer
        if tensor.data_type == TensorProto.FLOAT16
    ]
    assert len(halves) == 3
    assert all((half == 0).sum() == round(0.5 * half.size) for half in halves)


@pytest.mark.parametrize("magnitude", [65520.0, -1e30])
def test_weights_beyond_the_range_of_float16_are_refused_with_the_layer(
    magnitude: float, bench_of: BenchOf
) -> None:
    bench = bench_of(mlp)
    candidate = Candidate.of({"fc2": HALF})
    variants = dict(bench.stitcher.variants(candidate))
    weights = variants["fc2"].weights.astype(np.float32)
    weights[1, 2] = magnitude
    variants["fc2"] = replace(variants["fc2"], weights=weights)
    with pytest.raises(TrialError, match=r"layer 'fc2' cannot be fp16: .* beyond float16's 65504"):
        bench.build_from(candidate, variants)
