from __future__ import annotations

import numpy as np
import pytest

from autoq.calibration.moments import Moments
from autoq.core.choices import FLOAT, Choice, Granularity
from autoq.core.errors import InfrastructureError
from autoq.core.layers import Layer
from autoq.variants.build import LayerBuilder
from autoq.variants.plain import restore
from autoq.variants.rounding import round_weights
from autoq.variants.variant import Variant, WeightChoice, variant_key

CONV = Layer("conv", "Conv", (6, 4, 3, 3), channel_axis=0)
MATMUL = Layer("fc", "MatMul", (40, 6), channel_axis=1)


def draw(layer: Layer) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(layer.weight_shape).astype(np.float32)


def build_variant(
    layer: Layer, weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]], choice: WeightChoice
) -> Variant:
    [variant] = LayerBuilder(layer, weight).build([choice])
    return variant


def test_a_float_variant_is_the_pruned_weight() -> None:
    weight = draw(CONV)
    plain = build_variant(CONV, weight, WeightChoice.of(FLOAT))
    np.testing.assert_array_equal(plain.weights, weight)
    assert plain.scales.shape == (0,)
    pruned = build_variant(CONV, weight, WeightChoice.of(Choice.of("fp32", sparsity=0.25)))
    assert (pruned.weights == 0).mean() == 0.25
    assert pruned.bundle_bytes < plain.bundle_bytes


