from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.layers import Layer
from autoq.variants.rows import from_rows, to_rows


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    op = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    group = draw(st.integers(1, 3)) if op.startswith("Conv") else 1
    first, second = draw(st.integers(1, 4)) * group, draw(st.integers(1, 4))
    if not op.startswith("Conv"):
        return Layer("layer", op, (first, second), draw(st.integers(0, 1)))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    return Layer("layer", op, (first, second, *kernel), 0 if op == "Conv" else 1, group)


def numbered(layer: Layer, dtype: type = np.float32) -> np.ndarray:
    return np.arange(layer.n_params).astype(dtype).reshape(layer.weight_shape)


@settings(deadline=None)
@given(layers(), st.sampled_from([np.float32, np.int8]))
def test_rows_go_back_to_the_same_weight(layer: Layer, dtype: type) -> None:
    weight = numbered(layer, dtype)
    back = from_rows(to_rows(weight, layer), layer)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, weight)


@settings(deadline=None)
@given(layers())
def test_a_column_is_an_input_channel_and_a_tap(layer: Layer) -> None:
    weight = numbered(layer)
    rows = to_rows(weight, layer)
    if layer.is_matmul:
        np.testing.assert_array_equal(rows[0], weight if layer.channel_axis == 0 else weight.T)
        return
    taps = math.prod(layer.weight_shape[2:])
    flat = weight.reshape(*weight.shape[:2], taps)
    for (group, row, column), value in np.ndenumerate(rows):
        channel, tap = divmod(column, taps)
        if layer.op == "Conv":
            assert value == flat[group * rows.shape[1] + row, channel, tap]
        else:
            inputs = weight.shape[0] // layer.group
            assert value == flat[group * inputs + channel, row, tap]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_convolution_of_its_own_size_is_the_rows_times_the_input(group: int) -> None:
    """With a kernel as large as the image there is one position, and im2col is the image itself."""
    rng = np.random.default_rng(group)
    weight = rng.standard_normal((8, 4 // group, 3, 2))
    image = rng.standard_normal((4, 3, 2))
    expected = np.zeros(8)
    for output in range(8):
        first = (output // (8 // group)) * (4 // group)
        expected[output] = (weight[output] * image[first : first + 4 // group]).sum()
    rows = to_rows(weight, Layer("layer", "Conv", weight.shape, 0, group))
    product = np.einsum("grc,gc->gr", rows, image.reshape(group, -1))
    np.testing.assert_allclose(product.reshape(-1), expected)


@pytest.mark.parametrize(
    ("op", "shape", "groups"), [("LSTM", (2, 12, 8), 2), ("GRU", (1, 9, 5), 1), ("Gather", (7, 4), 1)]
)
def test_recurrences_and_tables_are_rows_already(op: str, shape: tuple[int, ...], groups: int) -> None:
    layer = Layer("layer", op, shape, 0 if op == "Gather" else 1, groups if op != "Gather" else 1)
    rows = to_rows(numbered(layer), layer)
    np.testing.assert_array_equal(rows, numbered(layer).reshape(groups, *shape[-2:]))
    np.testing.assert_array_equal(from_rows(rows, layer), numbered(layer))
