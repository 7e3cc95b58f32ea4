"""Snapshots: what a channel group and its consumers become at each width that a search may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.errors import UnknownNameError
from autoq.core.groups import ChannelGroup
from autoq.pruning.consumers import Consumer, Indices
from autoq.pruning.refit import Refit, choose_ridge, refit_nested
from autoq.pruning.scores import ranked

MAX_WIDTHS = 16


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Some columns of one row group of a layer (see `Consumer`), refitted."""

    row_group: int
    replaced: Indices  # all columns that read the channel group; the others stand still
    refit: Refit


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One channel group at one width."""

    group: str
    kept: tuple[int, ...]  # units, rising
    refits: Mapping[str, tuple[Part, ...]]  # by layer that reads the group
    error: float  # sum over consumers of the refit's error, each as a share of its outputs' variance

    @property
    def width(self) -> int:
        """Units that stay."""
        return len(self.kept)


@dataclass(frozen=True, eq=False)
class GroupSnapshots:
    """All widths of one channel group, nested; the full width is the group as it was."""

    group: ChannelGroup
    order: Indices  # units, least important first
    by_width: Mapping[int, Snapshot]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths on offer, rising."""
        return tuple(sorted(self.by_width))

    def at(self, width: int) -> Snapshot:
        """Return the snapshot of a width.

        Raises:
            UnknownNameError: The width is not on the grid.
        """
        if width not in self.by_width:
            known = ", ".join(str(one) for one in self.widths)
            raise UnknownNameError(
                f"channel group {self.group.name!r} has no width {width}", hint=f"its widths: {known}"
            )
        return self.by_width[width]


def width_grid(size: int, multiple: int, *, most: int = MAX_WIDTHS) -> tuple[int, ...]:
    """List the widths of a group: multiples of what the target likes, and always the full width.

    Args:
        size: Units at full width, at least one.
        multiple: What the target likes, in units.
        most: Where there are more, a multiple of the step is taken instead.
    """
    step = multiple * -(-size // (multiple * most))
    return (*range(step, size, step), size)


def build_snapshots(
    group: ChannelGroup, consumers: Sequence[Consumer], order: Indices, widths: Sequence[int]
) -> GroupSnapshots:
    """Refit the consumers of a group at every width.

    λ is chosen once a consumer, at the width in the middle of the grid.

    Args:
        group: The group.
        consumers: What reads it.
        order: Its units, the least important first.
        widths: Those wanted; the full width is added.
    """
    narrower = sorted({width for width in widths if width < group.size}, reverse=True)
    refits: dict[int, dict[str, list[Part]]] = {width: {} for width in narrower}
    for consumer in consumers if narrower else ():
        by_width = _refit_all(consumer, order, narrower)
        for width, one in zip(narrower, by_width, strict=True):
            refits[width].setdefault(consumer.layer, []).append(
                Part(consumer.row_group, consumer.columns, one)
            )
    snapshots = {group.size: Snapshot(group.name, tuple(range(group.size)), {}, 0.0)}
    for width, layers in refits.items():
        kept = tuple(ranked(order, width).tolist())
        error = sum(_share(parts) for parts in layers.values())
        parts_of = {name: tuple(parts) for name, parts in layers.items()}
        snapshots[width] = Snapshot(group.name, kept, parts_of, error)
    return GroupSnapshots(group, order, snapshots)


def _refit_all(consumer: Consumer, order: Indices, widths: Sequence[int]) -> list[Refit]:
    """Refit at falling widths."""
    rank = np.empty(len(order), np.int64)  # how long a unit stays: 0 longest
    rank[order[::-1]] = np.arange(len(order))
    of_column = rank[consumer.units]
    columns = np.argsort(of_column, kind="stable")
    counts = [int((of_column < width).sum()) for width in widths]
    middle = counts[len(counts) // 2]
    ridge = choose_ridge(consumer, of_column < widths[len(counts) // 2]) if middle else 1.0
    return list(refit_nested(consumer, columns[: counts[0]], counts, ridge))


def _share(parts: Sequence[Part]) -> float:
    """Error of a layer over its row groups and blocks, as a share of their variance."""
    variance = sum(part.refit.variance for part in parts)
    lost = sum(part.refit.error * part.refit.variance for part in parts)
    return lost / variance if variance > 0.0 else 0.0
