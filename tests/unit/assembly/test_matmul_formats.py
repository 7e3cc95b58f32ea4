"""Matrix products: what each format computes, compared with the same arithmetic in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from autoq.core.choices import Candidate, Choice
from autoq.core.quantization import ActivationParams, activation_params, dequantize, quantize
from autoq.targets.cpu import this_cpu
from autoq.testing.bench import INT8, ModelBench
from autoq.testing.models import GraphBuilder
from autoq.variants.variant import Variant

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """One layer `fc`: how it is written, and the shape of what it reads."""

    op: str
    leading: tuple[int | str, ...] = ("batch",)
    n_inputs: int = 64
    n_outputs: int = 12
    has_bias: bool = True
    is_transposed: bool = False

    def build(self) -> onnx.ModelProto:
        net = GraphBuilder(seed=4)
        x = net.input("x", *self.leading, self.n_inputs)
        shape = (self.n_inputs, self.n_outputs)
        shape = shape[::-1] if self.is_transposed else shape
        weight = net.weight("fc.weight", *shape, fan_in=self.n_inputs)
        bias = [net.bias("fc.bias", self.n_outputs)] if self.has_bias else []
        if self.op == "Gemm":
            y = net.node("Gemm", x, weight, *bias, transB=int(self.is_transposed))
        else:
            y = net.node("MatMul", x, weight)
            y = net.node("Add", *([y, *bias] if len(self.leading) == 1 else [*bias, y])) if bias else y
        return net.build(y=(y, (*self.leading, self.n_outputs)))


GEMMS = {
    "a Gemm": Product("Gemm"),
    "a transposed Gemm": Product("Gemm", is_transposed=True),
    "a Gemm without a bias": Product("Gemm", has_bias=False, is_transposed=True),
    "a Gemm of odd size": Product("Gemm", n_inputs=37, n_outputs=5, is_transposed=True),
}
MATMULS = {
    "a MatMul of rank 2": Product("MatMul"),
    "a MatMul of rank 2 without a bias": Product("MatMul", has_bias=False),
    "a MatMul of rank 3": Product("MatMul", ("batch", "length")),
    "a MatMul of rank 3 without a bias": Product("MatMul", ("batch", "length"), has_bias=False),
    "a MatMul of static rank 3": Product("MatMul", (2, 5)),
    "a MatMul of odd size": Product("MatMul", ("batch", 3), n_inputs=37, n_outputs=5),
    "a MatMul of one block and one": Product("MatMul", ("batch", 3), n_inputs=33),
}
PRODUCTS = {**GEMMS, **MATMULS}


def prepare(product: Product, choice: Choice, bench_of: BenchOf) -> tuple[ModelBench, Candidate, Variant]:
    bench = bench_of(product.build)
    candidate = Candidate.of({"fc": choice})
    return bench, candidate, bench.stitcher.variants(candidate)["fc"]


def real_weight(product: Product, variant: Variant) -> npt.NDArray[np.float64]:
    """Dequantised weights as (inputs, outputs)."""
    weights = variant.weights.astype(np.float64)
    if variant.scales.ndim == 2:  # blocks
        n_blocks = variant.scales.shape[1]
        blocks = weights.reshape(len(weights), n_blocks, -1) * variant.scales[..., None]
        return blocks.reshape(len(weights), -1)[:, : product.n_inputs].T
    if product.is_transposed:
        weights = weights.T
    return weights * variant.scales


def bias_of(product: Product, variant: Variant) -> npt.NDArray[np.float64]:
    """The layer's own bias and the correction of its rounding."""
    bias = np.zeros(product.n_outputs)
    bias[:] += variant.correction if variant.correction.size else 0.0
    for tensor in product.build().graph.initializer:
        if tensor.name == "fc.bias":
            bias += onnx.numpy_helper.to_array(tensor)
    return bias


def round_trip(values: Floats, params: ActivationParams) -> npt.NDArray[np.float64]:
    return dequantize(quantize(values, params), params).astype(np.float64)


def assert_close(found: Floats, expected: npt.NDArray[np.float64], tolerance: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [INT8.weight_bits, 4, 2])
@pytest.mark.parametrize("name", PRODUCTS)
def test_static_products_are_the_arithmetic_of_their_grids(
    name: str, bits: int, granularity: str, bench_of: BenchOf
) -> None:
    product = PRODUCTS[name]
    choice = Choice.of("int8", weight_bits=bits, granularity=granularity)
    bench, candidate, variant = prepare(product, choice, bench_of)
    model = bench.build(candidate)
    params = bench.stitcher.plan(candidate).params["x"]
    x = round_trip(bench.calibration["x"], params)
    is_gemm = product.op == "Gemm" or (product.has_bias and len(product.leading) == 1)
    bias = bias_of(product, variant)
    if is_gemm:  # its bias is an integer on the grid of the sums
        sums = params.scale * variant.scales.astype(np.float64)
        bias = np.rint(bias / sums) * sums
    expected = x @ real_weight(product, variant) + bias
    for optimize in (True, False):
        assert_close(bench.run(model, optimize=optimize)["y"], expected, 1e-5)
    ops = bench.fused_ops(model)
    assert ops["QGemm" if is_gemm else "MatMulIntegerToFloat"] == 1
    assert not {"Gemm", "MatMul", "DequantizeLinear", "Add"} & set(ops)


