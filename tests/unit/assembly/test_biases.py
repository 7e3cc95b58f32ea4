"""Corrected biases: the mean of what a layer puts out moves by the correction, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from autoq.core.choices import Candidate, Choice
from autoq.testing.bench import INT8, ModelBench
from autoq.testing.models import GraphBuilder, gru_classifier, tagger
from autoq.variants.variant import Variant

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]
Floats = npt.NDArray[np.float32]
N_IN, N_OUT = 32, 8

FORMATS = {
    "static": Choice.of("int8", weight_bits=3),
    "static per tensor": Choice.of("int8", weight_bits=4, granularity="tensor"),
    "dynamic": Choice.of("int8_dynamic", weight_bits=3),
    "blocks": Choice.of("int4_weight", weight_bits=3),
    "pruned": Choice.of("fp32", sparsity=0.5),
    "pruned half": Choice.of("fp16", sparsity=0.5),
}


@dataclass(frozen=True)
class Case:
    """One layer `fc` that reads values above zero, channels in the second axis or the last."""

    op: str
    has_bias: bool = True

    def build(self) -> onnx.ModelProto:
        net = GraphBuilder(seed=3)
        spatial = self.op in ("Conv", "ConvTranspose")
        shape = (
            ("batch", N_IN, 2, 2)
            if spatial
            else ("batch", 3, N_IN)
            if self.op == "MatMul"
            else ("batch", N_IN)
        )
        x = net.node("Relu", net.input("x", *shape))
        bias = [net.bias("fc.bias", N_OUT)] if self.has_bias else []
        if self.op == "Gemm":
            weight = net.weight("fc.weight", N_OUT, N_IN, fan_in=N_IN)
            y = net.node("Gemm", x, weight, *bias, transB=1)
        elif self.op == "MatMul":
            y = net.node("MatMul", x, net.weight("fc.weight", N_IN, N_OUT, fan_in=N_IN))
            y = net.node("Add", y, *bias) if bias else y
        else:
            rows = (N_OUT, N_IN) if self.op == "Conv" else (N_IN, N_OUT)
            y = net.node(self.op, x, net.weight("fc.weight", *rows, 1, 1, fan_in=N_IN), *bias)
        out = ("batch", 3, N_OUT) if self.op == "MatMul" else ("batch", N_OUT, *shape[2:])
        return net.build(y=(y, out))

    def per_channel(self, values: Floats) -> npt.NDArray[np.float64]:
        """Mean of a tensor over everything but its channels."""
        axis = values.ndim - 1 if self.op == "MatMul" else 1
        mean: npt.NDArray[np.float64] = values.mean(
            axis=tuple(a for a in range(values.ndim) if a != axis), dtype=np.float64
        )
        return mean

    def rows(self, weight: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """Weights as (outputs, inputs)."""
        matrix = weight.astype(np.float64).reshape(weight.shape[:2])
        return matrix.T if self.op in ("MatMul", "ConvTranspose") else matrix


CASES = {
    f"{op} {'with' if has_bias else 'without'} a bias": Case(op, has_bias)
    for op in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    for has_bias in (True, False)
}


def possible(case: Case, choice: Choice) -> bool:
    is_product = case.op in ("Gemm", "MatMul")
    has_place = not choice.format.is_float or case.op != "MatMul" or case.has_bias
    return has_place and (is_product or choice.format.is_static or choice.format.is_float)


PAIRS = [(name, fmt) for name, case in CASES.items() for fmt in FORMATS if possible(case, FORMATS[fmt])]

# A ConvTranspose has no integer kernel: its DequantizeLinear nodes stay, that of the bias included.
FUSED = [(n, f) for n, f in PAIRS if not FORMATS[f].format.is_float and CASES[n].op != "ConvTranspose"]


def variant_of(bench: ModelBench, choice: Choice) -> tuple[Candidate, Variant]:
    candidate = Candidate.of({"fc": choice})
    return candidate, replace(bench.stitcher.variants(candidate)["fc"], correction=np.zeros(0, np.float32))


def restored(case: Case, variant: Variant) -> npt.NDArray[np.float64]:
    """Float weights that a variant stands for, as (outputs, inputs)."""
    if not variant.scales.size:
        return case.rows(variant.weights.astype(np.float16).astype(np.float32))
    if variant.scales.ndim == 2:  # one block of 32
        return variant.weights.astype(np.float64) * variant.scales
    return case.rows(variant.weights) * variant.scales.reshape(-1, 1)


@pytest.mark.parametrize(("name", "fmt"), PAIRS)
def test_correcting_takes_the_error_out_of_the_mean(name: str, fmt: str, bench_of: BenchOf) -> None:
    case, choice = CASES[name], FORMATS[fmt]
    bench = bench_of(case.build)
    candidate, variant = variant_of(bench, choice)
    mean = case.per_channel(np.maximum(bench.calibration["x"], 0.0))
    weight = next(t for t in case.build().graph.initializer if t.name == "fc.weight")
    lost = case.rows(onnx.numpy_helper.to_array(weight)) - restored(case, variant)
    correction = (lost @ mean).astype(np.float32)

    def mean_of(model: Variant | None) -> npt.NDArray[np.float64]:
        artifact = bench.model.artifact if model is None else bench.build_from(candidate, {"fc": model})
        return case.per_channel(bench.run(artifact)["y"])

    right, before = mean_of(None), mean_of(variant)
    after = mean_of(replace(variant, correction=correction))
    assert np.abs(correction).max() > 0.05  # there is something to correct
    assert np.abs(after - right).max() < 0.25 * np.abs(before - right).max()
    assert np.linalg.norm(after - before - correction) < 0.1 * np.linalg.norm(correction)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(("name", "fmt"), FUSED)
def test_corrected_layers_run_in_the_same_kernels(
    name: str, fmt: str, optimize: bool, bench_of: BenchOf
) -> None:
    bench = bench_of(CASES[name].build)
    candidate, variant = variant_of(bench, FORMATS[fmt])
    corrected = replace(variant, correction=np.linspace(-0.3, 0.4, N_OUT, dtype=np.float32))
    plain = bench.build_from(candidate, {"fc": variant})
    model = bench.build_from(candidate, {"fc": corrected})
    assert bench.fused_ops(model) == bench.fused_ops(plain)
    assert bench.run(model, optimize=optimize)["y"].shape == bench.run(plain)["y"].shape
    assert model.content is not None
    onnx.checker.check_model(onnx.load_from_string(model.content))


@pytest.mark.parametrize(("name", "fmt"), PAIRS)
def test_a_correction_of_zeros_changes_no_byte(name: str, fmt: str, bench_of: BenchOf) -> None:
    bench = bench_of(CASES[name].build)
    candidate, variant = variant_of(bench, FORMATS[fmt])
    zeros = replace(variant, correction=np.zeros(N_OUT, np.float32))
    first, second = (bench.build_from(candidate, {"fc": one}).content for one in (variant, zeros))
    assert first == second


@pytest.mark.parametrize("fmt", ["pruned", "pruned half"])
def test_a_float_matmul_without_a_bias_has_no_place_for_a_correction(fmt: str, bench_of: BenchOf) -> None:
    bench = bench_of(CASES["MatMul without a bias"].build)
    candidate, variant = variant_of(bench, FORMATS[fmt])
    corrected = replace(variant, correction=np.ones(N_OUT, np.float32))
    first, second = (bench.build_from(candidate, {"fc": one}).content for one in (variant, corrected))
    assert first == second


def sharing(op: str) -> onnx.ModelProto:
    """Two layers of one input with a bias in common."""
    net = GraphBuilder()
    x, bias = net.input("x", "batch", 3, 16), net.bias("shared.bias", 6)
    if op == "Gemm":
        x = net.node("Flatten", x)
    outputs = []
    for name in ("left", "right"):
        weight = net.weight(f"{name}.weight", 48 if op == "Gemm" else 16, 6, fan_in=16)
        terms = [x, weight, bias] if op == "Gemm" else [net.node("MatMul", x, weight), bias]
        outputs.append(net.node("Gemm" if op == "Gemm" else "Add", *terms))
    shape = ("batch", 6) if op == "Gemm" else ("batch", 3, 6)
    return net.build(left=(outputs[0], shape), right=(outputs[1], shape))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_another_reader_of_the_bias_does_not_see_the_correction(op: str, fmt: str, bench_of: BenchOf) -> None:
    bench = bench_of(partial(sharing, op))
    candidate = Candidate.of({"left": FORMATS[fmt]})
    variants = dict(bench.stitcher.variants(candidate))
    variants["left"] = replace(variants["left"], correction=np.full(6, 0.5, np.float32))
    outputs, plain = bench.run(bench.build_from(candidate, variants)), bench.run(bench.model.artifact)
    np.testing.assert_allclose(outputs["right"], plain["right"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_scale", [0.0, 1e-9])
def test_a_correction_far_larger_than_the_weights_of_its_channel_survives(
    weight_scale: float, bench_of: BenchOf
) -> None:
    """It fits the bias's int32 only after the scale of the channel was raised."""
    bench = bench_of(Case("Gemm", has_bias=False).build)
    choice = Choice.of("int8", weight_bits=INT8.weight_bits)
    candidate, variant = variant_of(bench, choice)
    scales = variant.scales.copy()
    scales[2] *= np.float32(max(weight_scale, 1e-9))
    weights = variant.weights.copy()
    weights[2] *= weight_scale != 0.0
    correction = np.zeros(N_OUT, np.float32)
    correction[2] = 0.7
    model = bench.build_from(
        candidate, {"fc": replace(variant, weights=weights, scales=scales, correction=correction)}
    )
    np.testing.assert_allclose(bench.run(model)["y"][:, 2], 0.7, rtol=0.01)


