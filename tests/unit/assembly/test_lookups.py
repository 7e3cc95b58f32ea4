"""Embeddings in blocks of integers, compared with rows of a table that was dequantised by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto

from autoq.core.choices import FLOAT, Candidate, Choice
from autoq.core.errors import TrialError
from autoq.testing.bench import INT8, ModelBench, largest_difference
from autoq.testing.models import N_TOKENS, GraphBuilder, tied_embedding
from autoq.variants.variant import Variant

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]


def lookup(n_columns: int, dtype: int = TensorProto.INT64, n_rows: int = N_TOKENS) -> onnx.ModelProto:
    net = GraphBuilder(seed=n_columns)
    rows = net.input("rows", "batch", "length", dtype=dtype)
    x = net.node("Gather", net.weight("embedding.weight", n_rows, n_columns, fan_in=2), rows)
    # A layer beside it, so that there is something to calibrate.
    tag = net.linear(x, "fc", n_columns, 2)
    return net.build(y=(x, ("batch", "length", n_columns)), tag=(tag, ("batch", "length", 2)))


def dequantized(variant: Variant, n_columns: int) -> npt.NDArray[np.float64]:
    """The table, one weight after the other."""
    n_rows, n_blocks = variant.scales.shape
    block_size = variant.weights.shape[1] // n_blocks
    table = np.zeros((n_rows, n_columns))
    for row in range(n_rows):
        for column in range(n_columns):
            scale = variant.scales[row, column // block_size]
            table[row, column] = float(variant.weights[row, column]) * float(scale)
    return table


@pytest.mark.parametrize("n_columns", [16, 20, 32, 48, 130])
@pytest.mark.parametrize("block", ["block32", "block64", "block128"])
@pytest.mark.parametrize(
    ("fmt", "bits"), [("int8_weight", 8), ("int8_weight", 5), ("int4_weight", 4), ("int4_weight", 2)]
)
def test_rows_are_those_of_the_dequantised_table(
    fmt: str, bits: int, block: str, n_columns: int, bench_of: BenchOf
) -> None:
    bench = bench_of(partial(lookup, n_columns))
    candidate = Candidate.of({"embedding": Choice.of(fmt, weight_bits=bits, granularity=block)})
    model = bench.build(candidate)
    table = dequantized(bench.stitcher.variants(candidate)["embedding"], n_columns)
    rows = np.array([[0, 3, -1], [N_TOKENS - 1, -N_TOKENS, 3]])
    for optimize in (True, False):
        found = bench.run(model, optimize=optimize, feed={"rows": rows})["y"]
        np.testing.assert_allclose(found, table[rows], rtol=1e-6, atol=1e-6)
    ops = bench.fused_ops(model)
    assert (ops["GatherBlockQuantized"], ops["Gather"]) == (1, 0)


def test_rows_of_an_odd_number_of_columns_hold_8_bits_and_not_4(bench_of: BenchOf) -> None:
    bench = bench_of(partial(lookup, 33))
    model = bench.build(Candidate.of({"embedding": Choice.of("int8_weight")}))
    assert largest_difference(bench.run(model), bench.run(bench.model.artifact)) < 0.01
    with pytest.raises(TrialError, match="'embedding' has rows of 33 columns"):
        bench.build(Candidate.of({"embedding": Choice.of("int4_weight")}))


@pytest.mark.parametrize("choice", [INT8, Choice.of("int8_dynamic")], ids=str)
def test_formats_without_a_kernel_are_refused_with_the_layer(choice: Choice, bench_of: BenchOf) -> None:
    bench = bench_of(partial(lookup, 32))
    with pytest.raises(TrialError, match=r"layer 'embedding' cannot be int8.*no such kernel for Gather"):
        bench.build(Candidate.of({"embedding": choice}))


@pytest.mark.parametrize("fmt", ["int8_weight", "int4_weight"])
def test_narrow_indices_and_single_rows_are_looked_up_too(fmt: str, bench_of: BenchOf) -> None:
    def single() -> onnx.ModelProto:
        net = GraphBuilder()
        row = net.input("row", 1, dtype=TensorProto.INT64)
        row = net.node("Squeeze", row, net.constant("axis", [0], np.int64))
        x = net.node("Gather", net.weight("embedding.weight", N_TOKENS, 32, fan_in=2), row)
        x = net.node("Unsqueeze", x, net.constant("first", [0], np.int64))
        return net.build(y=(net.gemm(x, "fc", 32, 4), (1, 4)))

    for build in (single, partial(lookup, 32, TensorProto.INT32)):
        proto = build()
        bench = bench_of(build)
        shape = (1,) if build is single else (2, 3)
        dtype = np.int64 if build is single else np.int32
        feed = {proto.graph.input[0].name: np.full(shape, 5, dtype)}
        model = bench.build(Candidate.of({"embedding": Choice.of(fmt)}))
        found, plain = bench.run(model, feed=feed), bench.run(bench.model.artifact, feed=feed)
        assert largest_difference(found, plain) < 0.3


@pytest.mark.parametrize(("fmt", "bits"), [("int8_weight", 8), ("int4_weight", 4)])
def test_the_file_holds_what_the_bits_promise(fmt: str, bits: int, bench_of: BenchOf) -> None:
    bench = bench_of(partial(lookup, 128, TensorProto.INT64, 512))
    model = bench.build(Candidate.of({"embedding": Choice.of(fmt, granularity="block128")}))
    assert model.size_bytes == pytest.approx(512 * 128 * (bits + 32 / 128) / 8, rel=0.06)


@pytest.mark.parametrize("fmt", ["int8_weight", "int4_weight", "fp16"])
def test_a_tied_projection_keeps_the_float_table(fmt: str, bench_of: BenchOf) -> None:
    bench = bench_of(tied_embedding)
    assert bench.layer_names == ["embedding", "hidden", "embedding_2"]
    model = bench.build(bench.uniform(FLOAT, but={"embedding": Choice.of(fmt)}))
    assert model.content is not None
    tensors = {t.name: t for t in onnx.load_from_string(model.content).graph.initializer}
    assert tensors["embedding.weight"].data_type == TensorProto.FLOAT
    assert largest_difference(bench.run(model), bench.run(bench.model.artifact)) < 0.2


def test_a_tied_projection_may_be_compressed_without_its_table_or_with_it(bench_of: BenchOf) -> None:
    bench = bench_of(tied_embedding)
    plain = bench.run(bench.model.artifact)
    for choices in ({}, {"embedding": Choice.of("int8_weight")}):
        model = bench.build(Candidate.of({"embedding_2": INT8, **choices}))
        assert bench.fused_ops(model)["QGemm"] == 1
        assert largest_difference(bench.run(model), plain) < 0.1
        assert model.content is not None
        kept = {t.name for t in onnx.load_from_string(model.content).graph.initializer}
        assert ("embedding.weight" in kept) is not bool(choices)


def test_two_lookups_in_one_table_may_differ(bench_of: BenchOf) -> None:
    def twice() -> onnx.ModelProto:
        net = GraphBuilder()
        table = net.weight("embedding.weight", N_TOKENS, 32, fan_in=2)
        found = [
            net.node("Gather", table, net.input(name, "batch", dtype=TensorProto.INT64))
            for name in ("left", "right")
        ]
        y = net.node("Sub", *found)
        return net.build(y=(y, ("batch", 32)), tag=(net.gemm(y, "fc", 32, 2), ("batch", 2)))

    bench = bench_of(twice)
    assert bench.layer_names == ["embedding", "embedding_2", "fc"]
    rows = np.arange(N_TOKENS)
    for choices in ({}, {"embedding_2": Choice.of("int4_weight")}, {"embedding_2": Choice.of("int8_weight")}):
        model = bench.build(Candidate.of({"embedding": Choice.of("int8_weight"), **choices}))
        difference = bench.run(model, feed={"left": rows, "right": rows})["y"]
        if choices and choices["embedding_2"].weight_bits == 8:
            np.testing.assert_array_equal(difference, 0.0)
        else:
            assert 0.0 < np.abs(difference).max() < 0.5
