"""Genes: the few numbers that Optuna tunes, and what they ask of the allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

N_STAGES = 6
_MAX_LOG = 1.6  # a stage counts for a fifth, or for five times as much
Genes = Mapping[str, float]


def gene_distributions(n_rewrites: int, *, latency: bool, n_bytes: bool) -> dict[str, BaseDistribution]:
    """Optuna's distributions: budgets as positions between the least and the most, stages as logarithms."""
    from optuna.distributions import FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    if latency:
        found["latency"] = FloatDistribution(0.0, 1.0)
    if n_bytes:
        found["bytes"] = FloatDistribution(0.0, 1.0)
    found |= {f"stage{stage}": FloatDistribution(-_MAX_LOG, _MAX_LOG) for stage in range(N_STAGES)}
    if n_rewrites > 1:
        found["rewrites"] = IntDistribution(0, n_rewrites - 1)
    return found


def plain_genes(known: Mapping[str, BaseDistribution], **given: float) -> dict[str, float]:
    """Genes that leave sensitivities as they are, for budgets and rewrites that are given."""
    return {
        name: int(given.get(name, 0)) if name == "rewrites" else float(given.get(name, 0.0)) for name in known
    }


def slot_weights(genes: Genes, n_slots: int) -> dict[int, float]:
    """Factor on each slot's sensitivity: slots in graph order fall into stages of equal length."""
    stages = np.arange(n_slots) * N_STAGES // max(n_slots, 1)
    return {slot: math.exp(genes.get(f"stage{stage}", 0.0)) for slot, stage in enumerate(stages)}


def between(low: float, high: float, position: float) -> float:
    """A budget between two others, on the scale of logarithms."""
    low, high = max(low, 1e-9), max(high, low, 1e-9)
    return math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
