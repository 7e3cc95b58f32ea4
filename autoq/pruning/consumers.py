"""What reads a channel group: columns of weights, and the second moments of what they are multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autoq.calibration.moments import Moments
from autoq.core.data import Array
from autoq.core.groups import ChannelGroup, Member, Role
from autoq.core.layers import Layer
from autoq.variants.rows import to_rows

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Consumer:
    """Columns of one group of one layer's rows that read a channel group, within one block of moments.

    Columns that read something else are no part of it. A layer behind a concatenation reads several
    channel groups, and each is refitted alone, as if the other columns stood still: that is what lets a
    model of any widths be put together from one snapshot a group. So is a layer whose moments are
    block-diagonal: what different blocks have in common is not known.
    """

    layer: str
    row_group: int  # of `to_rows`
    columns: Indices  # (n,) of that group's rows, rising
    units: Indices  # (n,) the unit that each column belongs to
    weight: Floats  # (rows, n)
    halves: tuple[Floats, Floats]  # E[xxᵀ] of these columns, (n, n), over two halves of the examples
    share: float  # of the first half in all vectors
    mean: Floats  # (n,) E[x]; zeros where no bias can take up what a removed column is on average

    @cached_property
    def covariance(self) -> Floats:
        """E[(x - E x)(x - E x)ᵀ] over both halves, (n, n).

        Refitting by it and adding W·E[x] - Ŵ·E[x_K] to the bias is least squares with a constant input.
        """
        first, second = self.halves
        share = np.float32(self.share)
        return share * first + (np.float32(1.0) - share) * second - np.outer(self.mean, self.mean)


def find_consumers(
    group: ChannelGroup,
    layers: Mapping[str, Layer],
    weights: Mapping[str, Array],
    moments: Callable[[str], Moments | None],
    *,
    without_bias: Collection[str] = (),
) -> list[Consumer]:
    """Return everything that reads a group and can be refitted.

    Left out, and only ever sliced, are recurrences, layers without moments, and row groups that read
    nothing but one unit, as those of depthwise convolutions: they go when their unit goes.

    Args:
        group: The channel group.
        layers: Layers by name.
        weights: Their float weights.
        moments: Gives the second moments of a layer's inputs.
        without_bias: Layers whose bias cannot be corrected: they are fitted without a constant input.
    """
    readers = dict.fromkeys(member.layer for member in group.members if member.role is Role.READS)
    found: list[Consumer] = []
    for name in readers:
        known = moments(name) if layers[name].has_moments else None
        if known is None:
            continue
        rows = to_rows(weights[name], layers[name])
        members = [one for one in group.members if one.layer == name and one.role is Role.READS]
        units = units_of_columns(members, rows.shape, layers[name])
        centred = name not in without_bias
        found += _of_layer(name, rows, units, known, centred=centred)
    return found


def units_of_columns(members: list[Member], shape: tuple[int, ...], layer: Layer) -> Indices:
    """Return which unit each column of a layer's rows reads, -1 for none: shape (groups, columns).

    Args:
        members: What the layer reads of one channel group.
        shape: (groups, rows, columns) of the layer.
        layer: The layer, no recurrence.
    """
    groups, _, columns = shape
    n_channels = layer.weight_shape[1 - layer.channel_axis]
    if layer.op == "Conv":
        n_channels *= layer.group
    by_channel = np.full(n_channels, -1, np.int64)
    for member in members:
        for unit, channels in enumerate(member.channels):
            by_channel[list(channels)] = unit
    taps = groups * columns // n_channels
    return np.repeat(by_channel, taps).reshape(groups, columns)


def _of_layer(
    name: str, rows: Array, units: Indices, moments: Moments, *, centred: bool
) -> Iterator[Consumer]:
    share = moments.n_rows[0] / sum(moments.n_rows)
    for row_group, by_column in enumerate(units):
        if len(np.unique(by_column)) == 1:
            continue  # nothing is left of the row group without the unit, or it reads no unit
        for block, pair in zip(moments.blocks, zip(*moments.halves, strict=True), strict=True):
            inside = np.flatnonzero(by_column[block] >= 0)
            if not len(inside):
                continue
            columns = inside + block.start
            first, second = (half[row_group][np.ix_(inside, inside)] for half in pair)
            yield Consumer(
                layer=name,
                row_group=row_group,
                columns=columns,
                units=by_column[columns],
                weight=np.ascontiguousarray(rows[row_group][:, columns], np.float32),
                halves=(first, second),
                share=share,
                mean=moments.mean[row_group][columns] * np.float32(centred),
            )


def columns_by_unit(units: Indices, n_units: int) -> list[Indices]:
    """List the positions of every unit's columns."""
    order = np.argsort(units, kind="stable")
    stops = np.cumsum(np.bincount(units, minlength=n_units))
    return np.split(order, stops[:-1])
