from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.core.choices import Granularity
from autoq.core.quantization import weight_limit
from autoq.variants.rounding import round_blocks
from autoq.variants.scales import UniformGrid, clipped_scales

Floats = npt.NDArray[np.float32]

rows_strategy = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.floats(-1e4, 1e4, width=32),
)


def weights(groups: int = 2, rows: int = 3, columns: int = 400) -> Floats:
    return np.random.default_rng(0).standard_t(4, (groups, rows, columns)).astype(np.float32)


def loss(row: Floats, diagonal: Floats, scale: float, limit: int) -> float:
    """The obvious loop, in double precision."""
    total = 0.0
    for weight, heaviness in zip(row.tolist(), diagonal.tolist(), strict=True):
        integer = min(max(round(weight / scale), -limit), limit)
        total += heaviness * (integer * scale - weight) ** 2
    return total


def loss_at(rows: Floats, diagonal: Floats, scales: Floats, limit: int) -> npt.NDArray[np.float64]:
    spread = np.broadcast_to(scales, (*rows.shape[:2], 1))
    return np.array(
        [
            [loss(row, diagonal[g], float(spread[g, r, 0]), limit) for r, row in enumerate(group)]
            for g, group in enumerate(rows)
        ]
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.TENSOR])
def test_no_shrink_that_is_tried_loses_less(bits: int, granularity: Granularity) -> None:
    rows, limit = weights(columns=60), weight_limit(bits)
    diagonal = np.random.default_rng(1).uniform(0.0, 3.0, (2, 60)).astype(np.float32)
    found = clipped_scales(rows, diagonal, bits, granularity)
    full = np.abs(rows).max(axis=2, keepdims=True) / limit
    if granularity is Granularity.TENSOR:
        full = full.max(keepdims=True)
    assert found.shape == full.shape
    ours = loss_at(rows, diagonal, found, limit)
    for shrink in np.linspace(1.0, 0.2 if bits == 2 else 0.35, 24):
        theirs = loss_at(rows, diagonal, (full * shrink).astype(np.float32), limit)
        if granularity is Granularity.TENSOR:
            assert ours.sum() <= theirs.sum() * (1 + 1e-4)
        else:
            assert (ours <= theirs * (1 + 1e-4)).all()


def test_few_bits_clip_and_beat_the_largest_magnitude_clearly() -> None:
    rows, diagonal = weights(), np.ones((2, 400), np.float32)
    full = np.abs(rows).max(axis=2, keepdims=True)
    clipped = loss_at(rows, diagonal, clipped_scales(rows, diagonal, 2, Granularity.CHANNEL), 1)
    assert clipped.sum() < 0.5 * loss_at(rows, diagonal, full, 1).sum()


def test_rows_of_many_groups_and_of_large_ones_are_scaled_as_alone() -> None:
    for shape in ((40, 2, 5000), (2, 300, 1000)):
        rows = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        diagonal = np.random.default_rng(3).random((shape[0], shape[2])).astype(np.float32)
        together = clipped_scales(rows, diagonal, 3, Granularity.CHANNEL)
        for group, row in ((0, 0), (shape[0] // 2, 1), (shape[0] - 1, shape[1] - 1)):
            part = (slice(group, group + 1), slice(row, row + 1))
            alone = clipped_scales(rows[part], diagonal[part[0]], 3, Granularity.CHANNEL)
            np.testing.assert_allclose(together[part], alone, rtol=1e-6)


def test_inputs_that_matter_more_pull_the_scale() -> None:
    rows = np.array([[[1.0, 8.0, 0.9, 1.1]]], np.float32)
    ignored = clipped_scales(rows, np.array([[1.0, 0.0, 1.0, 1.0]], np.float32), 2, Granularity.CHANNEL)
    matters = clipped_scales(rows, np.array([[1.0, 99.0, 1.0, 1.0]], np.float32), 2, Granularity.CHANNEL)
    assert ignored.item() < 2.0
    assert matters.item() == 8.0


@settings(deadline=None)
@given(rows_strategy, st.integers(2, 8), st.sampled_from([Granularity.CHANNEL, Granularity.TENSOR]))
def test_scales_are_finite_and_never_lose_more_than_unclipped_ones(
    rows: Floats, bits: int, granularity: Granularity
) -> None:
    diagonal, limit = np.ones((rows.shape[0], rows.shape[2]), np.float32), weight_limit(bits)
    scales = clipped_scales(rows, diagonal, bits, granularity)
    assert np.isfinite(scales).all()
    assert (scales > 0.0).all()
    full = np.abs(rows).max(axis=2, keepdims=True) / np.float32(limit)
    if granularity is Granularity.TENSOR:
        full = full.max(keepdims=True)
    full = np.where(full > 1e-37, full, 1.0)
    ours, theirs = (loss_at(rows, diagonal, scale, limit).sum() for scale in (scales, full))
    assert ours <= theirs * (1 + 1e-3) + 1e-9 * float(np.square(rows, dtype=np.float64).sum()) + 1e-30


@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.TENSOR])
@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_rows_of_zeros_and_of_subnormals_get_scale_one(granularity: Granularity, value: float) -> None:
    rows = np.full((2, 3, 4), value, np.float32)
    assert (clipped_scales(rows, np.ones((2, 4), np.float32), 4, granularity) == 1.0).all()


def test_dead_inputs_alone_leave_the_largest_magnitude_on_the_limit() -> None:
    rows = weights()
    scales = clipped_scales(rows, np.zeros((2, 400), np.float32), 4, Granularity.CHANNEL)
    np.testing.assert_allclose(scales, np.abs(rows).max(axis=2, keepdims=True) / 7, rtol=1e-6)


def test_a_constant_row_is_exact() -> None:
    rows = np.full((1, 2, 5), -0.3, np.float32)
    scales = clipped_scales(rows, np.ones((1, 5), np.float32), 3, Granularity.CHANNEL)
    grid = UniformGrid.symmetric(scales, 3)
    np.testing.assert_allclose(grid.round(rows) * scales, rows, rtol=1e-6)


def test_granularities_without_a_scale_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="block32"):
        clipped_scales(weights(), np.ones((2, 400), np.float32), 4, Granularity.BLOCK32)


def test_a_grid_of_blocks_rounds_as_round_blocks_does() -> None:
    rows = weights(1, 5, 37)[0]
    integers, scales = round_blocks(rows, 4, 16)
    grid = UniformGrid.of_blocks(scales, 4, block_size=16, n_columns=37)
    assert (grid.low, grid.high) == (-8, 7)
    assert (scales < 0.0).any()
    np.testing.assert_array_equal(grid.round(rows[None])[0], integers[:, :37])


def test_the_next_integer_is_on_the_side_of_the_value_and_on_the_grid() -> None:
    grid = UniformGrid.symmetric(np.ones((1, 1, 1), np.float32), 3)
    integers = np.array([0.0, 0.0, 3.0, -3.0, 2.0], np.float32)
    values = np.array([0.4, -2.0, 9.0, -3.5, 2.0], np.float32)
    assert grid.towards(integers, values).tolist() == [1.0, -1.0, 3.0, -3.0, 2.0]
