from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from autoq.assembly.bundle_estimate import BundleEstimator
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Choice
from autoq.export.bundle import BundleFormat, write_bundle
from autoq.testing.bench import INT8, ModelBench
from autoq.testing.models import attention, residual_cnn

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]

CHOICES = {
    "int8": INT8,
    "4 bits": Choice.of("int8", weight_bits=4),
    "2:4": Choice.of("int8", weight_bits=4, pattern="2:4", sparsity=0.5),
    "half": Choice.of("fp16"),
    "float": Choice(),
}


def written_bytes(model: ModelArtifact, folder: Path) -> int:
    write_bundle(model, folder / "model.autoq", BundleFormat.NATIVE)
    return (folder / "model.autoq").stat().st_size


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("build", [residual_cnn, attention], ids=lambda build: build.__name__)
def test_the_estimate_of_a_search_is_near_the_written_file(
    build: Callable[[], onnx.ModelProto], choice: Choice, bench_of: BenchOf, tmp_path: Path
) -> None:
    bench = bench_of(build)
    built = bench.stitcher.assemble(bench.uniform(choice))
    assert built.bundle_bytes == pytest.approx(written_bytes(built.artifact, tmp_path), rel=0.03)


def test_what_was_estimated_before_does_not_change_an_estimate() -> None:
    content = residual_cnn().SerializeToString()
    estimate = BundleEstimator()
    first = estimate(content)
    assert estimate(content) == first == BundleEstimator()(content)
