from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.core.choices import Granularity
from autoq.core.quantization import weight_limit
from autoq.variants.rounding import round_blocks, round_weights

Floats = npt.NDArray[np.float32]
SLACK = 1.0 + 1e-5  # for the rounding of float32 itself
TINY = float(np.finfo(np.float32).tiny)

bits = st.integers(2, 8)
elements = st.floats(-1e4, 1e4, width=32)
weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=elements)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=elements)


def per_weight(scales: Floats, weight: Floats, axis: int) -> Floats:
    if scales.ndim == 0:
        return np.broadcast_to(scales, weight.shape)
    return np.broadcast_to(scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]), weight.shape)


def unblocked(integers: npt.NDArray[np.int8], scales: Floats, n_inputs: int) -> Floats:
    """Dequantise blocks the slow way."""
    size = integers.shape[1] // scales.shape[1]
    rows = [
        [float(row[column]) * float(scales[index, column // size]) for column in range(n_inputs)]
        for index, row in enumerate(integers)
    ]
    return np.array(rows, np.float32)


@settings(deadline=None)
@given(weights, bits, st.integers(0, 1), st.sampled_from([Granularity.CHANNEL, Granularity.TENSOR]))
def test_no_weight_is_off_by_more_than_half_a_step(
    weight: Floats, n_bits: int, axis: int, granularity: Granularity
) -> None:
    integers, scales = round_weights(weight, n_bits, granularity, axis)
    step = per_weight(scales, weight, axis)
    error = np.abs(integers * step.astype(np.float64) - weight)
    assert (error <= step / 2 * SLACK).all()
    assert np.abs(integers.astype(int)).max(initial=0) <= weight_limit(n_bits)
    assert (integers[weight == 0.0] == 0).all()
    assert scales.shape == (() if granularity is Granularity.TENSOR else (weight.shape[axis],))


@settings(deadline=None)
@given(matrices, bits, st.sampled_from([16, 32, 128]))
def test_blocks_are_off_by_half_a_step_or_by_one_where_the_short_side_clips(
    rows: Floats, n_bits: int, block_size: int
) -> None:
    """The grid is -half..half-1. Where the largest magnitude of a block sits on -half, a weight almost
    as large on the other side would need half, and gets half-1: at most one whole step off."""
    integers, scales = round_blocks(rows, n_bits, block_size)
    n_inputs, half = rows.shape[1], 2 ** (n_bits - 1)
    assert integers.shape[1] % block_size == 0
    assert scales.shape == (rows.shape[0], integers.shape[1] // block_size)
    assert integers.min() >= -half
    assert integers.max() <= half - 1

    steps = np.abs(np.repeat(scales, block_size, axis=1)[:, :n_inputs]).astype(np.float64)
    error = np.abs(unblocked(integers, scales, n_inputs).astype(np.float64) - rows)
    on_short_side = integers[:, :n_inputs] == half - 1
    assert (error <= steps * np.where(on_short_side, 1.0, 0.5) * SLACK).all()
    assert (integers[:, :n_inputs][rows == 0.0] == 0).all()


@settings(deadline=None)
@given(matrices, bits)
def test_blocks_are_no_worse_than_the_symmetric_grid(rows: Floats, n_bits: int) -> None:
    integers, scales = round_blocks(rows, n_bits, 128)
    symmetric, per_row = round_weights(rows, n_bits, Granularity.CHANNEL, 0)
    ours = ((unblocked(integers, scales, rows.shape[1]) - rows).astype(np.float64) ** 2).sum(axis=1)
    theirs = ((symmetric * per_row[:, None] - rows).astype(np.float64) ** 2).sum(axis=1)
    assert (ours <= theirs * (1 + 1e-4) + 1e-30).all()


def test_the_largest_magnitude_of_a_block_may_use_the_extra_level() -> None:
    rows = np.array([[8.0, 1.0, 2.0, 3.0], [-8.0, 1.0, 2.0, 3.0]], np.float32)
    integers, scales = round_blocks(rows, 4, 4)
    assert scales.ravel().tolist() == [-1.0, 1.0]
    assert integers.tolist() == [[-8, -1, -2, -3], [-8, 1, 2, 3]]


def test_the_last_block_of_a_row_is_padded_with_zeros() -> None:
    integers, scales = round_blocks(np.ones((2, 37), np.float32), 8, 16)
    assert integers.shape == (2, 48)
    assert scales.shape == (2, 3)
    assert (integers[:, 37:] == 0).all()


@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.TENSOR])
@pytest.mark.parametrize("n_bits", [2, 4, 8])
def test_channels_of_zeros_and_of_subnormals_become_zeros(granularity: Granularity, n_bits: int) -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[1] = 1e-40
    integers, scales = round_weights(weight, n_bits, granularity, 0)
    assert not integers.any()
    assert (scales == 1.0).all()
    blocks, block_scales = round_blocks(weight, n_bits, 16)
    assert not blocks.any()
    assert (block_scales == 1.0).all()


def test_a_channel_of_zeros_does_not_touch_its_neighbour() -> None:
    weight = np.array([[0.0, 0.0], [1.0, -0.5]], np.float32)
    integers, scales = round_weights(weight, 8, Granularity.CHANNEL, 0)
    assert integers.tolist() == [[0, 0], [127, -64]]
    assert scales[1] == np.float32(1.0) / np.float32(127)


@pytest.mark.parametrize("magnitude", [TINY * 300, 1e-20, 1e30, 3e38])
def test_extreme_magnitudes_stay_on_the_grid(magnitude: float) -> None:
    weight = np.array([[magnitude, -magnitude / 4, 0.0]], np.float32)
    integers, scales = round_weights(weight, 8, Granularity.CHANNEL, 0)
    assert integers.tolist() == [[127, -32, 0]]
    assert np.isfinite(scales).all()
