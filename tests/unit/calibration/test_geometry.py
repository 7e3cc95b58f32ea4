from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.calibration.geometry import (
    LstmInput,
    RowGeometry,
    StepGeometry,
    WindowGeometry,
    find_layer_inputs,
    gather_counts,
    lstm_vectors,
    window_geometry,
)
from autoq.core.layers import Layer
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.testing.models import TINY_MODELS

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# (input shape after the batch, weight shape, attributes)
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 7, 6), (4, 3, 3, 3), {}),
    "pointwise": ((5, 4, 4), (3, 5, 1, 1), {}),
    "padded": ((3, 6, 6), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "asymmetric pads": ((2, 6, 5), (3, 2, 3, 2), {"pads": [0, 2, 1, 0]}),
    "strided": ((3, 9, 8), (4, 3, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated": ((2, 9, 9), (3, 2, 3, 3), {"dilations": [2, 3], "pads": [2, 1, 0, 3]}),
    "strided and dilated": ((2, 11, 9), (3, 2, 3, 2), {"dilations": [2, 2], "strides": [3, 2]}),
    "grouped": ((6, 6, 6), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((4, 6, 6), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise with two filters": ((3, 6, 6), (6, 1, 3, 3), {"group": 3}),
    "one axis": ((3, 11), (4, 3, 5), {"pads": [2, 2], "strides": [2]}),
    "three axes": ((2, 4, 5, 3), (3, 2, 2, 3, 2), {"pads": [0, 1, 1, 0, 1, 0]}),
    "one column": ((1, 3, 3), (2, 1, 1, 1), {}),
    "valid": ((2, 7, 7), (3, 2, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "same upper": ((2, 7, 6), (3, 2, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((2, 7, 6), (3, 2, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "same, stride over kernel": ((2, 7, 7), (3, 2, 1, 1), {"auto_pad": "SAME_UPPER", "strides": [3, 2]}),
    "window over the whole": ((2, 3, 3), (3, 2, 3, 3), {}),
}
TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 4, 5), (3, 2, 3, 3), {}),
    "upsampling": ((4, 4, 4), (4, 3, 2, 2), {"strides": [2, 2]}),
    "padded": ((3, 5, 4), (3, 2, 4, 3), {"strides": [2, 2], "pads": [1, 0, 2, 1]}),
    "output padding": ((2, 4, 4), (2, 3, 3, 3), {"strides": [2, 3], "output_padding": [1, 2]}),
    "dilated": ((2, 4, 4), (2, 3, 3, 2), {"dilations": [2, 3], "pads": [1, 0, 1, 0]}),
    "stride over kernel": ((2, 3, 3), (2, 3, 1, 2), {"strides": [2, 3]}),
    "grouped": ((4, 4, 4), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise": ((3, 4, 4), (3, 1, 3, 3), {"group": 3}),
    "one axis": ((2, 7), (2, 3, 4), {"strides": [3], "pads": [1, 2]}),
    "three axes": ((2, 3, 2, 3), (2, 2, 2, 3, 2), {"strides": [2, 1, 2]}),
    "valid": ((2, 4, 4), (2, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
}


def single_layer(
    op: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], attributes: dict[str, Any]
) -> FloatModel:
    """One convolution without a bias, with a dynamic batch."""
    weight = np.random.default_rng(1).standard_normal(weight_shape).astype(np.float32)
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)
    unknown = ["batch", *(f"d{axis}" for axis in range(len(shape)))]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, unknown)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return build_float_model(ir.from_proto(proto))


def weight_of(model: FloatModel) -> Floats:
    return np.array(model.graph.graph.initializers["w"].const_value.numpy())  # type: ignore[union-attr]


def geometry_of(model: FloatModel) -> WindowGeometry:
    found = next(iter(find_layer_inputs(model).values())).geometry
    assert isinstance(found, WindowGeometry)
    return found


def all_vectors(geometry: WindowGeometry | RowGeometry, x: Floats) -> Floats:
    return geometry.vectors(x, np.arange(geometry.n_positions(x.shape)))


def weight_rows(weight: Floats, group: int, *, transposed: bool) -> Doubles:
    """(groups, rows, columns), by loops."""
    taps = list(itertools.product(*(range(size) for size in weight.shape[2:])))
    if transposed:
        n_in, n_out = weight.shape[0] // group, weight.shape[1]
    else:
        n_in, n_out = weight.shape[1], weight.shape[0] // group
    rows = np.zeros((group, n_out, n_in * len(taps)))
    for g, o, i in itertools.product(range(group), range(n_out), range(n_in)):
        for position, tap in enumerate(taps):
            where = (g * n_in + i, o, *tap) if transposed else (g * n_out + o, i, *tap)
            rows[g, o, i * len(taps) + position] = weight[where]
    return rows


def run(model: FloatModel, x: Floats) -> Floats:
    session = ort.InferenceSession(model.artifact.content, providers=["CPUExecutionProvider"])
    output: Floats = session.run(None, {"x": x})[0]
    return output


def explicit_im2col(x: Floats, kernel: tuple[int, ...], group: int, attributes: dict[str, Any]) -> Doubles:
    """Windows of an explicitly padded array, one at a time: (groups, positions, columns)."""
    axes = len(kernel)
    pads = attributes.get("pads", [0] * (2 * axes))
    strides = attributes.get("strides", [1] * axes)
    dilations = attributes.get("dilations", [1] * axes)
    widths = [(0, 0), (0, 0), *((pads[axis], pads[axis + axes]) for axis in range(axes))]
    padded = np.pad(x.astype(np.float64), widths)
    spans = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in range(axes)]
    sizes = [(padded.shape[2 + axis] - spans[axis]) // strides[axis] + 1 for axis in range(axes)]
    per_group = x.shape[1] // group
    vectors: list[list[list[float]]] = [[] for _ in range(group)]
    for example in range(len(x)):
        for where in itertools.product(*(range(size) for size in sizes)):
            for g in range(group):
                vector = []
                for channel in range(g * per_group, (g + 1) * per_group):
                    for tap in itertools.product(*(range(size) for size in kernel)):
                        at = [where[a] * strides[a] + tap[a] * dilations[a] for a in range(axes)]
                        vector.append(float(padded[(example, channel, *at)]))
                vectors[g].append(vector)
    return np.array(vectors)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if not name.startswith(("same", "valid"))])
def test_the_vectors_of_a_convolution_are_those_of_an_explicit_im2col(name: str) -> None:
    shape, weight_shape, attributes = CONVOLUTIONS[name]
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    geometry = geometry_of(single_layer("Conv", shape, weight_shape, attributes))
    expected = explicit_im2col(x, weight_shape[2:], attributes.get("group", 1), attributes)
    np.testing.assert_array_equal(all_vectors(geometry, x), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("op", "name"),
    [*(("Conv", name) for name in CONVOLUTIONS), *(("ConvTranspose", name) for name in TRANSPOSED)],
)
def test_weight_rows_times_vectors_are_the_outputs_of_the_runtime(op: str, name: str) -> None:
    shape, weight_shape, attributes = (CONVOLUTIONS if op == "Conv" else TRANSPOSED)[name]
    model = single_layer(op, shape, weight_shape, attributes)
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    geometry, group = geometry_of(model), attributes.get("group", 1)
    rows = weight_rows(weight_of(model), group, transposed=op == "ConvTranspose")
    assert (geometry.groups, geometry.columns) == (rows.shape[0], rows.shape[2])
    y = run(model, x)  # (n, groups * rows, spatial...)
    products = rows @ all_vectors(geometry, x).astype(np.float64).transpose(0, 2, 1)
    by_channel = products.reshape(len(rows) * rows.shape[1], len(x), *y.shape[2:])
    np.testing.assert_allclose(np.moveaxis(by_channel, 0, 1), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_some_positions_give_some_of_the_vectors(op: str) -> None:
    cases = CONVOLUTIONS if op == "Conv" else TRANSPOSED
    for shape, weight_shape, attributes in cases.values():
        geometry = geometry_of(single_layer(op, shape, weight_shape, attributes))
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4, *shape)).astype(np.float32)
        n_positions = geometry.n_positions(x.shape)
        positions = np.sort(rng.choice(n_positions, min(5, n_positions), replace=False))
        np.testing.assert_array_equal(
            geometry.vectors(x, positions), all_vectors(geometry, x)[:, positions], err_msg=str(attributes)
        )


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"output_shape": [9, 9], "strides": [2, 2]},
    ],
)
def test_a_transposed_convolution_that_names_its_output_has_no_geometry(attributes: dict[str, Any]) -> None:
    model = single_layer("ConvTranspose", (2, 4, 4), (2, 3, 3, 3), attributes)
    assert next(iter(find_layer_inputs(model).values())).geometry is None


@pytest.mark.parametrize("attributes", [{"auto_pad": "DIAGONAL"}, {"pads": [1, 1]}, {"strides": [1]}])
def test_attributes_that_are_not_understood_give_no_geometry(attributes: dict[str, Any]) -> None:
    layer = Layer("layer", "Conv", (3, 2, 3, 3), 0)
    assert window_geometry(layer, attributes) is None


def test_the_vectors_of_a_matrix_product_are_its_rows() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    geometry = RowGeometry(5)
    assert geometry.n_positions(x.shape) == 12
    np.testing.assert_array_equal(geometry.vectors(x, np.array([0, 7]))[0], [x[0, 0], x[1, 3]])


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_layer_of_the_tiny_models_is_understood(name: str) -> None:
    model = build_float_model(ir.from_proto(TINY_MODELS[name]()))
    inputs = find_layer_inputs(model)
    for layer in model.summary.layers:
        if layer.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        geometry = inputs[layer.name].geometry
        assert geometry is not None
        n_outputs = layer.weight_shape[layer.channel_axis]
        if layer.op == "ConvTranspose":
            n_outputs *= layer.group
        assert geometry.columns * n_outputs == layer.n_params


def lstm_proto(direction: str, seq: int, n_in: int, hidden: int) -> tuple[onnx.ModelProto, Floats, Floats]:
    rng = np.random.default_rng(2)
    dirs = 2 if direction == "bidirectional" else 1
    w = rng.standard_normal((dirs, 4 * hidden, n_in)).astype(np.float32)
    r = rng.standard_normal((dirs, 4 * hidden, hidden)).astype(np.float32)
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "", "", "h"], ["y"], direction=direction, hidden_size=hidden
    )
    graph = helper.make_graph(
        [node],
        "lstm",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [seq, "batch", n_in]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [dirs, "batch", hidden]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [seq, dirs, "batch", hidden])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(r, "r")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return proto, w, r


