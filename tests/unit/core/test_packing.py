from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from autoq.core.coders import Bytes, DamagedStream
from autoq.core.packing import (
    CHUNK_BYTES,
    as_bytes,
    chunks,
    fingerprint,
    n_chunks,
    pack,
    packed_bytes,
    unpack,
)
from autoq.core.transforms import Transform, join, split, stream_sizes

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, 4096, np.uint8)


def pack_obvious(content: Bytes, transform: Transform) -> list[int]:
    """What the streams of a transform hold, value by value."""
    if transform in (Transform.NIBBLES, Transform.SPARSE_NIBBLES):
        return [part for byte in content.tolist() for part in (byte & 15, byte >> 4)]
    if transform is Transform.CRUMBS:
        return [(byte >> shift) & 3 for byte in content.tolist() for shift in (0, 2, 4, 6)]
    return content.tolist()


@pytest.mark.parametrize("transform", Transform)
@pytest.mark.parametrize("kind", ["noise", "zeros", "empty", "half zero"])
def test_joining_undoes_splitting_and_streams_are_as_long_as_said(transform: Transform, kind: str) -> None:
    content = {"noise": NOISE, "zeros": np.zeros(64, np.uint8), "empty": NOISE[:0]}.get(kind)
    if content is None:
        content = np.where(RNG.random(4096) < 0.5, NOISE, 0).astype(np.uint8)
    streams = split(transform, content)
    np.testing.assert_array_equal(join(transform, streams, content.size), content)
    for stream, size in zip(streams, stream_sizes(transform, content.size), strict=True):
        assert size is None or stream.size == size


@pytest.mark.parametrize("transform", [Transform.NIBBLES, Transform.CRUMBS])
def test_narrow_values_become_a_byte_each(transform: Transform) -> None:
    assert split(transform, NOISE)[0].tolist() == pack_obvious(NOISE, transform)


def test_planes_hold_bytes_of_equal_significance() -> None:
    numbers = np.arange(1000, dtype="<i4")
    planes = split(Transform.PLANES_4, numbers.view(np.uint8))
    for shift, plane in enumerate(planes):
        assert plane.tolist() == [(number >> (8 * shift)) & 255 for number in range(1000)]


def test_a_bitmap_that_does_not_fit_its_values_is_refused() -> None:
    with pytest.raises(DamagedStream, match="bitmap"):
        join(Transform.SPARSE, [np.array([0b11000000], np.uint8), NOISE[:1]], 8)


def test_chunks_cover_everything_once() -> None:
    content = np.zeros(2 * CHUNK_BYTES + 5, np.uint8)
    assert [chunk.size for chunk in chunks(content)] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert [n_chunks(size) for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1)] == [0, 1, 1, 2]


def test_two_of_four_zeros_are_packed_as_a_bitmap() -> None:
    quads = RNG.permuted(np.tile(np.array([1, 1, 0, 0], np.uint8), (10_000, 1)), axis=1)
    grid = (quads * RNG.integers(1, 8, quads.shape)).astype(np.uint8).reshape(-1)
    transforms = (Transform.PLAIN, Transform.SPARSE)
    sparse, plain = pack(grid, transforms), pack(grid, (Transform.PLAIN,))
    assert sparse[0] == Transform.SPARSE
    assert len(sparse) < 0.9 * len(plain)
    np.testing.assert_array_equal(unpack(sparse, grid.size), grid)
    assert packed_bytes(grid, transforms) == pytest.approx(len(sparse), rel=0.01)


def test_nibbles_unpacked_take_less_than_packed_ones() -> None:
    values = np.clip(np.rint(RNG.standard_normal(10_000) * 2), -7, 7).astype(np.int8).view(np.uint8) & 15
    packed = values[0::2] | (values[1::2] << 4)
    both = (Transform.PLAIN, Transform.NIBBLES)
    assert len(pack(packed, both)) < 0.995 * len(pack(packed, (Transform.PLAIN,)))


@pytest.mark.parametrize("size", [0, 4095, 4097, 8192, CHUNK_BYTES + 1, 2**40])
def test_a_record_of_another_size_is_refused(size: int) -> None:
    record = pack(NOISE, (Transform.PLAIN, Transform.NIBBLES))
    with pytest.raises(DamagedStream):
        unpack(record, size)


def test_no_flip_of_a_bit_does_more_than_change_bytes() -> None:
    grid = np.clip(np.rint(RNG.standard_normal(3000) * 2), 0, 7).astype(np.uint8)
    for transforms in ((Transform.NIBBLES,), (Transform.SPARSE,), (Transform.PLANES_4,)):
        record = pack(grid, transforms)
        for bit in RNG.integers(0, 8 * len(record), 300):
            damaged = bytearray(record)
            damaged[bit // 8] ^= 1 << (bit % 8)
            with suppress(DamagedStream):
                assert unpack(bytes(damaged), grid.size).size == grid.size


ROWS = np.clip(np.rint(RNG.normal(0, 30, (256, 4096))), -127, 127).astype(np.int8)


@pytest.mark.parametrize(
    ("values", "transforms", "within"),
    [
        (ROWS, (Transform.PLAIN,), 0.01),
        (ROWS * (np.arange(256) % 2 == 0)[:, None].astype(np.int8), (Transform.PLAIN,), 0.05),
        (RNG.normal(0, 1, 1 << 18).astype(np.float32), (Transform.PLANES_4, Transform.PLAIN), 0.01),
    ],
    ids=["grid", "every other row zero", "floats"],
)
def test_samples_of_a_long_tensor_say_what_all_of_it_takes(
    values: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    transforms: tuple[Transform, ...],
    within: float,
) -> None:
    content = as_bytes(values)
    written = sum(len(pack(chunk, transforms)) for chunk in chunks(content))
    assert packed_bytes(content, transforms) == pytest.approx(written, rel=within)


def test_many_chunks_are_told_by_samples_of_all_of_them() -> None:
    first, last = (RNG.normal(0, spread, 5 << 20).round().astype(np.int8) for spread in (1.0, 20.0))
    content = as_bytes(np.concatenate([first, last]))
    written = sum(len(pack(chunk, (Transform.PLAIN,))) for chunk in chunks(content))
    assert packed_bytes(content, (Transform.PLAIN,)) == pytest.approx(written, rel=0.01)
    assert fingerprint(content) != fingerprint(as_bytes(np.concatenate([last, first])))
    assert fingerprint(content) == fingerprint(content.copy())
