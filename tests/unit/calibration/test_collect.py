from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.calibration import collect
from autoq.calibration.collect import collect_statistics, pad_batch
from autoq.calibration.summaries import summarize
from autoq.core.data import Affine, Batch, Split
from autoq.core.errors import DataError, ModelError
from autoq.graph.blocks import find_blocks, quantizable_values
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.testing.models import GraphBuilder, example_feed, mlp, residual_cnn, token_classifier, two_headed


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
        monkeypatch.setattr(collect, "_MAX_BATCH", size)
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
    assert (image.low, image.high) == (pytest.approx(-1.0), pytest.approx(1.0))


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
