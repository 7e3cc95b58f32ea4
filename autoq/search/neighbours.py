"""Neighbours: a stitch with one to three of its slots changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from autoq.core.choices import Rewrites
from autoq.search.allocation import worth_having
from autoq.search.guide import Floats, Guide, Stitch

_MAX_CHANGES = 400  # of one stitch; drawn from all where there are more
_N_IN_TRIPLES = 5


@dataclass(frozen=True, slots=True)
class Change:
    """Another option for one slot."""

    slot: int
    option: int

    def apply(self, stitch: Stitch) -> Stitch:
        """Return the stitch with it."""
        options = (*stitch.options[: self.slot], self.option, *stitch.options[self.slot + 1 :])
        return Stitch(stitch.rewrites, options)

    def text(self, guide: Guide) -> str:
        """Say it to people."""
        slot = guide.usual[self.slot]
        return f"{slot.name}: {slot.options[self.option].what}"


def all_changes(guide: Guide, rewrites: Rewrites, costs: Sequence[Floats]) -> list[Change]:
    """Every option worth having of every slot."""
    return [
        Change(at, option)
        for at, slot in enumerate(guide.slots[rewrites])
        for option in worth_having(
            [one.kernel for one in slot.options],
            costs[at],
            np.array([one.bundle_bytes for one in slot.options], np.float64),
        )
    ]


def single_changes(changes: Sequence[Change], stitch: Stitch, rng: np.random.Generator) -> Sequence[Change]:
    """Those changes that change a stitch, or a draw of them."""
    changes = [one for one in changes if one.option != stitch.options[one.slot]]
    if len(changes) <= _MAX_CHANGES:
        return changes
    drawn = sorted(rng.choice(len(changes), _MAX_CHANGES, replace=False))
    return [changes[at] for at in drawn]


def combined_changes(ranked: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """Pairs of the given changes, and triples of the first few, each of different slots."""
    together = [*combinations(ranked, 2), *combinations(ranked[:_N_IN_TRIPLES], 3)]
    return (changes for changes in together if len({one.slot for one in changes}) == len(changes))
