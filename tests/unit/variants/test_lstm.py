from __future__ import annotations

import numpy as np
import pytest

from autoq.core.choices import Granularity
from autoq.core.quantization import weight_limit
from autoq.variants.lstm import restore_parts, round_parts


def weights(seed: int = 0) -> np.ndarray:
    """Two directions, 3 hidden, 5 inputs: R a hundred times larger than W."""
    weight = np.random.default_rng(seed).standard_normal((2, 12, 8))
    weight[:, :, 5:] *= 100.0
    return weight.astype(np.float32)


@pytest.mark.parametrize("granularity", [Granularity.TENSOR, Granularity.CHANNEL])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_each_direction_and_part_is_rounded_alone(bits: int, granularity: Granularity) -> None:
    weight, limit = weights(), weight_limit(bits)
    integers, scales = round_parts(weight, bits, granularity, 5)
    assert integers.dtype == np.int8
    for direction in range(2):
        for place, columns in enumerate((range(5), range(5, 8))):
            part = weight[direction][:, list(columns)].astype(np.float64)
            for row in range(12):
                largest = np.abs(part if granularity is Granularity.TENSOR else part[row]).max()
                found = scales[direction, place] if scales.ndim == 2 else scales[direction, row, place]
                assert found == pytest.approx(largest / limit, rel=1e-6)
                for column, value in zip(columns, part[row], strict=True):
                    assert abs(integers[direction, row, column] - value / found) <= 0.5 + 1e-4
    assert np.abs(integers).max() == limit


@pytest.mark.parametrize("granularity", [Granularity.TENSOR, Granularity.CHANNEL])
def test_restoring_is_off_by_half_a_step_of_its_part(granularity: Granularity) -> None:
    weight = weights()
    integers, scales = round_parts(weight, 8, granularity, 5)
    restored = restore_parts(integers, scales, 5)
    assert restored.shape == weight.shape
    steps = scales if scales.ndim == 3 else scales[:, None, :]
    for place, part in enumerate((slice(None, 5), slice(5, None))):
        error = np.abs(restored[:, :, part] - weight[:, :, part])
        assert (error <= 0.501 * steps[..., place : place + 1]).all()


def test_rows_of_zeros_get_scale_one() -> None:
    weight = weights()
    weight[1, 3, :5] = 0.0
    integers, scales = round_parts(weight, 8, Granularity.CHANNEL, 5)
    assert scales[1, 3, 0] == 1.0
    assert not integers[1, 3, :5].any()
    assert np.isfinite(restore_parts(integers, scales, 5)).all()
