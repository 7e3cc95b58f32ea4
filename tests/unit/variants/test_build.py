from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from autoq.calibration.collect import collect_statistics
from autoq.calibration.moment_store import MomentStore
from autoq.core.choices import FLOAT, Choice, Format, Rounding
from autoq.core.data import Array, Batch, Feed, Split
from autoq.core.errors import InfrastructureError
from autoq.core.layers import Layer
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.graph.layers import layer_weight
from autoq.testing.models import TINY_MODELS, GraphBuilder, example_feed, token_classifier
from autoq.variants.build import LayerBuilder
from autoq.variants.plain import compress_plainly, restore
from autoq.variants.variant import WeightChoice

Floats = npt.NDArray[np.float32]
N_IN, HIDDEN = 5, 6
INT8_LSTM = [
    WeightChoice.of(Choice.of("int8_dynamic", granularity=granularity, weight_bits=bits))
    for granularity in ("tensor", "channel")
    for bits in (8, 4)
]
LOOKUPS = [
    WeightChoice.of(choice)
    for choice in (
        Choice.of("int8_weight"),
        Choice.of("int4_weight"),
        Choice.of("fp16"),
        Choice.of("fp32", sparsity=0.5),
    )
]


def calibrated(proto: onnx.ModelProto, feed: Feed, folder: Path) -> tuple[FloatModel, MomentStore]:
    model, store = build_float_model(ir.from_proto(proto)), MomentStore(folder)
    collect_statistics(model, [], Split((Batch(feed),)), moments=store)
    return model, store


def builder_of(model: FloatModel, store: MomentStore, name: str) -> LayerBuilder:
    [layer] = [layer for layer in model.summary.layers if layer.name == name]
    weight = layer_weight(model.graph.graph.node(name))
    return LayerBuilder(layer, weight, partial(store.get, name), store.key(name) or "")


def lstm_proto(direction: str, seed: int = 4) -> onnx.ModelProto:
    net = GraphBuilder(seed=seed)
    x = net.node("Transpose", net.input("frames", "batch", "length", N_IN), perm=[1, 0, 2])
    states = net.recurrence(x, "lstm", N_IN, HIDDEN, direction=direction)[0]
    dirs = 2 if direction == "bidirectional" else 1
    return net.build(states=(states, ("length", dirs, "batch", HIDDEN)))


def frames(n_examples: int = 40) -> Feed:
    drawn = np.random.default_rng(5).standard_normal((n_examples, 12, N_IN)) + 1.0
    return {"frames": drawn.astype(np.float32)}


