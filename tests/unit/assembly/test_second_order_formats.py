"""What is deployed is what the variants promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from autoq.core.choices import Choice, Precision
from autoq.testing.bench import ModelBench, build_bench
from autoq.testing.models import mlp, residual_cnn
from autoq.variants.plain import restore
from autoq.variants.variant import WeightChoice

CHOICES = [
    Choice.of("int8", weight_bits=bits, rounding=rounding, grid=grid)
    for bits in (2, 4, 7)
    for rounding, grid in (("gptq", "uniform"), ("gptq", "codebook"), ("nearest", "codebook"))
]


def dequantized(bench: ModelBench, choice: Choice) -> onnx.ModelProto:
    """The float model with the weights that the variants of a choice stand for, and their corrections."""
    model = onnx.load_from_string(bench.model.artifact.content)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = {layer.name: layer for layer in bench.model.summary.layers}
    for node in list(model.graph.node):
        if node.name not in layers or not bench.target.judge(layers[node.name], choice).legal:
            continue
        treatment = WeightChoice.of(choice)
        variant = bench.stitcher.variants(bench.uniform(choice))[node.name]
        weight = restore(layers[node.name], variant.weights, variant.scales, treatment)
        tensors[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(weight, node.input[1]))
        bias = onnx.numpy_helper.to_array(tensors[node.input[2]]) + variant.correction
        tensors[node.input[2]].CopyFrom(onnx.numpy_helper.from_array(bias, node.input[2]))
    return model


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("build", [residual_cnn, mlp])
def test_the_deployed_model_computes_with_the_variants(
    build: Callable[[], onnx.ModelProto], choice: Choice, tmp_path: Path
) -> None:
    bench = build_bench(build(), tmp_path)
    [name] = [output.name for output in bench.model.summary.outputs][:1]
    deployed = bench.run(bench.build(bench.uniform(choice, precision=Precision.FLOAT)))[name]
    from autoq.core.artifacts import ModelArtifact

    expected = bench.run(ModelArtifact.from_bytes(dequantized(bench, choice).SerializeToString()))[name]
    # Activations are rounded to 8 bits in the one and not in the other.
    assert np.abs(deployed - expected).max() < 0.1 * np.abs(expected).max()
