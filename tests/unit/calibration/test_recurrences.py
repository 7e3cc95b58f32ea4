from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from autoq.calibration import moments, tensor_run
from autoq.calibration.collect import collect_statistics
from autoq.calibration.geometry import find_lstm_inputs
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.moments import Moments
from autoq.core.data import Array, Batch, Split
from autoq.graph.blocks import find_blocks, quantizable_values
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.testing.models import TINY_MODELS, GraphBuilder, example_feed

Doubles = npt.NDArray[np.float64]
DIRECTIONS = ("forward", "reverse", "bidirectional")
N_IN, HIDDEN, LENGTH = 3, 4, 6


def lstm_proto(
    direction: str = "bidirectional",
    *,
    lengths: bool = False,
    first_states: str = "zero",
    shows_states: bool = True,
    batch: int | str = "batch",
) -> onnx.ModelProto:
    """An LSTM over frames (batch, length, 3); its first states are zero, `fed` or `constant`."""
    dirs = 2 if direction == "bidirectional" else 1
    net = GraphBuilder(seed=3)
    frames = net.input("frames", batch, "length", N_IN)
    inputs = [
        net.node("Transpose", frames, perm=[1, 0, 2]),
        net.weight("lstm.weight", dirs, 4 * HIDDEN, N_IN, fan_in=N_IN),
        net.weight("lstm.recurrence", dirs, 4 * HIDDEN, HIDDEN, fan_in=HIDDEN),
        net.constant("lstm.bias", net.rng.standard_normal((dirs, 8 * HIDDEN))),
        net.input("lengths", batch, dtype=TensorProto.INT32) if lengths else "",
    ]
    if first_states == "fed":
        start = net.input("start", batch, dirs, HIDDEN)
        inputs.append(net.node("Transpose", start, perm=[1, 0, 2]))
    elif first_states == "constant":
        inputs.append(net.constant("start", net.rng.uniform(-0.9, 0.9, (dirs, int(batch), HIDDEN))))
    states, last, _ = net.nodes("LSTM", *inputs, n_outputs=3, hidden_size=HIDDEN, direction=direction)
    if shows_states:
        return net.build(states=(states, ("length", dirs, batch, HIDDEN)))
    proto = net.build(last=(last, (dirs, batch, HIDDEN)))
    [lstm] = [node for node in proto.graph.node if node.op_type == "LSTM"]
    lstm.output[0] = ""
    onnx.checker.check_model(proto, full_check=True)
    return proto


def draw(proto: onnx.ModelProto, n_examples: int, seed: int = 0) -> dict[str, Array]:
    """Frames with a mean, and lengths from 1 to all steps, where the model reads them."""
    rng = np.random.default_rng(seed)
    feed = example_feed(proto, n_examples=n_examples, seed=seed)
    feed["frames"] = (rng.standard_normal((n_examples, LENGTH, N_IN)) + 0.5).astype(np.float32)
    if "lengths" in feed:
        feed["lengths"] = (rng.permutation(n_examples) % LENGTH + 1).astype(np.int32)
    if "start" in feed:
        feed["start"] = rng.uniform(-0.9, 0.9, (n_examples, *feed["start"].shape[1:])).astype(np.float32)
    return feed


def collected(
    proto: onnx.ModelProto, feeds: Sequence[dict[str, Array]], folder: Path
) -> tuple[FloatModel, Moments | None]:
    model = build_float_model(ir.from_proto(proto))
    store = MomentStore(folder)
    split = Split(tuple(Batch(feed) for feed in feeds))
    collect_statistics(model, quantizable_values(find_blocks(model.graph)), split, moments=store)
    assert store.is_complete
    return model, store.get("lstm")


def sigmoid(x: Doubles) -> Doubles:
    return 1.0 / (1.0 + np.exp(-x))


def explicit_vectors(model: FloatModel, feed: dict[str, Array], direction: str) -> list[list[Doubles]]:
    """[x_t, h_(t-1)] of every real step, by the recurrence itself: (example, direction) -> (steps, n)."""
    parts = {
        name: np.asarray(value.const_value.numpy(), np.float64)  # type: ignore[union-attr]
        for name, value in model.graph.graph.initializers.items()
    }
    found: list[list[Doubles]] = []
    for example, frames in enumerate(feed["frames"].astype(np.float64)):
        n_steps = int(feed["lengths"][example]) if "lengths" in feed else LENGTH
        found.append([])
        for place in range(len(parts["lstm.weight"])):
            order = list(range(n_steps))[:: -1 if direction == "reverse" or place == 1 else 1]
            state, cell = np.zeros(HIDDEN), np.zeros(HIDDEN)
            if "start" in feed:
                state = feed["start"][example, place].astype(np.float64)
            elif "start" in parts:
                state = parts["start"][place, example]
            steps = []
            for t in order:
                steps.append(np.concatenate([frames[t], state]))
                stacked = np.concatenate([parts["lstm.weight"], parts["lstm.recurrence"]], axis=2)[place]
                bias = parts["lstm.bias"][place].reshape(2, -1).sum(axis=0)
                i, o, f, c = np.split(stacked @ steps[-1] + bias, 4)
                cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(c)
                state = sigmoid(o) * np.tanh(cell)
            found[-1].append(np.array(steps))
    return found


