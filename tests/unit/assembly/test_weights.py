from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from autoq.assembly.weights import add_grid, make_room_for_bias, pack_crumbs, pack_nibbles
from autoq.testing.models import mlp

Int8 = npt.NDArray[np.int8]
shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=7)


@settings(deadline=None)
@given(hnp.arrays(np.int8, shapes, elements=st.integers(-8, 7)))
def test_nibbles_are_packed_as_onnx_packs_int4(integers: Int8) -> None:
    expected = numpy_helper.from_array(integers.astype(ml_dtypes.int4), "grid")
    assert pack_nibbles(integers).tobytes() == expected.raw_data


@settings(deadline=None)
@given(hnp.arrays(np.int8, shapes, elements=st.integers(-2, 1)))
def test_crumbs_are_packed_as_onnx_packs_int2(integers: Int8) -> None:
    expected = numpy_helper.from_array(integers.astype(ml_dtypes.int2), "grid")
    assert pack_crumbs(integers).tobytes() == expected.raw_data


@pytest.mark.parametrize(
    ("bits", "stored"),
    [(8, "INT8"), (5, "INT8"), (4, "INT4"), (3, "INT4"), (2, "INT2")],
)
def test_a_grid_is_stored_in_the_narrowest_type_that_holds_it(bits: int, stored: str) -> None:
    model = ir.from_proto(mlp())
    grid = np.array([[1, -1, 0], [-1, 1, 1]], np.int8)
    value = add_grid(model, model.graph[0], "grid", grid, bits)
    assert value.dtype == ir.DataType.INT8
    (added,) = (v for name, v in model.graph.initializers.items() if name.startswith("grid"))
    assert added.const_value is not None
    assert added.const_value.dtype.name == stored
    np.testing.assert_array_equal(added.const_value.numpy().astype(np.int8), grid)


def test_an_opset_that_lacks_int4_stores_int8() -> None:
    model = ir.from_proto(mlp(opset=20))
    value = add_grid(model, model.graph[0], "grid", np.ones((2, 2), np.int8), 4)
    assert value.is_initializer()
    assert model.opset_imports[""] == 20


def test_two_grids_of_one_name_get_names_of_their_own() -> None:
    model = ir.from_proto(mlp())
    grid = np.ones((2, 2), np.int8)
    values = [add_grid(model, model.graph[0], "grid", grid, bits) for bits in (4, 4, 8, 2, 8)]
    assert len({value.name for value in values}) == 5
    assert len({node.name for node in model.graph}) == len(list(model.graph))
    onnx.checker.check_model(ir.to_proto(model))


def dequantized(integers: Int8, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return integers.astype(np.float64) * scales.reshape((-1, 1) if scales.ndim else ())


def test_scales_under_which_every_bias_fits_are_left_alone() -> None:
    integers = np.array([[1, 127], [-127, 3]], np.int8)
    scales = np.array([0.1, 0.2], np.float32)
    bias = np.array([1.0, -1.0], np.float32)
    same = make_room_for_bias(integers, scales, bias, input_scale=0.5, axis=0)
    assert same[0] is integers
    assert same[1] is scales


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_that_would_overflow_gets_a_larger_scale(per_channel: bool) -> None:
    integers = np.array([[1, 127], [-127, 3]], np.int8)
    scales = np.array([1e-12, 1e-12] if per_channel else 1e-12, np.float32)
    bias = np.array([5.0, 0.0], np.float32)
    _, raised = make_room_for_bias(integers, scales, bias, input_scale=0.5, axis=0)
    sums = raised.astype(np.float64) * 0.5
    assert np.abs(np.rint(bias / sums)).max() <= 2**30 + 64  # float32 rounds the scale
    if per_channel:
        assert raised[1] == scales[1]


def test_weights_are_rounded_again_under_a_raised_scale() -> None:
    integers = np.array([[100, -50]], np.int8)
    scales = np.array([1e-9], np.float32)
    bias = np.array([2.0 * 2**30 * 1e-9], np.float32)
    again, raised = make_room_for_bias(integers, scales, bias, input_scale=1.0, axis=0)
    assert raised[0] == pytest.approx(2e-9)
    assert again.tolist() == [[50, -25]]
    np.testing.assert_allclose(dequantized(again, raised), dequantized(integers, scales), atol=1e-9)


def test_a_channel_of_zeros_gets_the_scale_that_holds_its_bias_best() -> None:
    integers = np.array([[0, 0], [5, 6]], np.int8)
    scales = np.array([1.0, 0.1], np.float32)
    bias = np.array([0.013, 0.013], np.float32)
    again, fitted = make_room_for_bias(integers, scales, bias, input_scale=0.05, axis=0)
    np.testing.assert_array_equal(again, integers)
    assert fitted[1] == scales[1]
    sums = fitted[0] * 0.05
    assert np.rint(0.013 / sums) * sums == pytest.approx(0.013, rel=1e-6)


@settings(deadline=None)
@given(
    hnp.arrays(np.int8, (3, 4), elements=st.integers(-127, 127)),
    hnp.arrays(np.float32, 3, elements=st.floats(2.0**-126, 1.0, width=32)),
    hnp.arrays(np.float32, 3, elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    st.floats(2.0**-20, 2.0**10, width=32),
)
def test_every_bias_fits_and_no_weight_moves_by_more_than_half_a_step(
    integers: Int8, scales: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], input_scale: float
) -> None:
    again, fitted = make_room_for_bias(integers, scales, bias, input_scale=input_scale, axis=0)
    sums = (fitted * np.float32(input_scale)).astype(np.float64)
    assert (sums > 0).all()
    assert np.abs(np.rint(bias / sums)).max() < 2**31 - 2**29
    moved = np.abs(dequantized(again, fitted) - dequantized(integers, scales))
    assert (moved <= fitted[:, None] / 2 * (1 + 1e-5)).all()
