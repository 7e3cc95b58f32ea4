from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.calibration import collect, tensor_run
from autoq.calibration.collect import collect_statistics
from autoq.calibration.geometry import find_layer_inputs
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.statistics import Statistics
from autoq.calibration.summaries import summarize
from autoq.calibration.tensor_run import pad_batch
from autoq.core.data import Affine, Array, Batch, Feed, Split
from autoq.core.errors import DataError, ModelError
from autoq.graph.blocks import find_blocks, quantizable_values
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.testing.models import (
    TINY_MODELS,
    GraphBuilder,
    attention,
    example_feed,
    mlp,
    residual_cnn,
    token_classifier,
    two_headed,
)


def build(proto: onnx.ModelProto) -> tuple[FloatModel, list[str]]:
    model = build_float_model(ir.from_proto(proto))
    return model, quantizable_values(find_blocks(model.graph))


def split_of(proto: onnx.ModelProto, n_examples: int, *, seed: int = 0) -> Split:
    return Split((Batch(example_feed(proto, n_examples=n_examples, seed=seed)),))


@pytest.mark.parametrize("make", [residual_cnn, two_headed, token_classifier])
def test_statistics_are_those_of_the_tensors_themselves(make: Callable[[], onnx.ModelProto]) -> None:
    model, values = build(make())
    split = split_of(make(), 7)
    statistics = collect_statistics(model, values, split)
    assert set(statistics.tensors) == set(values)
    assert statistics.n_examples == 7

    shown = model.clone()
    produced = {output.name: output for node in shown.graph for output in node.outputs}
    feed = next(split.feeds(7))
    names = [name for name in values if name in produced]
    shown.graph.outputs[:] = [produced[name] for name in names]
    session = ort.InferenceSession(ir.to_proto(shown).SerializeToString())
    arrays = {**feed, **dict(zip(names, session.run(names, feed), strict=True))}
    for name in values:
        expected, found = summarize(arrays[name]), statistics.tensors[name]
        assert found.low == pytest.approx(expected.low, rel=1e-5, abs=1e-6)
        assert found.high == pytest.approx(expected.high, rel=1e-5, abs=1e-6)
        assert found.n_values == expected.n_values
        # A value near a bin's border may fall on either side, as kernels sum in another order.
        assert np.abs(np.cumsum(found.counts - expected.counts)).max() <= 2


def test_any_batch_size_gives_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = build(residual_cnn())
    split = split_of(residual_cnn(), 13)
    whole = collect_statistics(model, values, split)
    for size in (1, 4):
        monkeypatch.setattr(tensor_run, "_MAX_BATCH", size)
        parts = collect_statistics(model, values, split)
        for name in values:
            assert parts.tensors[name].n_values == whole.tensors[name].n_values
            assert parts.tensors[name].low == pytest.approx(whole.tensors[name].low, rel=1e-5, abs=1e-6)
            assert parts.tensors[name].high == pytest.approx(whole.tensors[name].high, rel=1e-5, abs=1e-6)


def test_the_batches_of_a_split_may_differ_in_length() -> None:
    model, values = build(token_classifier())
    rng = np.random.default_rng(0)
    batches = [Batch({"tokens": rng.integers(0, 24, (3, length))}) for length in (4, 9)]
    statistics = collect_statistics(model, values, Split(tuple(batches)))
    assert statistics.n_examples == 6
    assert statistics.tensors["gather_0"].n_values == 3 * (4 + 9) * 16


def test_the_transform_of_the_data_is_applied() -> None:
    model, values = build(residual_cnn())
    raw = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.uint8)
    split = Split((Batch({"image": raw}),), {"image": Affine(2 / 255, -1.0)})
    image = collect_statistics(model, values, split).tensors["image"]
    assert image.low == pytest.approx(-1.0)
    assert image.high == pytest.approx(1.0)


def test_padding_of_a_static_batch_does_not_count() -> None:
    model, values = build(residual_cnn(batch=4))
    dynamic, _ = build(residual_cnn())
    split = split_of(residual_cnn(), 6)
    padded = collect_statistics(model, values, split)
    plain = collect_statistics(dynamic, values, split)
    assert padded.n_examples == 6
    for name in values:
        assert padded.tensors[name].n_values == plain.tensors[name].n_values, name


def test_padding_repeats_the_last_row() -> None:
    padded = pad_batch({"x": np.arange(6).reshape(3, 2)}, 5)["x"]
    np.testing.assert_array_equal(padded, [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]])


