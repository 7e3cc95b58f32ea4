from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from autoq.assembly.narrowing import Narrower, build_narrower
from autoq.assembly.sequential_refit import SequentialRefitter
from autoq.calibration.moment_store import MomentStore
from autoq.core.data import Batch, Split
from autoq.testing.bench import ModelBench, build_bench, largest_difference
from autoq.testing.models import (
    N_TOKENS,
    GraphBuilder,
    attention,
    depthwise_cnn,
    example_feed,
    inception,
    mlp,
    residual_cnn,
    sentence_embedder,
)

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]


def narrower_of(bench: ModelBench) -> Narrower:
    return build_narrower(bench.model, MomentStore(bench.folder / "moments").get, multiples=(4,))


def split_of(make: Callable[[], onnx.ModelProto], n_examples: int = 64) -> Split:
    return Split((Batch(example_feed(make(), n_examples=n_examples, seed=5)),))


@pytest.mark.parametrize(
    "make", [mlp, residual_cnn, depthwise_cnn, inception, attention], ids=lambda make: make.__name__
)
def test_a_model_narrowed_throughout_gets_closer_to_the_float_model(
    make: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(make)
    split, narrower = split_of(make), narrower_of(bench)
    widths = {name: one.widths[max(len(one.widths) - 2, 0)] for name, one in narrower.snapshots.items()}
    narrowed = narrower.narrow(widths)
    refitted = SequentialRefitter(bench.model, split).refit(narrowed, narrower.kept_outputs(widths))
    feed = next(split.feeds(64))
    whole, before, after = (
        bench.run(one.artifact, optimize=False, feed=feed) for one in (bench.model, narrowed, refitted)
    )
    for name, array in whole.items():
        lost = np.square(before[name] - array).mean()
        assert np.square(after[name] - array).mean() < 0.95 * lost


def test_a_model_that_lost_nothing_is_left_as_it_was(bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    refitted = SequentialRefitter(bench.model, split_of(residual_cnn)).refit(bench.model, {})
    assert largest_difference(bench.run(refitted.artifact), bench.run(bench.model.artifact)) < 1e-3


def test_the_last_layer_is_least_squares_on_what_reaches_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    bench = build_bench(mlp(), tmp_path_factory.mktemp("mlp"))
    split, narrower = split_of(mlp, 400), narrower_of(bench)
    widths = {name: one.widths[0] for name, one in narrower.snapshots.items()}
    narrowed = narrower.narrow(widths)
    refitted = SequentialRefitter(bench.model, split).refit(narrowed, narrower.kept_outputs(widths))
    feed = next(split.feeds(400))
    wanted = bench.run(bench.model.artifact, feed=feed)["logits"]
    found = bench.run(refitted.artifact, feed=feed)["logits"]
    # Its residual has no mean, and little in common with its outputs: a ridge leaves some.
    left = (wanted - found).astype(np.float64)
    np.testing.assert_allclose(left.mean(axis=0), 0.0, atol=1e-3 * wanted.std())
    explained = np.linalg.lstsq(found - found.mean(axis=0), left, rcond=None)[0]
    assert np.square((found - found.mean(axis=0)) @ explained).sum() < 0.06 * np.square(left).sum()


def normalised_mlp() -> onnx.ModelProto:
    """What comes before the first layer has none of its own."""
    net = GraphBuilder()
    x = net.node("Sub", net.input("features", "batch", 12), net.constant("mean", np.full(12, 0.1)))
    x = net.node("Div", x, net.constant("sd", np.full(12, 2.0)))
    x = net.node("Relu", net.gemm(x, "fc1", 12, 16))
    x = net.node("Relu", net.gemm(x, "fc2", 16, 16))
    x = net.gemm(x, "fc3", 16, 5)
    return net.build(logits=(x, ("batch", 5)))


def test_a_model_that_prepares_its_input_is_refitted_from_the_first_layer_on(bench_of: BenchOf) -> None:
    bench = bench_of(normalised_mlp)
    narrower = narrower_of(bench)
    widths = {name: one.widths[0] for name, one in narrower.snapshots.items()}
    narrowed = narrower.narrow(widths)
    refitted = SequentialRefitter(bench.model, split_of(normalised_mlp)).refit(
        narrowed, narrower.kept_outputs(widths)
    )
    assert refitted.artifact.digest != narrowed.artifact.digest


def test_what_is_in_the_padding_does_not_change_what_layers_become(bench_of: BenchOf) -> None:
    bench = bench_of(sentence_embedder)
    narrower = narrower_of(bench)
    widths = {name: one.widths[0] for name, one in narrower.snapshots.items()}
    narrowed, rng = narrower.narrow(widths), np.random.default_rng(0)
    mask = (np.arange(12) < rng.integers(2, 12, 64)[:, None]).astype(np.int64)
    tokens, fillers = rng.integers(0, 20, (2, *mask.shape))
    digests = {
        SequentialRefitter(bench.model, Split((Batch({"tokens": one, "mask": mask}),)))
        .refit(narrowed, narrower.kept_outputs(widths))
        .artifact.digest
        for one in (tokens, np.where(mask, tokens, fillers), np.where(mask, tokens, N_TOKENS - 1))
    }
    assert len(digests) == 1
    assert digests != {narrowed.artifact.digest}
