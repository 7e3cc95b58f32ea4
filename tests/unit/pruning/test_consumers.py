from __future__ import annotations

import numpy as np
import pytest

from autoq.calibration.moments import MomentAccumulator, Moments, column_blocks
from autoq.core.groups import ChannelGroup, GroupKind, Member, Role
from autoq.core.layers import Layer
from autoq.pruning.consumers import columns_by_unit, find_consumers, units_of_columns
from autoq.variants.rows import to_rows


def moments_of(vectors: np.ndarray, *, widest: int = 8192) -> Moments:
    """Of vectors (groups, rows, columns), alternately counted into the halves."""
    sums = MomentAccumulator(len(vectors), column_blocks(vectors.shape[2], whole=widest, widest=widest))
    for half in (0, 1):
        sums.add(half, vectors[:, half::2].astype(np.float32))
    moments = sums.finish()
    assert moments is not None
    return moments


def group_of(*members: Member) -> ChannelGroup:
    return ChannelGroup("group", len(members[0].channels), GroupKind.CHANNELS, members)


def test_columns_of_a_convolution_are_all_taps_of_a_unit() -> None:
    layer = Layer("conv", "Conv", (5, 4, 3, 2), 0)
    member = Member("conv", Role.READS, ((3,), (0, 1)))
    units = units_of_columns([member], (1, 5, 24), layer)
    np.testing.assert_array_equal(units, [[1] * 12 + [-1] * 6 + [0] * 6])


def test_a_layer_that_reads_a_unit_twice_has_all_its_columns() -> None:
    layer = Layer("fc", "Gemm", (5, 4), 0)
    members = [Member("fc", Role.READS, ((0,), (1,))), Member("fc", Role.READS, ((2,), (3,)))]
    np.testing.assert_array_equal(units_of_columns(members, (1, 5, 4), layer), [[0, 1, 0, 1]])


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_depthwise_convolution_is_only_ever_sliced(op: str) -> None:
    layer = Layer("depthwise", op, (6, 1, 3, 3), 0 if op == "Conv" else 1, group=6)
    weight = np.ones(layer.weight_shape, np.float32)
    moments = moments_of(np.random.default_rng(0).standard_normal((6, 20, 9)))
    group = group_of(Member("depthwise", Role.READS, tuple((channel,) for channel in range(6))))
    assert find_consumers(group, {"depthwise": layer}, {"depthwise": weight}, lambda _: moments) == []


def test_every_row_group_of_a_grouped_convolution_is_refitted_by_itself() -> None:
    rng = np.random.default_rng(0)
    layer = Layer("grouped", "Conv", (4, 3, 2, 1), 0, group=2)
    weight = rng.standard_normal(layer.weight_shape).astype(np.float32)
    vectors = rng.standard_normal((2, 30, 6))
    group = group_of(Member("grouped", Role.READS, ((0, 3), (1, 4), (2, 5))))
    first, second = find_consumers(
        group, {"grouped": layer}, {"grouped": weight}, lambda _: moments_of(vectors)
    )
    assert (first.row_group, second.row_group) == (0, 1)
    for row_group, one in enumerate((first, second)):
        np.testing.assert_array_equal(one.units, [0, 0, 1, 1, 2, 2])
        np.testing.assert_array_equal(one.weight, to_rows(weight, layer)[row_group])
        centred = vectors[row_group] - vectors[row_group].mean(axis=0)
        np.testing.assert_allclose(one.covariance, centred.T @ centred / 30, atol=1e-5)


def test_columns_of_another_group_and_of_another_block_of_moments_stay_out() -> None:
    rng = np.random.default_rng(1)
    layer = Layer("fc", "MatMul", (8, 3), 1)
    weight = rng.standard_normal((8, 3)).astype(np.float32)
    vectors = rng.standard_normal((1, 40, 8)) + 1.0
    group = group_of(Member("fc", Role.READS, ((2,), (3,), (4,), (7,))))
    found = find_consumers(group, {"fc": layer}, {"fc": weight}, lambda _: moments_of(vectors, widest=4))
    assert [one.columns.tolist() for one in found] == [[2, 3], [4, 7]]
    assert [one.units.tolist() for one in found] == [[0, 1], [2, 3]]
    np.testing.assert_allclose(found[1].weight, weight[[4, 7]].T)
    np.testing.assert_allclose(found[1].mean, vectors[0][:, [4, 7]].mean(axis=0), rtol=1e-5)


def test_without_a_bias_there_is_no_mean_to_make_up() -> None:
    layer = Layer("fc", "MatMul", (4, 3), 1)
    vectors = np.random.default_rng(1).standard_normal((1, 40, 4)) + 1.0
    group = group_of(Member("fc", Role.READS, ((0,), (1,), (2,), (3,))))
    weights = {"fc": np.ones((4, 3), np.float32)}
    [found] = find_consumers(
        group, {"fc": layer}, weights, lambda _: moments_of(vectors), without_bias=("fc",)
    )
    assert not found.mean.any()
    np.testing.assert_allclose(found.covariance, vectors[0].T @ vectors[0] / 40, rtol=1e-4)


def test_recurrences_and_layers_without_moments_are_left_out() -> None:
    lstm, conv = Layer("lstm", "LSTM", (1, 8, 5), 1), Layer("conv", "Conv", (2, 3, 1, 1), 0)
    group = group_of(
        Member("lstm", Role.READS, ((0,), (1,), (2,))), Member("conv", Role.READS, ((0,), (1,), (2,)))
    )
    weights = {"lstm": np.ones((1, 8, 5), np.float32), "conv": np.ones((2, 3, 1, 1), np.float32)}
    known = {"lstm": moments_of(np.ones((1, 4, 5)))}
    assert find_consumers(group, {"lstm": lstm, "conv": conv}, weights, known.get) == []


def test_columns_are_listed_by_unit() -> None:
    found = columns_by_unit(np.array([2, 0, 2, 0, 3]), 4)
    assert [one.tolist() for one in found] == [[1, 3], [], [0, 2], [4]]