def test_progress_reaches_the_end() -> None:
    model, values = build(mlp())
    seen: list[tuple[int, int]] = []
    collect_statistics(model, values, split_of(mlp(), 70), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (70, 70)
    assert seen == sorted(seen)


def test_an_empty_split_is_refused() -> None:
    model, values = build(mlp())
    with pytest.raises(DataError, match="empty"):
        collect_statistics(model, values, Split(()))


def test_data_that_the_model_refuses_end_in_one_line() -> None:
    model, values = build(mlp())
    split = Split((Batch({"features": np.zeros((2, 7), np.float32)}),))
    with pytest.raises(DataError, match="refuses the calibration data") as caught:
        collect_statistics(model, values, split)
    assert "\n" not in str(caught.value)


def test_an_activation_that_overflows_is_named() -> None:
    net = GraphBuilder()
    x = net.linear(net.input("x", "batch", 4), "fc", 4, 4)
    y = net.linear(net.node("Exp", x), "out", 4, 2)
    model, values = build(net.build(y=(y, ("batch", 2))))
    split = Split((Batch({"x": np.full((1, 4), 1e30, np.float32)}),))
    with pytest.raises(ModelError, match=r"tensor '.+' has NaN or infinite activations"):
        collect_statistics(model, values, split)


def moments_of(
    proto: onnx.ModelProto, split: Split, folder: Path
) -> tuple[FloatModel, MomentStore, Statistics]:
    model, values = build(proto)
    store = MomentStore(folder)
    statistics = collect_statistics(model, values, split, moments=store)
    return model, store, statistics


def layer_inputs(model: FloatModel, feed: Feed) -> dict[str, Array]:
    """What each layer reads, from one run of the whole feed."""
    inputs = find_layer_inputs(model)
    shown = model.clone()
    produced = {output.name: output for node in shown.graph for output in node.outputs}
    names = sorted({one.source for one in inputs.values() if one.source in produced})
    shown.graph.outputs[:] = [produced[name] for name in names]
    session = ort.InferenceSession(ir.to_proto(shown).SerializeToString())
    arrays = {**feed, **dict(zip(names, session.run(names, feed), strict=True))}
    return {layer: arrays[one.source] for layer, one in inputs.items()}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_moments_of_every_layer_are_those_of_its_inputs(name: str, tmp_path: Path) -> None:
    proto = TINY_MODELS[name]()
    split = split_of(proto, 7)
    model, store, _ = moments_of(proto, split, tmp_path)
    arrays = layer_inputs(model, next(split.feeds(7)))
    for layer, one in find_layer_inputs(model).items():
        found, geometry = store.get(layer), one.geometry
        assert found is not None, layer
        assert geometry is not None
        for half in (0, 1):
            array = arrays[layer][half::2]
            vectors = geometry.vectors(array, np.arange(geometry.n_positions(array.shape))).astype(np.float64)
            expected = vectors.transpose(0, 2, 1) @ vectors / vectors.shape[1]
            assert found.n_rows[half] == vectors.shape[1]
            np.testing.assert_allclose(found.halves[half][0], expected, rtol=1e-4, atol=1e-5)


def test_batches_of_any_size_give_the_same_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(residual_cnn(), 90)  # the stem's 256 positions an example are sampled
    model, whole, _ = moments_of(residual_cnn(), split, tmp_path / "whole")
    for size in (1, 7):
        monkeypatch.setattr(tensor_run, "_MAX_BATCH", size)
        _, parts, _ = moments_of(residual_cnn(), split, tmp_path / str(size))
        for layer in model.summary.layers:
            one, other = whole.get(layer.name), parts.get(layer.name)
            assert one is not None
            assert other is not None
            assert one.n_rows == other.n_rows
            for half in (0, 1):
                np.testing.assert_allclose(other.halves[half][0], one.halves[half][0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(other.mean, one.mean, rtol=1e-4, atol=1e-5)


def test_layers_that_read_the_same_tensor_share_their_moments(tmp_path: Path) -> None:
    proto = attention()
    _, store, _ = moments_of(proto, split_of(proto, 4), tmp_path)
    q, k, v = (store.key(f"attention.{part}") for part in "qkv")
    assert q is not None
    assert q == k == v != store.key("attention.out")


def test_sums_beyond_the_budget_are_made_in_several_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(residual_cnn(), 9)
    model, values = build(residual_cnn())
    once, often = MomentStore(tmp_path / "once"), MomentStore(tmp_path / "often")
    expected = collect_statistics(model, values, split, moments=once)
    monkeypatch.setattr(collect, "_ACCUMULATOR_BUDGET", 1)
    seen: list[tuple[int, int]] = []
    found = collect_statistics(
        model, values, split, lambda done, total: seen.append((done, total)), moments=often
    )
    n_tensors = len({once.key(layer.name) for layer in model.summary.layers})
    assert seen[-1] == (9 * n_tensors, 9 * n_tensors)
    assert seen == sorted(seen)
    assert found.n_examples == expected.n_examples
    for name in values:
        assert found.tensors[name].n_values == expected.tensors[name].n_values
    for layer in model.summary.layers:
        one, other = once.get(layer.name), often.get(layer.name)
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.merged()[0], other.merged()[0])


def test_a_static_batch_with_a_padded_end_has_the_moments_of_its_real_examples(tmp_path: Path) -> None:
    split = split_of(residual_cnn(), 6)
    model, plain, _ = moments_of(residual_cnn(), split, tmp_path / "plain")
    _, padded, _ = moments_of(residual_cnn(batch=4), split, tmp_path / "padded")
    for layer in model.summary.layers:
        one, other = plain.get(layer.name), padded.get(layer.name)
        assert one is not None
        assert other is not None
        assert one.n_rows == other.n_rows
        for half in (0, 1):
            np.testing.assert_allclose(other.halves[half][0], one.halves[half][0], rtol=1e-4, atol=1e-5)


def test_ragged_batches_count_every_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [Batch({"tokens": rng.integers(0, 24, (3, length))}) for length in (4, 9)]
    _, store, _ = moments_of(token_classifier(), Split(tuple(batches)), tmp_path)
    moments = store.get("encode")
    assert moments is not None
    assert moments.n_rows == (4 + 4 + 9, 4 + 9 + 9)


def test_a_single_example_has_moments(tmp_path: Path) -> None:
    model, store, _ = moments_of(residual_cnn(), split_of(residual_cnn(), 1), tmp_path)
    for layer in model.summary.layers:
        moments = store.get(layer.name)
        assert moments is not None
        assert np.isfinite(moments.merged()[0]).all()
        np.testing.assert_array_equal(moments.halves[0][0], moments.halves[1][0])


def transposed_rows(batch: int | str) -> onnx.ModelProto:
    """A matrix product that reads (length, batch, channels), and one of rows merged over the batch."""
    net = GraphBuilder()
    x = net.node("Transpose", net.input("x", batch, 5, 4), perm=[1, 0, 2])
    x = net.node("Relu", net.linear(x, "first", 4, 6))
    rows = net.node(
        "Reshape", net.node("Transpose", x, perm=[1, 0, 2]), net.constant("to", [-1, 6], np.int64)
    )
    return net.build(y=(net.gemm(rows, "second", 6, 3), ("rows", 3)))


@pytest.mark.parametrize("batch", ["batch", 4])
def test_examples_are_found_on_any_axis_and_within_merged_rows(batch: int | str, tmp_path: Path) -> None:
    split = split_of(transposed_rows("batch"), 6)
    _, store, _ = moments_of(transposed_rows(batch), split, tmp_path)
    first, second = store.get("first"), store.get("second")
    assert first is not None
    assert second is not None
    x = next(split.feeds(6))["x"].astype(np.float64)
    for half in (0, 1):
        rows = x[half::2].reshape(-1, 4)
        np.testing.assert_allclose(first.halves[half][0][0], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
    assert first.n_rows == second.n_rows == (15, 15)
    plain = build(transposed_rows("batch"))[0]
    merged = layer_inputs(plain, next(split.feeds(6)))["second"].astype(np.float64).reshape(6, 5, 6)
    for half in (0, 1):
        rows = merged[half::2].reshape(-1, 6)
        expected = rows.T @ rows / len(rows)
        np.testing.assert_allclose(second.halves[half][0][0], expected, rtol=1e-4, atol=1e-5)


def test_a_tensor_without_examples_has_no_moments(tmp_path: Path) -> None:
    net = GraphBuilder()
    x = net.input("x", "batch", 4)
    mixed = net.node("ReduceMean", x, net.constant("axes", [0], np.int64), keepdims=1)
    proto = net.build(
        y=(net.node("Add", net.gemm(mixed, "mixed", 4, 3), net.gemm(x, "plain", 4, 3)), ("b", 3))
    )
    _, store, _ = moments_of(proto, split_of(proto, 6), tmp_path)
    assert store.get("mixed") is None
    assert store.get("plain") is not None
    assert store.is_complete


def test_channel_maxima_are_those_of_what_layers_read() -> None:
    proto = attention()
    model, values = build(proto)
    split = split_of(proto, 5)
    arrays = layer_inputs(model, next(split.feeds(5)))
    maxima = collect_statistics(model, values, split).channel_maxima
    for layer, one in find_layer_inputs(model).items():
        found = maxima[one.source]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.abs(arrays[layer]).max(axis=(0, 1)), rtol=1e-5, atol=1e-6)


def test_channel_maxima_of_a_convolution_run_over_axis_one() -> None:
    model, values = build(residual_cnn())
    split = split_of(residual_cnn(), 5)
    maxima = collect_statistics(model, values, split).channel_maxima
    image = next(split.feeds(5))["image"]
    np.testing.assert_allclose(maxima["image"], np.abs(image).max(axis=(0, 2, 3)))


def test_without_a_store_no_moments_are_kept_and_histograms_are_the_same(tmp_path: Path) -> None:
    model, values = build(residual_cnn())
    split = split_of(residual_cnn(), 5)
    plain = collect_statistics(model, values, split)
    full = collect_statistics(model, values, split, moments=MomentStore(tmp_path))
    assert plain.channel_maxima.keys() == full.channel_maxima.keys()
    for name in values:
        np.testing.assert_array_equal(plain.tensors[name].counts, full.tensors[name].counts)
