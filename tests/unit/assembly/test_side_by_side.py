"""Layers of every kind and format in one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest

from autoq.core.choices import FLOAT, Candidate, Choice, Precision
from autoq.testing.bench import INT8, ModelBench, largest_difference, share_changed_by_optimizing
from autoq.testing.models import tagger
from autoq.variants.lstm import round_parts
from autoq.variants.variant import Variant

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]
DYNAMIC = Choice.of("int8_dynamic", weight_bits=INT8.weight_bits)

EVERYTHING: Mapping[str, Choice] = {
    "embeddings.word": Choice.of("int8_weight"),
    "embeddings.kind": Choice.of("int4_weight"),
    "lstm": DYNAMIC,
    "first": INT8,
    "second": DYNAMIC,
    "third": Choice.of("int4_weight"),
    "conv": INT8,
    "fc": Choice.of("fp16"),
}


def variants_of(bench: ModelBench, candidate: Candidate) -> dict[str, Variant]:
    """Variants of a candidate; those of an int8 LSTM rounded here."""
    others = Candidate.of({**candidate.by_layer, "lstm": FLOAT})
    variants = dict(bench.stitcher.variants(others))
    choice = candidate.by_layer["lstm"]
    if not choice.format.is_float:
        (layer,) = (layer for layer in bench.model.summary.layers if layer.name == "lstm")
        parts = round_parts(
            variants["lstm"].weights, choice.weight_bits, choice.granularity, layer.input_size
        )
        variants["lstm"] = replace(variants["lstm"], weights=parts[0], scales=parts[1])
    return variants


@pytest.mark.parametrize("precision", Precision)
def test_every_layer_runs_in_its_own_format(precision: Precision, bench_of: BenchOf) -> None:
    bench = bench_of(tagger)
    candidate = bench.uniform(FLOAT, precision=precision, but=EVERYTHING)
    model = bench.build_from(candidate, variants_of(bench, candidate))
    ops = bench.fused_ops(model)
    kernels = {
        "GatherBlockQuantized": 2,
        "DynamicQuantizeLSTM": 1,
        "MatMulIntegerToFloat": 1,
        "DynamicQuantizeMatMul": 1,
        "MatMulNBits": 1,
        "QLinearConv": 1,
    }
    assert {op: ops[op] for op in kernels} == kernels
    assert not {"MatMul", "LSTM", "Conv", "Gather"} & set(ops)
    assert ops["Gemm"] + ops["FusedGemm"] == 1
    assert share_changed_by_optimizing(bench, model) < 0.1
    assert largest_difference(bench.run(model), bench.run(bench.model.artifact)) < 0.25


def test_corrections_of_every_layer_arrive_together(bench_of: BenchOf) -> None:
    bench = bench_of(tagger)
    candidate = bench.uniform(FLOAT, but=EVERYTHING)
    variants = variants_of(bench, candidate)
    sizes = {"first": 32, "second": 32, "third": 32, "conv": 16, "fc": 10, "lstm": 2 * 64}
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        variants[name] = replace(variants[name], correction=rng.uniform(-0.02, 0.02, size).astype(np.float32))
    model = bench.build_from(candidate, variants)
    assert share_changed_by_optimizing(bench, model) < 0.1
    assert largest_difference(bench.run(model), bench.run(bench.model.artifact)) < 0.3


def test_each_layer_may_be_half_among_the_others(bench_of: BenchOf) -> None:
    bench = bench_of(tagger)
    for layer in bench.layer_names:
        candidate = bench.uniform(FLOAT, but={**EVERYTHING, layer: Choice.of("fp16")})
        model = bench.build_from(candidate, variants_of(bench, candidate))
        assert share_changed_by_optimizing(bench, model) < 0.1, layer
