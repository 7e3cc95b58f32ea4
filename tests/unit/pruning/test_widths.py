from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.errors import UnknownNameError
from autoq.core.groups import ChannelGroup, GroupKind, Member, Role
from autoq.pruning.consumers import Consumer
from autoq.pruning.refit import choose_ridge, refit
from autoq.pruning.widths import build_snapshots, width_grid


@given(st.integers(1, 5000), st.sampled_from([1, 8, 16, 32]), st.integers(1, 20))
def test_a_grid_holds_multiples_and_the_full_width_and_is_never_empty(
    size: int, multiple: int, most: int
) -> None:
    widths = width_grid(size, multiple, most=most)
    assert widths[-1] == size
    assert list(widths) == sorted(set(widths))
    assert all(0 < width < size and width % multiple == 0 for width in widths[:-1])
    assert len(widths) <= most


def test_small_groups_have_all_multiples() -> None:
    assert width_grid(64, 16) == (16, 32, 48, 64)
    assert width_grid(20, 8) == (8, 16, 20)
    assert width_grid(4, 8) == (4,)
    assert width_grid(6, 1) == (1, 2, 3, 4, 5, 6)


def drawn(n_units: int, layer: str, seed: int) -> Consumer:
    rng = np.random.default_rng(seed)
    n = 2 * n_units
    vectors = rng.standard_normal((300, n)) @ rng.standard_normal((n, n))
    first, second = (half.T @ half / 150 for half in (vectors[::2], vectors[1::2]))
    return Consumer(
        layer=layer,
        row_group=0,
        columns=np.arange(n),
        units=np.repeat(np.arange(n_units), 2),
        weight=rng.standard_normal((3, n)).astype(np.float32),
        halves=(first.astype(np.float32), second.astype(np.float32)),
        share=0.5,
        mean=vectors.mean(axis=0).astype(np.float32),
    )


def group_of(n_units: int) -> ChannelGroup:
    channels = tuple((unit,) for unit in range(n_units))
    return ChannelGroup("group", n_units, GroupKind.CHANNELS, (Member("one", Role.READS, channels),))


def test_a_snapshot_is_the_refit_of_the_units_that_stay() -> None:
    consumers = [drawn(8, "one", 0), drawn(8, "other", 1)]
    order = np.random.default_rng(0).permutation(8)
    snapshots = build_snapshots(group_of(8), consumers, order, [2, 4, 6])
    assert snapshots.widths == (2, 4, 6, 8)
    for width in (2, 4, 6):
        snapshot = snapshots.at(width)
        assert set(snapshot.kept) == set(order[8 - width :].tolist())
        total = 0.0
        for consumer in consumers:
            [part] = snapshot.refits[consumer.layer]
            ridge = choose_ridge(consumer, np.isin(consumer.units, order[4:]))
            expected = refit(consumer, np.isin(consumer.units, snapshot.kept), ridge)
            np.testing.assert_allclose(part.refit.weight, expected.weight, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(part.refit.bias, expected.bias, rtol=1e-2, atol=1e-3)
            np.testing.assert_array_equal(part.replaced, consumer.columns)
            total += expected.error
        assert snapshot.error == pytest.approx(total, rel=1e-3)


def test_wider_snapshots_lose_less_and_the_full_width_nothing() -> None:
    snapshots = build_snapshots(group_of(8), [drawn(8, "one", 2)], np.arange(8), range(1, 9))
    found = [snapshots.at(width).error for width in snapshots.widths]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0.0
    assert snapshots.at(8).kept == tuple(range(8))
    assert not snapshots.at(8).refits


def test_a_width_off_the_grid_is_refused_with_those_on_it() -> None:
    snapshots = build_snapshots(group_of(4), [drawn(4, "one", 2)], np.arange(4), [2])
    with pytest.raises(UnknownNameError, match=r"'group' has no width 3 \(its widths: 2, 4\)"):
        snapshots.at(3)


def test_a_consumer_that_loses_all_its_columns_keeps_its_bias() -> None:
    """As happens where moments are block-diagonal and a block's units all go."""
    consumer = drawn(2, "one", 4)
    order = np.array([0, 1, 2, 3])
    snapshots = build_snapshots(group_of(4), [consumer], order, [2])
    [part] = snapshots.at(2).refits["one"]
    assert part.refit.weight.shape == (3, 0)
    np.testing.assert_allclose(part.refit.bias, consumer.weight @ consumer.mean, rtol=1e-3, atol=1e-5)
