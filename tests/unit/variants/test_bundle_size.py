from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from autoq.core.choices import Granularity
from autoq.core.packing import as_bytes, chunks, pack
from autoq.core.transforms import Transform
from autoq.variants.bundle_size import packed_float_bytes, packed_grid_bytes
from autoq.variants.rounding import round_weights
from autoq.variants.sparsity import prune_by_magnitude

SHAPE = (384, 512)


def written_bytes(content: npt.NDArray[np.generic], transforms: tuple[Transform, ...]) -> int:
    """What the bundle really takes."""
    return sum(len(pack(chunk, transforms)) for chunk in chunks(as_bytes(content)))


def grid_bytes(integers: npt.NDArray[np.int8]) -> int:
    return written_bytes(integers, (Transform.PLAIN, Transform.SPARSE))


def grid(bits: int, sparsity: float = 0.0) -> npt.NDArray[np.int8]:
    rng = np.random.default_rng(bits)
    spread = rng.uniform(0.5, 2.0, (SHAPE[0], 1))  # channels differ, as they do in trained layers
    weight = (rng.standard_normal(SHAPE) * spread).astype(np.float32)
    return round_weights(prune_by_magnitude(weight, sparsity), bits, Granularity.CHANNEL, 0)[0]


@pytest.mark.parametrize(
    ("bits", "sparsity"), [(2, 0.0), (3, 0.0), (4, 0.0), (5, 0.0), (8, 0.0), (4, 0.5), (8, 0.8)]
)
def test_the_estimate_is_within_3_percent_of_the_real_size(bits: int, sparsity: float) -> None:
    integers = grid(bits, sparsity)
    assert packed_grid_bytes(integers) == pytest.approx(grid_bytes(integers), rel=0.03)


def test_a_layer_whose_parts_differ_is_estimated_as_well() -> None:
    integers = grid(4, 0.5)
    integers[: SHAPE[0] // 2] = 0
    assert packed_grid_bytes(integers) == pytest.approx(grid_bytes(integers), rel=0.03)


def test_fewer_bits_and_more_zeros_take_fewer_bytes() -> None:
    sizes = [packed_grid_bytes(grid(bits)) for bits in (8, 6, 4, 3, 2)]
    assert sizes == sorted(sizes, reverse=True)
    assert packed_grid_bytes(grid(4, 0.7)) < 0.8 * packed_grid_bytes(grid(4))


def test_a_grid_of_zeros_takes_almost_nothing() -> None:
    assert packed_grid_bytes(np.zeros(SHAPE, np.int8)) < 100
    assert packed_grid_bytes(np.zeros((0, 4), np.int8)) < 20


def test_floats_with_little_in_common_take_their_own_size() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert 0.8 * values.nbytes < packed_float_bytes(values) < 1.01 * values.nbytes
    assert packed_float_bytes(values) == pytest.approx(written_bytes(values, (Transform.PLANES_4,)), rel=0.01)
    assert packed_float_bytes(np.zeros(10_000, np.float32)) < 150
