"""Which width each channel group should have: greedy descent of divergence against predicted latency."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoq.core.groups import ChannelGroup, Role
from autoq.core.layers import Layer

Floats = npt.NDArray[np.float64]
Divergences = Mapping[str, Mapping[int, float]]  # by group and width; 0 at full width

_FIXED = 0.12  # share of a layer's int8 time that does not shrink with its widths
_LEAST, _MOST = 1e-9, 1e3  # divergences that logarithms are taken of
_FREE = 1e-6  # a step that costs less is as good as free


@dataclass(frozen=True, slots=True)
class Allocation:
    """Widths that are expected to reach a share of the latency at full width."""

    share: float  # asked for
    predicted: float
    widths: Mapping[str, int]  # units kept, of groups that are narrower than they were


class LatencyShares:
    """Predicts what share of latency is left: a layer's time scales with what is left of its two sides.

    Weightless ops count as if they stayed as they are, as does the time that belongs to no layer.
    """

    def __init__(
        self, shares: Mapping[str, float], layers: Iterable[Layer], groups: Sequence[ChannelGroup]
    ) -> None:
        """Lay the sides of layers out.

        Args:
            shares: Share of latency at full width by layer; those that are missing count as nothing.
            layers: Of the model at full width.
            groups: Those that may get narrower.
        """
        timed = [layer for layer in layers if layer.name in shares]
        self._shares = np.array([shares[layer.name] for layer in timed])
        self._rest = 1.0 - float(self._shares.sum())
        self._sizes = {group.name: group.size for group in groups}
        # What a removed unit takes of the outputs and of the inputs of every layer, as a share of them.
        self._outputs = {group.name: _parts(group, timed, Role.WRITES) for group in groups}
        self._inputs = {group.name: _parts(group, timed, Role.READS) for group in groups}

    def predict(self, widths: Mapping[str, int]) -> float:
        """Return the share of the latency that is left at some widths."""
        name = next(iter(widths), None)
        return 1.0 if name is None else float(self.predict_each(widths, name, [widths[name]])[0])

    def predict_each(self, widths: Mapping[str, int], name: str, offered: Sequence[int]) -> Floats:
        """Return the share that is left if one group had each of some widths; (offered,)."""
        others = {one: width for one, width in widths.items() if one != name}
        outputs, inputs = (
            1.0 - sum((parts[one] * (self._sizes[one] - width) for one, width in others.items()), 0.0)
            for parts in (self._outputs, self._inputs)
        )
        removed = self._sizes[name] - np.array(offered, np.float64)[:, None]
        left = (outputs - removed * self._outputs[name]) * (inputs - removed * self._inputs[name])
        return np.asarray(self._rest + (_FIXED + (1.0 - _FIXED) * left) @ self._shares, np.float64)


def _parts(group: ChannelGroup, layers: Sequence[Layer], role: Role) -> Floats:
    """Share of a side of every layer that one unit of a group has; (layers,)."""
    parts = np.zeros(len(layers))
    for at, layer in enumerate(layers):
        if role is Role.READS and layer.group > 1 and not layer.is_recurrent:
            continue  # whole groups of the convolution go: it is the other side that says how many
        n_channels = sum(
            len(channels)
            for member in group.members
            if member.layer == layer.name and member.role is role
            for channels in member.channels
        )
        parts[at] = n_channels / group.size / _n_channels(layer, role)
    return parts


def _n_channels(layer: Layer, role: Role) -> int:
    shape, axis = layer.weight_shape, layer.channel_axis
    if layer.is_recurrent:
        return shape[1] if role is Role.WRITES else shape[2]
    if layer.op == "Gather":
        return shape[1]  # it writes columns of its table
    n_channels = shape[axis] if role is Role.WRITES else shape[1 - axis]
    return n_channels * layer.group if layer.op == "ConvTranspose" and role is Role.WRITES else n_channels


def between_measured(widths: Sequence[int], measured: Mapping[int, float], size: int) -> dict[int, float]:
    """Fill a table of divergences in, on the scale of logarithms; a narrower group never diverges less.

    Args:
        widths: Those wanted, below full width.
        measured: Divergence at some of them, the narrowest and the widest at least; what is not finite
            is very large.
        size: Full width, which diverges by nothing.
    """
    ordered = sorted(widths)
    known = sorted(measured)
    found = np.nan_to_num([measured[width] for width in known], nan=_MOST, posinf=_MOST)
    monotone = np.maximum.accumulate(np.clip(found, _LEAST, _MOST)[::-1])[::-1]
    filled = np.exp(np.interp(ordered, known, np.log(monotone)))
    return {**dict(zip(ordered, filled.tolist(), strict=True)), size: 0.0}


def descend(table: Divergences, latency: LatencyShares) -> Iterator[tuple[dict[str, int], float]]:
    """Yield ever narrower widths of all groups: every step is the one that buys most time for its divergence.

    A step may pass over several widths of a group, as divergence need not be convex in width.

    Returns:
        Widths of all groups, and the share of the latency that they are expected to leave.
    """
    widths = {name: max(found) for name, found in table.items()}
    now = latency.predict(widths)
    while True:
        best: tuple[float, str, int, float] | None = None
        for name, found in table.items():
            offered = [width for width in found if width < widths[name]]
            if not offered:
                continue
            shares = latency.predict_each(widths, name, offered)
            costs = np.array([found[width] - found[widths[name]] for width in offered])
            gains = (now - shares) / np.maximum(costs, _FREE)
            at = int(np.argmax(gains))
            if shares[at] < now and (best is None or gains[at] > best[0]):
                best = float(gains[at]), name, offered[at], float(shares[at])
        if best is None:
            return
        _, name, width, now = best
        widths[name] = width
        yield dict(widths), now


def allocate(table: Divergences, latency: LatencyShares, shares: Iterable[float]) -> list[Allocation]:
    """Return the first widths of a descent that reach each share, widest first; out of reach is left out.

    Args:
        table: Divergence of the model with one group narrowed.
        latency: Predicts what is left.
        shares: Of the latency at full width.
    """
    found: list[Allocation] = []
    wanted = sorted((share for share in shares if share < 1.0), reverse=True)
    for widths, left in descend(table, latency):
        while wanted and left <= wanted[0]:
            narrower = {name: width for name, width in widths.items() if width < max(table[name])}
            found.append(Allocation(wanted.pop(0), left, narrower))
        if not wanted:
            break
    return found