def assert_moments_of(found: Moments | None, vectors: list[list[Doubles]]) -> None:
    """Halves are the even and the odd examples."""
    assert found is not None
    for half in (0, 1):
        for direction in range(len(vectors[0])):
            seen = np.concatenate([example[direction] for example in vectors[half::2]])
            total = np.zeros((seen.shape[1], seen.shape[1]))
            for vector in seen:
                total += np.outer(vector, vector)
            np.testing.assert_allclose(
                found.halves[half][0][direction], total / len(seen), rtol=1e-4, atol=1e-5
            )
            assert found.n_rows[half] == len(seen)
    for direction in range(len(vectors[0])):
        every = np.concatenate([example[direction] for example in vectors])
        np.testing.assert_allclose(found.mean[direction], every.mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first_states", ["zero", "fed", "constant"])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_moments_of_an_lstm_are_those_of_its_recurrence(
    direction: str, lengths: bool, first_states: str, tmp_path: Path
) -> None:
    batch = 7 if first_states == "constant" else "batch"
    proto = lstm_proto(direction, lengths=lengths, first_states=first_states, batch=batch)
    feed = draw(proto, 7)
    model, found = collected(proto, [feed], tmp_path)
    vectors = explicit_vectors(model, feed, direction)
    assert sum(len(example[0]) for example in vectors) < 7 * LENGTH or not lengths
    assert_moments_of(found, vectors)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_lstm_that_keeps_its_states_to_itself_has_the_same_moments(direction: str, tmp_path: Path) -> None:
    shown = lstm_proto(direction, lengths=True, first_states="fed")
    hidden = lstm_proto(direction, lengths=True, first_states="fed", shows_states=False)
    feed = draw(shown, 6)
    _, expected = collected(shown, [feed], tmp_path / "shown")
    model, found = collected(hidden, [feed], tmp_path / "hidden")
    assert expected is not None
    assert found is not None
    np.testing.assert_array_equal(found.merged()[0], expected.merged()[0])
    assert model.graph.graph.node("lstm").outputs[0].name == ""  # of the float model itself nothing changes


def test_batches_of_any_size_give_the_same_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = lstm_proto(lengths=True, first_states="fed")
    feed = draw(proto, 11)
    _, whole = collected(proto, [feed], tmp_path / "whole")
    assert whole is not None
    for size in (1, 4):
        monkeypatch.setattr(tensor_run, "_MAX_BATCH", size)
        _, parts = collected(proto, [feed], tmp_path / str(size))
        assert parts is not None
        assert parts.n_rows == whole.n_rows
        for half in (0, 1):
            np.testing.assert_allclose(parts.halves[half][0], whole.halves[half][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, LENGTH])
def test_a_static_batch_with_a_padded_end_has_the_moments_of_its_real_examples(
    batch: int, tmp_path: Path
) -> None:
    proto = lstm_proto(lengths=True, batch=batch)
    feed = draw(lstm_proto(lengths=True), 10)
    model, found = collected(proto, [feed], tmp_path)
    assert_moments_of(found, explicit_vectors(model, feed, "bidirectional"))


def test_long_sequences_are_sampled_and_halves_stay_even(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "_MIN_VECTORS", 200)
    proto = lstm_proto("reverse")
    rng = np.random.default_rng(0)
    frames = (rng.standard_normal((20, 400, N_IN)) + 0.5).astype(np.float32)
    _, found = collected(proto, [{"frames": frames}], tmp_path)
    assert found is not None
    assert found.n_rows == (100, 100)
    expected = frames.reshape(-1, N_IN).astype(np.float64)
    second = expected.T @ expected / len(expected)
    assert np.abs(found.merged()[0][0, :N_IN, :N_IN] - second).max() < 0.25


def test_several_sequences_of_one_example_belong_to_it(tmp_path: Path) -> None:
    """Words of letters: (batch, 2, length, 3) merged to (2 * batch, length, 3)."""
    net = GraphBuilder(seed=3)
    letters = net.input("letters", "batch", 2, LENGTH, N_IN)
    merged = net.node("Reshape", letters, net.constant("merge", [-1, LENGTH, N_IN], np.int64))
    states = net.recurrence(net.node("Transpose", merged, perm=[1, 0, 2]), "lstm", N_IN, HIDDEN)[0]
    proto = net.build(states=(states, (LENGTH, 1, "sequences", HIDDEN)))
    words = np.random.default_rng(0).standard_normal((5, 2, LENGTH, N_IN)).astype(np.float32)
    model, found = collected(proto, [{"letters": words}], tmp_path)
    each = explicit_vectors(model, {"frames": words.reshape(10, LENGTH, N_IN)}, "forward")
    by_word = [[np.concatenate([each[2 * word][0], each[2 * word + 1][0]])] for word in range(5)]
    assert_moments_of(found, by_word)


def test_a_recurrence_that_mixes_examples_has_no_moments(tmp_path: Path) -> None:
    """Frames taken for (length, batch): five examples are steps, and six steps are no five examples."""
    net = GraphBuilder(seed=3)
    states = net.recurrence(net.input("frames", "batch", LENGTH, N_IN), "lstm", N_IN, HIDDEN)[0]
    proto = net.build(states=(states, ("batch", 1, LENGTH, HIDDEN)))
    frames = np.zeros((5, LENGTH, N_IN), np.float32)
    assert collected(proto, [{"frames": frames}], tmp_path)[1] is None


@pytest.mark.parametrize("name", TINY_MODELS)
def test_moments_of_the_tiny_models_fit_their_weights(name: str, tmp_path: Path) -> None:
    proto = TINY_MODELS[name]()
    model = build_float_model(ir.from_proto(proto))
    store = MomentStore(tmp_path)
    split = Split((Batch(example_feed(proto, n_examples=6)),))
    collect_statistics(model, [], split, moments=store)
    known = find_lstm_inputs(model)
    for layer in model.summary.layers:
        found = store.get(layer.name)
        if layer.op == "GRU":
            assert found is None
        elif layer.op == "LSTM":
            assert found is not None
            assert found.mean.shape == (layer.weight_shape[0], layer.weight_shape[2])
            assert known[layer.name].direction == "bidirectional"