def test_pruning_comes_before_rounding() -> None:
    weight = draw(CONV)
    variant = build_variant(CONV, weight, WeightChoice.of(Choice.of("int8", weight_bits=3, sparsity=0.5)))
    assert (variant.weights == 0).mean() >= 0.5
    smallest = np.sort(np.abs(weight).ravel())[weight.size // 2 - 1]
    assert (variant.weights[np.abs(weight) <= smallest] == 0).all()


def test_channels_run_along_the_axis_of_the_layer() -> None:
    variant = build_variant(MATMUL, draw(MATMUL), WeightChoice.of(Choice.of("int8")))
    assert variant.weights.shape == (40, 6)
    assert variant.scales.shape == (6,)
    expected, _ = round_weights(draw(MATMUL), 8, Granularity.CHANNEL, 1)
    np.testing.assert_array_equal(variant.weights, expected)


def test_blocks_run_along_the_inputs_whichever_axis_they_are_on() -> None:
    transposed = Layer("fc", "Gemm", (6, 40), channel_axis=0)
    choice = WeightChoice.of(Choice.of("int4_weight", granularity="block32"))
    from_matmul = build_variant(MATMUL, draw(MATMUL), choice)
    from_gemm = build_variant(transposed, np.ascontiguousarray(draw(MATMUL).T), choice)
    assert from_matmul.weights.shape == (6, 64)
    assert from_matmul.scales.shape == (6, 2)
    np.testing.assert_array_equal(from_matmul.weights, from_gemm.weights)
    np.testing.assert_array_equal(from_matmul.scales, from_gemm.scales)


@pytest.mark.parametrize("choice", [FLOAT, Choice.of("int8"), Choice.of("int8", granularity="tensor")])
def test_tensors_and_back_is_the_same_variant(choice: Choice) -> None:
    variant = build_variant(CONV, draw(CONV), WeightChoice.of(choice))
    same = Variant.from_tensors(variant.tensors())
    np.testing.assert_array_equal(same.weights, variant.weights)
    np.testing.assert_array_equal(same.scales, variant.scales)
    assert same.bundle_bytes == variant.bundle_bytes


def test_the_key_holds_what_weights_depend_on_and_nothing_else() -> None:
    minmax, entropy = Choice.of("int8"), Choice.of("int8", calibration="entropy")
    assert WeightChoice.of(minmax) == WeightChoice.of(entropy)
    keys = {
        variant_key(digest, "moments", WeightChoice.of(choice))
        for digest in ("one", "two")
        for choice in (
            FLOAT,
            minmax,
            Choice.of("int8", weight_bits=7),
            Choice.of("int8", granularity="tensor"),
            Choice.of("int8", sparsity=0.1),
            Choice.of("int8", sparsity=0.1, pruning="sparsegpt"),
            Choice.of("int8", rounding="gptq"),
            Choice.of("int8", weight_bits=7, grid="codebook"),
        )
    }
    assert len(keys) == 16
    plain = WeightChoice.of(minmax)
    assert variant_key("one", "moments", plain) != variant_key("one", "others", plain)


def moments_of(inputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Moments:
    """Of a matrix product's input vectors, (vectors, columns)."""
    halves = [inputs[0::2], inputs[1::2]]
    first, second = ((half.T @ half / len(half)).astype(np.float32)[None] for half in halves)
    return Moments(
        ((first,), (second,)), inputs.mean(axis=0, keepdims=True), (len(halves[0]), len(halves[1]))
    )


CORRELATED = (
    np.random.default_rng(1).standard_normal((500, 6)) @ np.random.default_rng(2).standard_normal((6, 40))
    + np.random.default_rng(3).standard_normal((500, 40)) * 0.1
    + 0.5
).astype(np.float32)
DEMANDING = [
    Choice.of("int8", weight_bits=4, rounding="gptq"),
    Choice.of("int8", weight_bits=3, rounding="adaround", granularity="tensor"),
    Choice.of("int8", weight_bits=3, grid="codebook"),
    Choice.of("int8", weight_bits=3, grid="codebook", rounding="gptq"),
    Choice.of("int4_weight", rounding="gptq"),
    Choice.of("int8", weight_bits=4, rounding="gptq", sparsity=0.5, pruning="sparsegpt"),
    Choice.of("int8", weight_bits=4, rounding="nearest", sparsity=0.5, pruning="sparsegpt"),
    Choice.of("int8", weight_bits=4, rounding="gptq", sparsity=0.5, pruning="magnitude"),
    Choice.of("int8", weight_bits=4, rounding="gptq", sparsity=0.5, pruning="sparsegpt", pattern="2:4"),
    Choice.of("fp32", sparsity=0.5, pruning="sparsegpt"),
]


def with_moments() -> LayerBuilder:
    return LayerBuilder(MATMUL, draw(MATMUL), lambda: moments_of(CORRELATED), "moments")


@pytest.mark.parametrize("choice", DEMANDING, ids=str)
def test_error_and_correction_are_those_of_the_real_inputs(choice: Choice) -> None:
    [variant] = with_moments().build([WeightChoice.of(choice)])
    restored = restore(MATMUL, variant.weights, variant.scales, WeightChoice.of(choice))
    changed = CORRELATED.astype(np.float64) @ (restored.astype(np.float64) - draw(MATMUL))
    if choice.format.is_float:  # a product without a bias of its own
        left = (changed**2).sum(axis=1).mean()
    else:
        np.testing.assert_allclose(variant.correction, -changed.mean(axis=0), atol=1e-4)
        left = ((changed + variant.correction) ** 2).sum(axis=1).mean()
    assert variant.error == pytest.approx(left, rel=1e-2)
    assert variant.energy == pytest.approx(((CORRELATED @ draw(MATMUL)) ** 2).sum(axis=1).mean(), rel=1e-3)


@pytest.mark.parametrize("choice", DEMANDING, ids=str)
def test_what_is_built_together_is_what_is_built_alone(choice: Choice) -> None:
    [alone] = with_moments().build([WeightChoice.of(choice)])
    together = with_moments().build([WeightChoice.of(one) for one in DEMANDING])[DEMANDING.index(choice)]
    np.testing.assert_array_equal(together.weights, alone.weights)
    np.testing.assert_array_equal(together.scales, alone.scales)


@pytest.mark.parametrize("choice", DEMANDING, ids=str)
def test_levels_and_zeros_are_as_many_as_asked(choice: Choice) -> None:
    [variant] = with_moments().build([WeightChoice.of(choice)])
    used = variant.weights if choice.granularity.block_size is None else variant.weights[:, :40]
    assert (used == 0).mean() >= choice.sparsity - 1e-9
    if not choice.format.is_float:
        assert len(np.unique(used)) <= 2**choice.weight_bits
    if choice.pattern.n_of_m == (2, 4):
        runs = variant.weights.T.reshape(6, 10, 4)
        assert (np.count_nonzero(runs, axis=2) <= 2).all()


def test_second_order_methods_err_less_than_the_plain_ones() -> None:
    plain = {"rounding": "nearest", "pruning": "magnitude"}
    for fields in ({}, {"sparsity": 0.5}):
        second = {"rounding": "gptq", "pruning": "sparsegpt"}
        choices = [Choice.of("int8", weight_bits=4, **fields, **how) for how in (second, plain)]
        better, worse = with_moments().build([WeightChoice.of(choice) for choice in choices])
        assert better.error < 0.6 * worse.error


def test_a_float_product_is_not_promised_a_correction() -> None:
    [variant] = with_moments().build([WeightChoice.of(Choice.of("fp32", sparsity=0.5))])
    changed = CORRELATED.astype(np.float64) @ (variant.weights.astype(np.float64) - draw(MATMUL))
    assert variant.correction.shape == (0,)
    assert variant.error == pytest.approx((changed**2).sum(axis=1).mean(), rel=1e-3)


def test_a_weight_that_half_precision_cannot_hold_has_no_finite_error() -> None:
    weight = draw(MATMUL)
    weight[0, 0] = 1e5
    [variant] = LayerBuilder(MATMUL, weight, lambda: moments_of(CORRELATED), "m").build(
        [WeightChoice.of(Choice.of("fp16"))]
    )
    assert variant.error == np.inf
    assert variant.correction.shape == (0,)


def test_damaged_moments_are_never_taken_for_none() -> None:
    builder = LayerBuilder(MATMUL, draw(MATMUL), lambda: None, "moments")
    with pytest.raises(InfrastructureError, match="'fc' are damaged"):
        builder.build([WeightChoice.of(DEMANDING[0])])


def test_without_moments_second_order_choices_fall_back_to_plain_ones() -> None:
    ways = ("gptq", "nearest")
    choices = [WeightChoice.of(Choice.of("int8", weight_bits=4, rounding=way)) for way in ways]
    first, second = LayerBuilder(MATMUL, draw(MATMUL)).build(choices)
    np.testing.assert_array_equal(first.weights, second.weights)
    assert first.correction.shape == (0,)