@pytest.mark.parametrize(("build", "layer"), [(tagger, "lstm"), (gru_classifier, "gru")])
def test_a_recurrence_is_corrected_in_the_bias_that_goes_with_its_inputs(
    build: Callable[[], onnx.ModelProto], layer: str, bench_of: BenchOf
) -> None:
    bench = bench_of(build)
    candidate = Candidate.of({layer: Choice.of("fp32", sparsity=0.1)})
    variants = dict(bench.stitcher.variants(candidate))
    (proto,) = (t for t in build().graph.initializer if t.name == f"{layer}.bias")
    bias = onnx.numpy_helper.to_array(proto)
    n_rows = bias.shape[1] // 2
    correction = np.linspace(-1.0, 1.0, bias.shape[0] * n_rows, dtype=np.float32)
    variants[layer] = replace(variants[layer], correction=correction)
    content = bench.build_from(candidate, variants).content
    assert content is not None
    graph = onnx.load_from_string(content).graph
    (node,) = (node for node in graph.node if node.name == layer)
    (stored,) = (t for t in graph.initializer if t.name == node.input[3])
    expected = bias.copy()
    expected[:, :n_rows] += correction.reshape(-1, n_rows)
    np.testing.assert_allclose(onnx.numpy_helper.to_array(stored), expected, rtol=1e-6, atol=1e-6)
