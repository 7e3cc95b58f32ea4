"""Integer models compared with the obvious simulation: float arithmetic on rounded numbers, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from autoq.core.choices import Candidate, Choice
from autoq.core.quantization import ActivationParams
from autoq.testing.bench import INT8, ModelBench
from autoq.testing.models import batchnorm_cnn, mlp

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]
Reals = npt.NDArray[np.float64]

CHOICES = [
    INT8,
    Choice.of("int8", weight_bits=4, calibration="mse"),
    Choice.of("int8", weight_bits=5, granularity="tensor", calibration="percentile99.9"),
    Choice.of("int8_s8", weight_bits=INT8.weight_bits, calibration="entropy"),
    Choice.of("int8", weight_bits=3, sparsity=0.5),
]


class Simulation:
    """Rounds activations, weights and biases of one candidate as the deployed model should."""

    def __init__(self, bench: ModelBench, candidate: Candidate) -> None:
        self._plan = bench.stitcher.plan(candidate)
        self._variants = bench.stitcher.variants(candidate)
        self._floats = {
            value.name: value.const_value.numpy()
            for value in bench.model.graph.graph.initializers.values()
            if value.const_value is not None
        }

    def _params(self, tensor: str) -> ActivationParams:
        return self._plan.params[self._plan.domains.roots[tensor]]

    def round(self, values: Reals, tensor: str) -> Reals:
        params = self._params(tensor)
        scale = float(np.float32(params.scale))
        steps = np.clip(np.rint(values / scale) + params.zero_point, params.low, params.high)
        rounded: Reals = (steps - params.zero_point) * scale
        return rounded

    def weight(self, layer: str) -> Reals:
        variant = self._variants[layer]
        scales = variant.scales.astype(np.float64)
        axes = (-1, *([1] * (variant.weights.ndim - 1))) if scales.ndim else ()
        return variant.weights * scales.reshape(axes)

    def bias(self, layer: str, name: str, source: str) -> Reals:
        variant = self._variants[layer]
        sums = self._params(source).scale * variant.scales.astype(np.float64)
        corrected = self._floats[name] + (variant.correction if variant.correction.size else 0.0)
        rounded: Reals = np.rint(corrected / sums) * sums
        return rounded


def convolve(x: Reals, weight: Reals, bias: Reals) -> Reals:
    """3x3, padded, one output pixel after the other."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            window = padded[:, :, row : row + 3, column : column + 3]
            out[:, :, row, column] = np.tensordot(window, weight, axes=([1, 2, 3], [1, 2, 3])) + bias
    return out


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_an_integer_mlp_is_its_simulation(choice: Choice, bench_of: BenchOf) -> None:
    bench = bench_of(mlp)
    candidate = bench.uniform(choice)
    sim = Simulation(bench, candidate)
    x, tensor = bench.calibration["features"].astype(np.float64), "features"
    for layer, result in (("fc1", "relu_1"), ("fc2", "relu_3"), ("fc3", "logits")):
        x = sim.round(x, tensor) @ sim.weight(layer).T + sim.bias(layer, f"{layer}.bias", tensor)
        x = x if result == "logits" else np.maximum(x, 0.0)
        tensor = result
    for optimize in (True, False):
        found = bench.run(bench.build(candidate), optimize=optimize)["logits"]
        np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_an_integer_cnn_is_its_simulation(choice: Choice, bench_of: BenchOf) -> None:
    bench = bench_of(batchnorm_cnn)
    candidate = bench.uniform(choice)
    sim = Simulation(bench, candidate)
    x, tensor = bench.calibration["image"].astype(np.float64), "image"
    for layer, result in (("conv1", "relu_2"), ("conv2", "relu_5")):
        bias = sim.bias(layer, f"{layer}.weight_bias", tensor)
        x = np.maximum(convolve(sim.round(x, tensor), sim.weight(layer), bias), 0.0)
        tensor = result
    x = sim.round(x, tensor).mean(axis=(2, 3))
    tensor = "globalaveragepool_6"
    x = sim.round(x, tensor) @ sim.weight("fc").T + sim.bias("fc", "fc.bias", tensor)
    # A value on the edge of two steps may fall on either side: one step of the pooled values.
    one_step = sim._params(tensor).scale * np.abs(sim.weight("fc")).max()
    for optimize in (True, False):
        found = bench.run(bench.build(candidate), optimize=optimize)["logits"]
        assert np.abs(found - x).max() <= 1.01 * one_step
        assert np.median(np.abs(found - x)) <= 1e-4 * np.abs(x).max()
