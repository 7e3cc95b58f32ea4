"""Decoding: from genes to the allocation that they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from autoq.core.choices import Rewrites
from autoq.search.allocation import Allocator, Budget
from autoq.search.genes import between, slot_weights
from autoq.search.guide import Floats, Guide, Stitch
from autoq.search.latency_model import Prices

_SLACK = 1 + 1e-6  # of a budget: its ends must be reachable in floating point


class Decoder:
    """Decodes genes on one float model, between its cheapest and its gentlest allocation."""

    def __init__(
        self, guide: Guide, rewrites: Rewrites, costs: Sequence[Floats], prices: Prices, *, bundle: bool
    ) -> None:
        self._guide, self._bundle = guide, bundle
        self.allocator = Allocator(guide, rewrites, costs, prices, bundle=bundle)

    def decode(self, genes: Mapping[str, Any]) -> Stitch | None:
        """Solve for the budgets and weights that genes ask for; None where that has no solution."""
        latency = n_bytes = None
        if "latency" in genes:
            latency = between(*self._latency_range, float(genes["latency"])) * _SLACK
        if "bytes" in genes:
            n_bytes = between(*self._bytes_range, float(genes["bytes"])) * _SLACK
        weights = slot_weights(genes, len(self._guide.usual))
        return self.allocator.solve(Budget(latency, n_bytes), weights)

    @cached_property
    def _ends(self) -> list[Stitch]:
        ends = (self.allocator.fastest(), self.allocator.smallest(), self.allocator.solve(Budget()))
        return [stitch for stitch in ends if stitch is not None]

    @cached_property
    def _latency_range(self) -> tuple[float, float]:
        priced = [self.allocator.latency_of(stitch) for stitch in self._ends]
        return min(priced), max(priced)

    @cached_property
    def _bytes_range(self) -> tuple[float, float]:
        n_bytes = self._guide.bytes_of(self._ends, bundle=self._bundle)
        return float(n_bytes.min()), float(n_bytes.max())
