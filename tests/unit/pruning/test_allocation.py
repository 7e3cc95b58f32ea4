from __future__ import annotations

import itertools

import numpy as np
import pytest

from autoq.core.groups import ChannelGroup, GroupKind, Member, Role
from autoq.core.layers import Layer
from autoq.pruning.allocation import LatencyShares, allocate, between_measured, descend


def units(size: int, start: int = 0, each: int = 1) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(start + unit * each, start + (unit + 1) * each)) for unit in range(size))


def group(name: str, size: int, *members: Member) -> ChannelGroup:
    return ChannelGroup(name, size, GroupKind.CHANNELS, members)


# a (3 -> 8), b (8 -> 16), c (16 -> 4): two groups between them.
LAYERS = [
    Layer("a", "Conv", (8, 3, 3, 3), 0),
    Layer("b", "Conv", (16, 8, 3, 3), 0),
    Layer("c", "Conv", (4, 16, 3, 3), 0),
]
FIRST = group("a", 8, Member("a", Role.WRITES, units(8)), Member("b", Role.READS, units(8)))
SECOND = group("b", 16, Member("b", Role.WRITES, units(16)), Member("c", Role.READS, units(16)))
SHARES = {"a": 0.2, "b": 0.5, "c": 0.2}
LATENCY = LatencyShares(SHARES, LAYERS, [FIRST, SECOND])


def left(share: float, part: float) -> float:
    return share * (0.12 + 0.88 * part)


def test_a_layers_time_scales_with_what_is_left_of_both_sides() -> None:
    assert LATENCY.predict({}) == 1.0
    assert LATENCY.predict({"a": 8, "b": 16}) == pytest.approx(1.0)
    found = LATENCY.predict({"a": 4, "b": 4})
    assert found == pytest.approx(0.1 + left(0.2, 0.5) + left(0.5, 0.5 * 0.25) + left(0.2, 0.25))


def test_many_widths_are_predicted_as_each_alone() -> None:
    each = LATENCY.predict_each({"a": 4, "b": 16}, "b", [16, 8, 4])
    assert each == pytest.approx([LATENCY.predict({"a": 4, "b": width}) for width in (16, 8, 4)])


def test_a_depthwise_layer_shrinks_once_and_a_concat_reader_by_its_part() -> None:
    depthwise = Layer("d", "Conv", (8, 1, 3, 3), 0, group=8)
    reader = Layer("r", "Conv", (4, 32, 1, 1), 0)
    members = (
        Member("d", Role.READS, units(8)),
        Member("d", Role.WRITES, units(8)),
        Member("r", Role.READS, units(8, start=24)),
    )
    latency = LatencyShares({"d": 0.5, "r": 0.5}, [depthwise, reader], [group("g", 8, *members)])
    assert latency.predict({"g": 4}) == pytest.approx(left(0.5, 0.5) + left(0.5, 28 / 32))


def test_heads_take_all_their_channels_along() -> None:
    layer = Layer("q", "MatMul", (32, 16), 1)
    heads = group("heads", 4, Member("q", Role.WRITES, units(4, each=4)))
    assert LatencyShares({"q": 1.0}, [layer], [heads]).predict({"heads": 1}) == pytest.approx(left(1.0, 0.25))


def test_widths_between_measured_ones_are_filled_in_on_a_logarithmic_scale_and_never_fall() -> None:
    table = between_measured([8, 16, 24, 32], {8: 1.0, 24: 0.01, 32: 0.02}, 40)
    assert table[16] == pytest.approx(np.sqrt(1.0 * 0.02))
    assert table[24] == table[32] == pytest.approx(0.02)
    assert table[40] == 0.0
    assert between_measured([8], {8: float("inf")}, 16)[8] == pytest.approx(1e3)


TABLE = {"a": {2: 0.9, 4: 0.2, 6: 0.05, 8: 0.0}, "b": {4: 0.3, 8: 0.04, 12: 0.01, 16: 0.0}}


def test_a_descent_gets_faster_and_diverges_more_with_every_step() -> None:
    path = list(descend(TABLE, LATENCY))
    shares = [share for _, share in path]
    sums = [sum(TABLE[name][width] for name, width in widths.items()) for widths, _ in path]
    assert shares == sorted(shares, reverse=True)
    assert sums == sorted(sums)
    assert path[-1][0] == {"a": 2, "b": 4}
    assert all(share == pytest.approx(LATENCY.predict(widths)) for widths, share in path)


def test_the_first_step_is_the_one_that_buys_most_time_for_its_divergence() -> None:
    (widths, _), full = next(descend(TABLE, LATENCY)), {"a": 8, "b": 16}

    def gain(name: str, width: int) -> float:
        return (1.0 - LATENCY.predict({**full, name: width})) / TABLE[name][width]

    steps = [(name, width) for name, found in TABLE.items() for width in found if found[width] > 0]
    best = max(steps, key=lambda one: gain(*one))
    assert widths == {**full, best[0]: best[1]}


def test_a_descent_is_close_to_the_best_of_all_vectors() -> None:
    for allocation in allocate(TABLE, LATENCY, [0.9, 0.7, 0.5]):
        full = {**{"a": 8, "b": 16}, **allocation.widths}
        mine = sum(TABLE[name][width] for name, width in full.items())
        every = (dict(zip(TABLE, one, strict=True)) for one in itertools.product(*TABLE.values()))
        possible = [
            sum(TABLE[name][width] for name, width in widths.items())
            for widths in every
            if LATENCY.predict(widths) <= allocation.predicted
        ]
        assert mine <= 1.5 * min(possible)


def test_shares_are_met_widest_first_and_those_out_of_reach_are_left_out() -> None:
    found = allocate(TABLE, LATENCY, [0.1, 0.6, 1.0, 0.9])
    assert [one.share for one in found] == [0.9, 0.6]
    assert all(one.predicted <= one.share for one in found)
    assert all(width < max(TABLE[name]) for one in found for name, width in one.widths.items())


def test_no_group_no_descent() -> None:
    assert allocate({}, LatencyShares(SHARES, LAYERS, []), [0.5]) == []