def sigmoid(x: Doubles) -> Doubles:
    return 1.0 / (1.0 + np.exp(-x))


def lstm_states(gates: Doubles, order: list[int]) -> Doubles:
    """Hidden states from the gates' sums (seq, 4 * hidden), which ONNX stacks as i, o, f, c."""
    cell = np.zeros(gates.shape[1] // 4)
    states = np.zeros((len(gates), len(cell)))
    for t in order:
        i, o, f, c = np.split(gates[t], 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(c)
        states[t] = sigmoid(o) * np.tanh(cell)
    return states


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_stacked_weight_of_an_lstm_times_its_vectors_are_its_gates(direction: str) -> None:
    seq, batch, n_in, hidden = 5, 3, 4, 2
    proto, w, r = lstm_proto(direction, seq, n_in, hidden)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((seq, batch, n_in)).astype(np.float32)
    initial = rng.uniform(-0.9, 0.9, (len(w), batch, hidden)).astype(np.float32)
    y = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x, "h": initial})[0]

    vectors = lstm_vectors(x, y, direction, initial)
    assert vectors.shape == (len(w), batch * seq, n_in + hidden)
    stacked = np.concatenate([w, r], axis=2).astype(np.float64)
    gates = (vectors.astype(np.float64) @ stacked.transpose(0, 2, 1)).reshape(len(w), batch, seq, -1)
    for index, example in itertools.product(range(len(w)), range(batch)):
        is_reverse = direction == "reverse" or index == 1
        order = list(range(seq))[:: -1 if is_reverse else 1]
        states = lstm_states(gates[index, example], order)
        np.testing.assert_allclose(states, y[:, index, example], atol=1e-5)


