from __future__ import annotations

import numpy as np
import pytest

from autoq.core.choices import FLOAT, Choice, Granularity
from autoq.core.layers import Layer
from autoq.variants.rounding import round_weights
from autoq.variants.variant import Variant, WeightChoice, build_variant, variant_key

CONV = Layer("conv", "Conv", (6, 4, 3, 3), channel_axis=0)
MATMUL = Layer("fc", "MatMul", (40, 6), channel_axis=1)


def draw(layer: Layer) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(layer.weight_shape).astype(np.float32)


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
        variant_key(digest, WeightChoice.of(choice))
        for digest in ("one", "two")
        for choice in (
            FLOAT,
            minmax,
            Choice.of("int8", weight_bits=7),
            Choice.of("int8", granularity="tensor"),
            Choice.of("int8", sparsity=0.1),
        )
    }
    assert len(keys) == 10
