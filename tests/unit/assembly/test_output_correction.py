from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from autoq.assembly.narrowing import build_narrower
from autoq.assembly.output_correction import OutputCorrector
from autoq.calibration.channel_outputs import collect_channel_figures
from autoq.calibration.moment_store import MomentStore
from autoq.core.choices import Criterion
from autoq.core.data import Batch, Split
from autoq.graph.float_model import FloatModel
from autoq.testing.bench import ModelBench, largest_difference
from autoq.testing.models import batchnorm_cnn, decoder, depthwise_cnn, inception, mlp, residual_cnn

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]


def conv_outputs(model: FloatModel) -> dict[str, str]:
    return {
        str(node.name): str(node.outputs[0].name)
        for node in model.graph.graph
        if node.op_type.startswith("Conv")
    }


@pytest.mark.parametrize(
    "make", [residual_cnn, depthwise_cnn, inception, decoder, batchnorm_cnn], ids=lambda make: make.__name__
)
def test_every_convolution_gets_the_mean_and_variance_that_it_had(
    make: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(make)
    split = Split((Batch(bench.calibration),))
    moments = MomentStore(bench.folder / "moments")
    narrower = build_narrower(bench.model, moments.get, multiples=(4,), criterion=Criterion.MAGNITUDE)
    widths = {name: one.widths[-2] for name, one in narrower.snapshots.items() if len(one.widths) > 1}
    assert widths
    kept = narrower.kept_outputs(widths)
    narrowed = narrower.narrow(widths)
    corrected = OutputCorrector(bench.model, split).correct(narrowed, kept)
    names = conv_outputs(bench.model)
    before = collect_channel_figures(bench.model, list(names.values()), split)
    after = collect_channel_figures(corrected, list(names.values()), split)
    n_moved = 0
    for layer, value in names.items():
        channels = np.array(kept.get(layer, range(len(before[value].mean))))
        wanted, found = before[value].of(channels), after[value]
        deviation = np.sqrt(wanted.variance.max())
        np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-4 * deviation)
        ratio = np.sqrt((found.variance + 1e-6) / (wanted.variance + 1e-6))
        within = np.abs(ratio - 1.0) < 1e-3  # but for scales that met their limit
        assert within.mean() > 0.5
        n_moved += int(within.sum())
    assert n_moved
    assert bench.run(corrected.artifact).keys() == bench.run(bench.model.artifact).keys()


def test_a_model_that_kept_everything_is_left_as_it_was(bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    corrector = OutputCorrector(bench.model, Split((Batch(bench.calibration),)))
    corrected = corrector.correct(bench.model, {})
    assert largest_difference(bench.run(corrected.artifact), bench.run(bench.model.artifact)) < 1e-5


def test_a_model_without_convolutions_comes_back_unchanged(bench_of: BenchOf) -> None:
    bench = bench_of(mlp)
    corrector = OutputCorrector(bench.model, Split((Batch(bench.calibration),)))
    assert corrector.correct(bench.model, {}).summary.digest == bench.model.summary.digest
