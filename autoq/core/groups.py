"""Channel groups: channels of several layers that stand or fall together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """How a layer has to do with the channels of a group."""

    WRITES = "writes"  # they are its output channels: rows
    READS = "reads"  # they are its input channels: columns


class GroupKind(StrEnum):
    """What one unit of a group is."""

    CHANNELS = "channels"
    HEADS = "heads"  # of an attention: queries, keys, values and the output projection together
    HIDDEN = "hidden"  # units of an LSTM: all its gates and its recurrence together


@dataclass(frozen=True, slots=True)
class Member:
    """What one layer contributes to a channel group."""

    layer: str  # name of the layer
    role: Role
    # Outputs of a Gather are columns of its table; those of a recurrent layer are rows of one direction
    # of its weight (all gates), its inputs that weight's columns (W, then R). Directions share both.
    # For each of the group's `size` units, in order: the channel indices (of the layer's outputs if it
    # writes, of its inputs if it reads) that go with that unit. Usually one each; a head has many.
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels of several layers that can only be removed together; its width is a choice of its own."""

    name: str  # stable, readable: after its first writer
    size: int  # number of removable units at full width
    kind: GroupKind
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Why some of a layer's channels cannot be removed."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Grouping:
    """All that can be narrowed in a model, and what cannot be and why."""

    groups: tuple[ChannelGroup, ...]
    left_alone: tuple[LeftAlone, ...]
