"""LSTMs in int8, compared with one written out step by step on dequantised weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from autoq.core.choices import Candidate, Choice, Granularity
from autoq.core.data import Feed
from autoq.core.errors import TrialError
from autoq.graph.layers import weight_parts
from autoq.testing.bench import INT8, ModelBench, largest_difference
from autoq.testing.models import GraphBuilder, gru_classifier
from autoq.variants.lstm import restore_parts, round_parts
from autoq.variants.variant import Variant

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]
Reals = npt.NDArray[np.float64]
LENGTH, N_IN, HIDDEN = 5, 24, 16
DYNAMIC = Choice.of("int8_dynamic", weight_bits=INT8.weight_bits)


@dataclass(frozen=True)
class Recurrence:
    """One LSTM `lstm` over (length, batch, features)."""

    direction: str = "forward"
    has_bias: bool = True
    has_states: bool = False  # other lengths and first states than the usual

    @property
    def lengths(self) -> list[int]:
        return [LENGTH, 2, 3] if self.has_states else [LENGTH] * 3

    @property
    def n_directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def build(self) -> onnx.ModelProto:
        net = GraphBuilder(seed=5)
        x = net.input("x", LENGTH, 3, N_IN)
        w = net.weight("lstm.weight", self.n_directions, 4 * HIDDEN, N_IN, fan_in=2 * N_IN)
        r = net.weight("lstm.recurrence", self.n_directions, 4 * HIDDEN, HIDDEN, fan_in=2 * HIDDEN)
        shape = (self.n_directions, 8 * HIDDEN)
        inputs = [x, w, r, net.constant("lstm.bias", net.rng.standard_normal(shape)) if self.has_bias else ""]
        if self.has_states:
            inputs.append(net.constant("lengths", self.lengths, np.int32))
            inputs += [net.constant(name, self.first_states[name]) for name in ("h", "c")]
        outputs = net.nodes("LSTM", *inputs, n_outputs=3, hidden_size=HIDDEN, direction=self.direction)
        state = (self.n_directions, 3, HIDDEN)
        # A layer beside it, so that there is something to calibrate.
        tag = net.linear(outputs[1], "fc", HIDDEN, 2)
        return net.build(
            states=(outputs[0], (LENGTH, *state)),
            last=(outputs[1], state),
            cell=(outputs[2], state),
            tag=(tag, (*state[:2], 2)),
        )

    @property
    def first_states(self) -> dict[str, Reals]:
        rng = np.random.default_rng(1)
        reach = 1.0 if self.has_states else 0.0
        shape = (self.n_directions, 3, HIDDEN)
        return {name: rng.uniform(-reach, reach, shape) for name in ("h", "c")}

    def feed(self) -> Feed:
        return {"x": np.random.default_rng(2).standard_normal((LENGTH, 3, N_IN)).astype(np.float32)}


CASES = {
    "forward": Recurrence(),
    "reverse": Recurrence("reverse"),
    "bidirectional": Recurrence("bidirectional"),
    "without a bias": Recurrence("bidirectional", has_bias=False),
    "with first states": Recurrence("bidirectional", has_states=True),
}


def sigmoid(values: Reals) -> Reals:
    return 1.0 / (1.0 + np.exp(-values))


def step_by_step(
    case: Recurrence, weight: Reals, feed: Mapping[str, npt.NDArray[np.generic]]
) -> dict[str, Reals]:
    """What the LSTM puts out, example by example, moment by moment. Gates: input, output, forget, cell."""
    bias = np.zeros((case.n_directions, 8 * HIDDEN))
    for tensor in case.build().graph.initializer:
        if tensor.name == "lstm.bias":
            bias = onnx.numpy_helper.to_array(tensor).astype(np.float64)
    shape = (case.n_directions, 3, HIDDEN)
    last, cell = (case.first_states[name] for name in ("h", "c"))
    states = np.zeros((LENGTH, *shape))
    for direction in range(case.n_directions):
        backwards = case.direction == "reverse" or direction == 1
        for example in range(3):
            length = case.lengths[example]
            h, c = last[direction, example], cell[direction, example]
            for moment in reversed(range(length)) if backwards else range(length):
                stacked = np.concatenate([feed["x"][moment, example].astype(np.float64), h])
                sums = weight[direction] @ stacked
                sums += bias[direction, : 4 * HIDDEN] + bias[direction, 4 * HIDDEN :]
                i, o, f, g = np.split(sums, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                states[moment, direction, example] = h
            last[direction, example], cell[direction, example] = h, c
    return {"states": states, "last": last, "cell": cell}


def rounded(bench: ModelBench, choice: Choice) -> Variant:
    """A variant of the LSTM, its parts rounded to nearest."""
    layer = bench.model.summary.layers[0]
    floats = bench.stitcher.variants(Candidate.of({}))["lstm"]
    grid, scales = round_parts(floats.weights, choice.weight_bits, choice.granularity, layer.input_size)
    assert layer.op == "LSTM"
    return replace(floats, weights=grid, scales=scales)


@pytest.mark.parametrize("granularity", [Granularity.TENSOR, Granularity.CHANNEL])
@pytest.mark.parametrize("bits", [INT8.weight_bits, 4, 2])
@pytest.mark.parametrize("name", CASES)
def test_an_int8_lstm_computes_with_its_grids(
    name: str, bits: int, granularity: Granularity, bench_of: BenchOf
) -> None:
    case = CASES[name]
    bench, feed = bench_of(case.build), case.feed()
    choice = Choice.of("int8_dynamic", weight_bits=bits, granularity=granularity)
    variant = rounded(bench, choice)
    model = bench.build_from(Candidate.of({"lstm": choice}), {"lstm": variant})
    weight = restore_parts(variant.weights, variant.scales, N_IN).astype(np.float64)
    expected = step_by_step(case, weight, feed)
    for optimize in (True, False):
        found = bench.run(model, optimize=optimize, feed=feed)
        for output, values in expected.items():
            # Inputs and states are rounded to 8 bits.
            assert np.abs(found[output] - values).max() < 0.06
            assert np.sqrt(np.mean((found[output] - values) ** 2)) < 0.01
    ops = bench.fused_ops(model)
    assert (ops["DynamicQuantizeLSTM"], ops["LSTM"]) == (1, 0)


@pytest.mark.parametrize("name", CASES)
def test_an_int8_lstm_is_close_to_the_float_one(name: str, bench_of: BenchOf) -> None:
    case = CASES[name]
    bench, feed = bench_of(case.build), case.feed()
    model = bench.build_from(Candidate.of({"lstm": DYNAMIC}), {"lstm": rounded(bench, DYNAMIC)})
    assert largest_difference(bench.run(model, feed=feed), bench.run(bench.model.artifact, feed=feed)) < 0.05


@pytest.mark.parametrize(
    "choice", [Choice.of("fp32", sparsity=0.3), Choice.of("fp16", sparsity=0.3)], ids=str
)
def test_float_lstms_compute_with_their_pruned_weights(choice: Choice, bench_of: BenchOf) -> None:
    case = CASES["bidirectional"]
    bench, feed = bench_of(case.build), case.feed()
    candidate = Candidate.of({"lstm": choice})
    weight = bench.stitcher.variants(candidate)["lstm"].weights
    assert (weight == 0).sum() == round(0.3 * weight.size)
    kept = weight.astype(np.float16) if choice.weight_bits == 16 else weight
    expected = step_by_step(case, kept.astype(np.float64), feed)
    found = bench.run(bench.build(candidate), feed=feed)
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, atol=1e-5)


def test_outputs_that_nobody_reads_stay_absent(bench_of: BenchOf) -> None:
    def last_state() -> onnx.ModelProto:
        net = GraphBuilder()
        x = net.input("x", LENGTH, "batch", N_IN)
        outputs = net.recurrence(x, "lstm", N_IN, HIDDEN)
        proto = net.build(y=(net.linear(outputs[1], "fc", HIDDEN, 4), (1, "batch", 4)))
        node = next(node for node in proto.graph.node if node.op_type == "LSTM")
        node.output[:] = ["", node.output[1]]
        return proto

    bench = bench_of(last_state)
    candidate = Candidate.of({"lstm": DYNAMIC})
    variants = dict(bench.stitcher.variants(Candidate.of({})))
    grid, scales = round_parts(variants["lstm"].weights, DYNAMIC.weight_bits, DYNAMIC.granularity, N_IN)
    variants["lstm"] = replace(variants["lstm"], weights=grid, scales=scales)
    model = bench.build_from(candidate, variants)
    assert model.content is not None
    (node,) = (
        n for n in onnx.load_from_string(model.content).graph.node if n.op_type == "DynamicQuantizeLSTM"
    )
    assert [bool(name) for name in node.output] == [False, True]
    assert largest_difference(bench.run(model), bench.run(bench.model.artifact)) < 0.05


def test_an_int8_lstm_is_a_quarter_of_the_file(bench_of: BenchOf) -> None:
    def large() -> onnx.ModelProto:
        net = GraphBuilder()
        outputs = net.recurrence(net.input("x", LENGTH, "batch", 128), "lstm", 128, 128)
        return net.build(y=(net.linear(outputs[0], "fc", 128, 2), (LENGTH, 1, "batch", 2)))

    bench = bench_of(large)
    layer = bench.model.summary.layers[0]
    model = bench.build_from(Candidate.of({"lstm": DYNAMIC}), {"lstm": rounded(bench, DYNAMIC)})
    assert bench.model.artifact.size_bytes - model.size_bytes == pytest.approx(3 * layer.n_params, rel=0.05)


@pytest.mark.parametrize("choice", [INT8, Choice.of("int8_weight"), Choice.of("int4_weight")], ids=str)
def test_formats_without_an_lstm_kernel_are_refused_with_the_layer(choice: Choice, bench_of: BenchOf) -> None:
    bench = bench_of(CASES["forward"].build)
    variants = bench.stitcher.variants(Candidate.of({}))
    with pytest.raises(TrialError, match=r"layer 'lstm' cannot be int.* no such kernel for LSTM"):
        bench.build_from(Candidate.of({"lstm": choice}), variants)


@pytest.mark.parametrize("choice", [INT8, DYNAMIC, Choice.of("int4_weight")], ids=str)
def test_a_gru_is_refused_in_every_integer_format(choice: Choice, bench_of: BenchOf) -> None:
    bench = bench_of(gru_classifier)
    assert bench.uniform(choice).by_layer["gru"] == Choice.of("fp32")
    variants = bench.stitcher.variants(Candidate.of({}))
    with pytest.raises(TrialError, match=r"layer 'gru' cannot be int.* no such kernel for GRU"):
        bench.build_from(Candidate.of({"gru": choice}), variants)


def test_pruned_gru_weights_land_in_the_input_they_came_from(bench_of: BenchOf) -> None:
    bench = bench_of(gru_classifier)
    candidate = Candidate.of({"gru": Choice.of("fp32", sparsity=0.4)})
    variant = bench.stitcher.variants(candidate)["gru"]
    content = bench.build(candidate).content
    assert content is not None
    graph = onnx.load_from_string(content).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (node,) = (node for node in graph.node if node.op_type == "GRU")
    (float_node,) = (n for n in bench.model.graph.graph if n.op_type == "GRU")
    for index, part in weight_parts(float_node, variant.weights):
        np.testing.assert_array_equal(tensors[node.input[index]], part)