def test_the_moments_of_an_lstm_are_those_of_its_steps_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 2)).astype(np.float32)
    y = rng.standard_normal((4, 2, 3, 5)).astype(np.float32)
    expected = np.zeros((2, 7, 7))
    for t, example in itertools.product(range(4), range(3)):
        before = [
            y[t - 1, 0, example] if t > 0 else np.zeros(5),
            y[t + 1, 1, example] if t < 3 else np.zeros(5),
        ]
        for direction, state in enumerate(before):
            vector = np.concatenate([x[t, example], state]).astype(np.float64)
            expected[direction] += np.outer(vector, vector) / 12
    vectors = lstm_vectors(x, y, "bidirectional").astype(np.float64)
    moments = vectors.transpose(0, 2, 1) @ vectors / vectors.shape[1]
    np.testing.assert_allclose(moments, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_vectors_of_a_sequence_end_with_it(direction: str) -> None:
    rng = np.random.default_rng(0)
    dirs, lengths = (2 if direction == "bidirectional" else 1), np.array([3, 0, 4], np.int32)
    arrays = {
        "x": rng.standard_normal((4, 3, 2)).astype(np.float32),
        "y": rng.standard_normal((4, dirs, 3, 5)).astype(np.float32),
        "h": rng.standard_normal((dirs, 3, 5)).astype(np.float32),
        "lengths": lengths,
    }
    one = LstmInput("x", "y", "lengths", "h", direction, StepGeometry(dirs, 7))
    for sequence, n_steps in enumerate(lengths):
        expected = np.zeros((dirs, n_steps, 7), np.float32)
        for place, t in itertools.product(range(dirs), range(n_steps)):
            before = t + 1 if direction == "reverse" or place == 1 else t - 1
            is_first = before in (-1, n_steps)
            state = arrays["h"][place, sequence] if is_first else arrays["y"][before, place, sequence]
            expected[place, t] = np.concatenate([arrays["x"][t, sequence], state])
        found = one.vectors(arrays, sequence)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            one.geometry.vectors(found, np.array([n_steps - 1] if n_steps else [], np.int64)),
            expected[:, n_steps - 1 :],
        )
    assert one.sources == ("x", "y", "lengths", "h")
    assert LstmInput("x", "y", None, None, direction, one.geometry).sources == ("x", "y")


def test_reads_of_a_table_are_counted() -> None:
    indices = np.array([[0, 2, 2], [-1, 2, 0]])
    np.testing.assert_array_equal(gather_counts(indices, 5), [2, 0, 3, 0, 1])
    np.testing.assert_array_equal(gather_counts(np.zeros((0,), np.int64), 3), [0, 0, 0])