@pytest.mark.parametrize("name", ["a MatMul of static rank 3", "a MatMul of rank 3", "a Gemm"])
def test_signed_static_products_load_and_compute_the_same(name: str, bench_of: BenchOf) -> None:
    """Fused from Q/DQ, signed inputs at static rank 3 fail at session creation."""
    product = PRODUCTS[name]
    choice = Choice.of("int8_s8", weight_bits=INT8.weight_bits)
    bench, candidate, variant = prepare(product, choice, bench_of)
    params = bench.stitcher.plan(candidate).params["x"]
    assert params.signed
    expected = round_trip(bench.calibration["x"], params) @ real_weight(product, variant) + bias_of(
        product, variant
    )
    assert_close(bench.run(bench.build(candidate))["y"], expected, 1e-4)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [INT8.weight_bits, 4])
@pytest.mark.parametrize("name", PRODUCTS)
def test_dynamic_products_take_the_range_of_the_batch(
    name: str, bits: int, granularity: str, bench_of: BenchOf
) -> None:
    product = PRODUCTS[name]
    choice = Choice.of("int8_dynamic", weight_bits=bits, granularity=granularity)
    bench, candidate, variant = prepare(product, choice, bench_of)
    model = bench.build(candidate)
    x = bench.calibration["x"]
    params = activation_params(float(x.min()), float(x.max()), signed=False)
    expected = round_trip(x, params) @ real_weight(product, variant) + bias_of(product, variant)
    # A value on the edge of two steps may fall on either side.
    step = params.scale * np.abs(real_weight(product, variant)).max()
    assert np.abs(bench.run(model)["y"] - expected).max() <= 1.01 * step + 1e-4
    assert np.median(np.abs(bench.run(model)["y"] - expected)) <= 1e-4
    assert bench.fused_ops(model) == {"DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize("block", ["block32", "block64", "block128"])
@pytest.mark.parametrize(
    ("fmt", "bits"), [("int8_weight", 8), ("int8_weight", 5), ("int4_weight", 4), ("int4_weight", 3)]
)
@pytest.mark.parametrize("name", PRODUCTS)
def test_weight_only_products_unpack_their_blocks(
    name: str, fmt: str, bits: int, block: str, bench_of: BenchOf
) -> None:
    product = PRODUCTS[name]
    choice = Choice.of(fmt, weight_bits=bits, granularity=block)
    bench, candidate, variant = prepare(product, choice, bench_of)
    model = bench.build(candidate)
    expected = bench.calibration["x"].astype(np.float64) @ real_weight(product, variant) + bias_of(
        product, variant
    )
    # Accuracy level 4 rounds the inputs to 8 bits, block by block.
    assert_close(bench.run(model)["y"], expected, 0.02)
    (node,) = bench.optimized(model).graph.node
    assert node.op_type == "MatMulNBits"
    # Without it 8-bit weights run at a twenty-fifth of the speed.
    assert [one.i for one in node.attribute if one.name == "accuracy_level"] == [4]


@pytest.mark.parametrize("fmt", ["int8_weight", "int4_weight"])
def test_weight_only_layers_store_what_they_promise(fmt: str, bench_of: BenchOf) -> None:
    product = Product("Gemm", n_inputs=512, n_outputs=256, is_transposed=True)
    bench, candidate, _ = prepare(product, Choice.of(fmt, granularity="block128"), bench_of)
    n_weights = product.n_inputs * product.n_outputs
    bits = 8 if fmt == "int8_weight" else 4
    assert bench.build(candidate).size_bytes == pytest.approx(n_weights * (bits + 32 / 128) / 8, rel=0.03)


@pytest.mark.parametrize("fmt", ["int8_outlier", "int8_dynamic", "int8_weight", "int4_weight", "int8"])
def test_the_output_keeps_its_name_and_the_bias_add_is_gone(fmt: str, bench_of: BenchOf) -> None:
    bench, candidate, _ = prepare(MATMULS["a MatMul of rank 3"], Choice.of(fmt), bench_of)
    model = bench.build(candidate)
    assert list(bench.run(model)) == ["y"]
    assert model.content is not None
    assert "Add" not in {node.op_type for node in onnx.load_from_string(model.content).graph.node}


@pytest.mark.parametrize("fmt", ["int8_outlier", "int8_dynamic", "int8_weight", "int4_weight", "int8"])
def test_any_number_of_rows_runs(fmt: str, bench_of: BenchOf) -> None:
    bench, candidate, _ = prepare(MATMULS["a MatMul of rank 3"], Choice.of(fmt), bench_of)
    model = bench.build(candidate)
    x = np.random.default_rng(0).standard_normal((3, 7, 64)).astype(np.float32)
    reference = bench.run(bench.model.artifact, feed={"x": x})["y"]
    assert np.abs(bench.run(model, feed={"x": x})["y"] - reference).max() < 0.3 * np.abs(reference).max()


def test_the_bias_may_stand_on_either_side_of_the_add(bench_of: BenchOf) -> None:
    def build(*, swapped: bool) -> onnx.ModelProto:
        net = GraphBuilder()
        product = net.node(
            "MatMul", net.input("x", "batch", 3, 32), net.weight("fc.weight", 32, 4, fan_in=32)
        )
        terms = [product, net.bias("fc.bias", 4)]
        return net.build(y=(net.node("Add", *(terms[::-1] if swapped else terms)), ("batch", 3, 4)))

    left, right = bench_of(partial(build, swapped=False)), bench_of(partial(build, swapped=True))
    for choice in (INT8, Choice.of("int8_outlier"), Choice.of("int8_dynamic"), Choice.of("int4_weight")):
        candidate = Candidate.of({"fc": choice})
        first, second = (bench.run(bench.build(candidate))["y"] for bench in (left, right))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("bits", "methods"),
    [
        (INT8.weight_bits, {}),
        (4, {"rounding": "gptq"}),
        (2, {"rounding": "gptq", "grid": "codebook"}),
        (3, {"grid": "codebook"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_that_keeps_outliers_is_the_sum_of_both_parts(
    name: str, bits: int, methods: dict[str, str], bench_of: BenchOf
) -> None:
    if this_cpu().saturates and "grid" in methods:
        pytest.skip("codebooks are refused where u8 x s8 saturates")
    product = PRODUCTS[name]
    choice = Choice.of("int8_outlier", weight_bits=bits, **methods)
    bench, candidate, variant = prepare(product, choice, bench_of)
    outliers = bench.stitcher.plan(candidate).outliers["x"]
    x, channels = bench.calibration["x"], list(outliers.channels)
    rounded, weight = real_weight(product, variant), float_weight(product)
    assert len(channels) == 4
    assert not rounded[channels].any()
    assert rounded.any()
    expected = round_trip(x, outliers.params) @ rounded
    expected += x[..., channels].astype(np.float64) @ weight[channels]
    model = bench.build(candidate)
    for optimize in (True, False):
        assert_close(bench.run(model, optimize=optimize)["y"], expected + bias_of(product, variant), 1e-5)


def float_weight(product: Product) -> npt.NDArray[np.float64]:
    """The float weights as (inputs, outputs)."""
    [weight] = (tensor for tensor in product.build().graph.initializer if tensor.name == "fc.weight")
    array = onnx.numpy_helper.to_array(weight).astype(np.float64)
    return array.T if product.is_transposed else array


def test_what_an_outlier_is_does_not_touch_the_integers(bench_of: BenchOf) -> None:
    """Far beyond the range of all others it still counts for what it is."""
    product = MATMULS["a MatMul of rank 3"]
    bench, candidate, _ = prepare(product, Choice.of("int8_outlier"), bench_of)
    model, channel = bench.build(candidate), bench.stitcher.plan(candidate).outliers["x"].channels[1]
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 3, 64)).astype(np.float32)
    far = x.copy()
    far[..., channel] += 1000.0
    moved = bench.run(model, feed={"x": far})["y"] - bench.run(model, feed={"x": x})["y"]
    row = float_weight(product)[channel]
    np.testing.assert_allclose(moved, np.broadcast_to(1000.0 * row, moved.shape), rtol=1e-4, atol=1e-3)


def outlying(*, scale: float = 40.0) -> onnx.ModelProto:
    """Two layers that read one tensor, four channels of which are much larger than the rest."""
    net = GraphBuilder(seed=3)
    x = net.input("x", "batch", 5, 64)
    large = np.ones(64, np.float32)
    large[[3, 17, 18, 60]] = scale
    x = net.node("Mul", x, net.constant("gains", large))
    both = [net.linear(x, name, 64, 16) for name in ("left", "right")]
    return net.build(y=(net.node("Concat", *both, axis=-1), ("batch", 5, 32)))


def test_layers_that_read_one_tensor_share_its_split(bench_of: BenchOf) -> None:
    bench = bench_of(outlying)
    keeping = bench.uniform(Choice.of("int8_outlier", weight_bits=INT8.weight_bits))
    ops = bench.fused_ops(bench.build(keeping))
    assert (ops["QuantizeLinear"], ops["Gather"], ops["MatMulIntegerToFloat"]) == (1, 1, 2)
    mixed = bench.uniform(INT8, but={"right": Choice.of("int8_outlier", weight_bits=INT8.weight_bits)})
    ops = bench.fused_ops(bench.build(mixed))
    assert (ops["QuantizeLinear"], ops["Gather"], ops["MatMulIntegerToFloat"]) == (2, 1, 2)


def test_outliers_cost_the_bundle_their_floats_and_the_layer_its_own_energy(bench_of: BenchOf) -> None:
    bench = bench_of(outlying)
    plain, keeping = INT8, Choice.of("int8_outlier", weight_bits=INT8.weight_bits)
    variants = [bench.stitcher.variants(bench.uniform(choice))["left"] for choice in (plain, keeping)]
    assert variants[1].energy == variants[0].energy
    assert variants[1].bundle_bytes > variants[0].bundle_bytes + 4 * 16  # 4 rows of 16 floats, packed


def test_where_nothing_is_known_by_channel_no_outlier_is_kept(bench_of: BenchOf) -> None:
    """A convolution and a product read one tensor, each along another axis."""

    def build() -> onnx.ModelProto:
        net = GraphBuilder(seed=5)
        x = net.node("Relu", net.input("x", "batch", 32, 32))
        left = net.node("Conv", x, net.weight("conv.weight", 8, 32, 1, fan_in=32))
        right = net.node("MatMul", x, net.weight("fc.weight", 32, 16, fan_in=32))
        return net.build(left=(left, ("batch", 8, 32)), right=(right, ("batch", 32, 16)))

    bench = bench_of(build)
    candidate = Candidate.of({"fc": Choice.of("int8_outlier", weight_bits=INT8.weight_bits)})
    source = next(iter(bench.stitcher.plan(candidate).outliers))
    assert bench.stitcher.plan(candidate).outliers[source].channels == ()
    model = bench.build(candidate)
    ops = bench.fused_ops(model)
    assert (ops["MatMulIntegerToFloat"], ops["Gather"], ops["Sum"]) == (1, 0, 0)
    floats = bench.run(bench.model.artifact)["right"]
    assert np.abs(bench.run(model)["right"] - floats).max() < 0.05 * np.abs(floats).max()
    assert bench.stitcher.local_error("fc", candidate.by_layer["fc"]).activation > 0.0


def test_keeping_outliers_saves_most_of_what_static_int8_loses_to_them(bench_of: BenchOf) -> None:
    bench = bench_of(outlying)
    floats = bench.run(bench.model.artifact)["y"]

    def lost(choice: Choice) -> float:
        return float(np.square(bench.run(bench.build(bench.uniform(choice)))["y"] - floats).mean())

    plain, keeping = INT8, Choice.of("int8_outlier", weight_bits=INT8.weight_bits)
    assert lost(keeping) < 0.02 * lost(plain)
    told = [bench.stitcher.local_error("left", choice).activation for choice in (plain, keeping)]
    assert told[1] < 0.02 * told[0]
    params = bench.stitcher.plan(bench.uniform(keeping)).outliers
    [split] = params.values()
    [weight] = (one for one in outlying().graph.initializer if one.name == "left.weight")
    rest = np.delete(onnx.numpy_helper.to_array(weight), split.channels, axis=0)
    assert told[1] == pytest.approx(split.params.scale**2 / 12 * np.square(rest, dtype=np.float64).sum())


@pytest.mark.parametrize("fmt", ["int8_weight", "int8_outlier", "int8"])
def test_what_rounding_the_input_costs_is_foretold(fmt: str, bench_of: BenchOf) -> None:
    """Weights of 8 bits lose far less here than inputs with outliers do."""
    bench = bench_of(partial(outlying, scale=10.0))
    choice = Choice.of(fmt, weight_bits=None if fmt == "int8_weight" else INT8.weight_bits)
    error = bench.stitcher.local_error("left", choice)
    floats = bench.run(bench.model.artifact)["y"][..., :16]
    rounded = bench.run(bench.build(bench.uniform(choice)))["y"][..., :16]
    measured = float(np.square(rounded - floats, dtype=np.float64).sum(axis=-1).mean())
    assert error.activation > 0.0
    assert 0.3 < (error.weight + error.activation) / measured < 6.0