def states_of(proto: onnx.ModelProto, feed: Feed, stacked: Floats, correction: Floats) -> Array:
    """Hidden states under other weights [W, R], a correction added to the bias that goes with W."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    dirs, rows, _ = stacked.shape
    for tensor in changed.graph.initializer:
        if tensor.name == "lstm.weight":
            tensor.CopyFrom(numpy_helper.from_array(stacked[:, :, :N_IN], tensor.name))
        elif tensor.name == "lstm.recurrence":
            tensor.CopyFrom(numpy_helper.from_array(stacked[:, :, N_IN:], tensor.name))
        elif tensor.name == "lstm.bias":
            bias = numpy_helper.to_array(tensor).copy()
            bias[:, :rows] += correction.reshape(dirs, rows)
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    found: Array = ort.InferenceSession(changed.SerializeToString()).run(None, feed)[0]
    return found


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("choice", INT8_LSTM, ids=str)
def test_bias_correction_moves_the_mean_states_of_an_lstm_towards_float(
    direction: str, choice: WeightChoice, tmp_path: Path
) -> None:
    """Over a few networks: it is the sums in front of the gates whose means are exact."""
    shifts = []
    for seed in range(6):
        proto, feed = lstm_proto(direction, seed), frames()
        model, store = calibrated(proto, feed, tmp_path / str(seed))
        builder = builder_of(model, store, "lstm")
        [variant] = builder.build([choice])
        assert variant.correction.shape == (builder.layer.group * 4 * HIDDEN,)
        stacked = restore(builder.layer, variant.weights, variant.scales, choice)
        weight, nothing = layer_weight(model.graph.graph.node("lstm")), np.zeros_like(variant.correction)
        exact = states_of(proto, feed, weight, nothing)
        changed = [states_of(proto, feed, stacked, bias) - exact for bias in (nothing, variant.correction)]
        shifts.append([np.abs(one.mean(axis=(0, 2))).mean() for one in changed])
    plain, corrected = np.mean(shifts, axis=0)
    assert corrected < 0.75 * plain


@pytest.mark.parametrize("choice", INT8_LSTM, ids=str)
def test_the_error_of_an_lstm_is_what_the_correction_leaves_of_its_gates(
    choice: WeightChoice, tmp_path: Path
) -> None:
    """Gates change by ΔW·[x_t, h_(t-1)], step by step; their variance is left, their mean is not."""
    proto, feed = lstm_proto("forward"), frames()
    model, store = calibrated(proto, feed, tmp_path)
    builder = builder_of(model, store, "lstm")
    [variant] = builder.build([choice])
    weight = layer_weight(model.graph.graph.node("lstm")).astype(np.float64)
    restored = restore(builder.layer, variant.weights, variant.scales, choice)
    states = states_of(proto, feed, weight.astype(np.float32), np.zeros(4 * HIDDEN, np.float32))
    outputs, changes = [], []
    for example, steps in enumerate(feed["frames"]):
        for t, x in enumerate(steps):
            before = states[t - 1, 0, example] if t > 0 else np.zeros(HIDDEN)
            vector = np.concatenate([x, before]).astype(np.float64)
            outputs.append(weight[0] @ vector)
            changes.append((restored[0] - weight[0]) @ vector)
    assert variant.error == pytest.approx(np.var(changes, axis=0).sum(), rel=1e-3)
    assert variant.energy == pytest.approx(np.square(outputs).mean(axis=0).sum(), rel=1e-4)
    np.testing.assert_allclose(variant.correction, -np.mean(changes, axis=0), rtol=1e-3, atol=1e-6)


def test_an_lstm_is_rounded_to_nearest_whatever_is_known_of_its_inputs(tmp_path: Path) -> None:
    model, store = calibrated(lstm_proto("bidirectional"), frames(), tmp_path)
    builder = builder_of(model, store, "lstm")
    weight = layer_weight(model.graph.graph.node("lstm"))
    plain = INT8_LSTM[0]
    for choice in (plain, WeightChoice(plain.bits, plain.granularity, 0.0, Rounding.GPTQ)):
        [variant] = builder.build([choice])
        weights, scales = compress_plainly(builder.layer, weight, plain)
        np.testing.assert_array_equal(variant.weights, weights)
        np.testing.assert_array_equal(variant.scales, scales)


@pytest.mark.parametrize("choice", LOOKUPS, ids=str)
def test_the_error_of_an_embedding_is_the_mean_squared_change_of_what_is_looked_up(
    choice: WeightChoice, tmp_path: Path
) -> None:
    tokens = np.random.default_rng(0).zipf(1.5, (20, 9)) % 20
    model, store = calibrated(token_classifier(), {"tokens": tokens}, tmp_path)
    [layer] = [layer for layer in model.summary.layers if layer.op == "Gather"]
    builder = builder_of(model, store, layer.name)
    [variant] = builder.build([choice])
    table = layer_weight(model.graph.graph.node(layer.name)).astype(np.float64)
    restored = restore(layer, variant.weights, variant.scales, choice).astype(np.float64)
    changes = [np.square(restored[token] - table[token]).sum() for token in tokens.reshape(-1)]
    outputs = [np.square(table[token]).sum() for token in tokens.reshape(-1)]
    assert variant.error == pytest.approx(np.mean(changes), rel=1e-4)
    assert variant.energy == pytest.approx(np.mean(outputs), rel=1e-5)
    assert variant.correction.size == 0
    assert variant.error > 0.0


def test_rows_that_are_never_read_cost_nothing(tmp_path: Path) -> None:
    model, store = calibrated(token_classifier(), {"tokens": np.full((4, 3), 2)}, tmp_path)
    [layer] = [layer for layer in model.summary.layers if layer.op == "Gather"]
    table = layer_weight(model.graph.graph.node(layer.name)).copy()
    table[2] = 0.0
    builder = LayerBuilder(layer, table, partial(store.get, layer.name), str(store.key(layer.name)))
    [variant] = builder.build([LOOKUPS[1]])
    assert (variant.error, variant.energy, variant.relative_error) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_layer_but_a_gru_knows_its_energy(name: str, tmp_path: Path) -> None:
    proto = TINY_MODELS[name]()
    model, store = calibrated(proto, example_feed(proto, n_examples=8), tmp_path)
    for layer in model.summary.layers:
        untouched, half = builder_of(model, store, layer.name).build(
            [WeightChoice.of(FLOAT), WeightChoice.of(Choice.of(Format.FP16))]
        )
        assert (untouched.error, untouched.correction.size) == (0.0, 0)
        assert (half.energy > 0.0) == (layer.op != "GRU")
        assert half.relative_error < 1e-4


@pytest.mark.parametrize("op", ["Gather", "LSTM", "Gemm"])
def test_moments_that_are_gone_are_told(op: str) -> None:
    layer = Layer("layer", op, (1, 8, 5) if op == "LSTM" else (8, 5), 0)
    weight = np.ones(layer.weight_shape, np.float32)
    with pytest.raises(InfrastructureError, match="moments of layer 'layer' are damaged"):
        LayerBuilder(layer, weight, lambda: None, "digest").build([WeightChoice.of(Choice.of("fp16"))])


def test_what_keeps_outliers_is_another_variant_for_other_outliers() -> None:
    """Also where nothing is known of second moments."""
    layer = Layer("fc", "MatMul", (40, 6), channel_axis=1)
    weight = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    first, second = (
        LayerBuilder(layer, weight, load_outliers=lambda one=one: one) for one in ((1, 2), (3, 4))
    )
    keeping, plain = (WeightChoice.of(Choice.of(fmt)) for fmt in ("int8_outlier", "int8"))
    assert first.key(plain) == second.key(plain)
    assert first.key(keeping) != second.key(keeping)
    [variant] = first.build([keeping])
    assert not variant.weights[[1, 2]].any()
    assert variant.weights[[3, 4]].any()
