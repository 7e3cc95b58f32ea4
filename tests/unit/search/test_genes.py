from __future__ import annotations

import math

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from autoq.search.genes import N_STAGES, between, gene_distributions, plain_genes, slot_weights


@pytest.mark.parametrize("latency", [True, False])
@pytest.mark.parametrize("n_bytes", [True, False])
@pytest.mark.parametrize("n_rewrites", [1, 3])
def test_only_what_can_be_traded_has_a_gene(latency: bool, n_bytes: bool, n_rewrites: int) -> None:
    known = gene_distributions(n_rewrites, latency=latency, n_bytes=n_bytes)
    assert ("latency" in known, "bytes" in known) == (latency, n_bytes)
    assert sum(name.startswith("stage") for name in known) == N_STAGES
    if n_rewrites == 1:
        assert "rewrites" not in known
    else:
        assert known["rewrites"] == IntDistribution(0, n_rewrites - 1)


def test_plain_genes_are_legal_and_leave_sensitivities_as_they_are() -> None:
    known = gene_distributions(2, latency=True, n_bytes=True)
    genes = plain_genes(known, latency=0.3, bytes=1.0, rewrites=1.0)
    assert genes.keys() == known.keys()
    assert (genes["latency"], genes["bytes"], genes["rewrites"]) == (0.3, 1.0, 1)
    assert isinstance(genes["rewrites"], int)
    assert all(known[name]._contains(value) for name, value in genes.items())
    assert set(slot_weights(genes, 20).values()) == {1.0}


@pytest.mark.parametrize("n_slots", [0, 1, 5, 6, 20, 601])
def test_every_slot_has_a_stage_in_graph_order(n_slots: int) -> None:
    genes = {f"stage{stage}": math.log(stage + 1) for stage in range(N_STAGES)}
    weights = slot_weights(genes, n_slots)
    assert list(weights) == list(range(n_slots))
    stages = [round(weight) - 1 for weight in weights.values()]
    assert stages == sorted(stages)
    if n_slots >= N_STAGES:
        counts = [stages.count(stage) for stage in range(N_STAGES)]
        assert max(counts) - min(counts) <= 1


def test_a_stage_counts_for_a_fifth_to_five_times_as_much() -> None:
    stage = gene_distributions(1, latency=True, n_bytes=False)["stage0"]
    assert isinstance(stage, FloatDistribution)
    assert math.exp(stage.high) == pytest.approx(5.0, rel=0.02)
    assert stage.low == -stage.high


def test_budgets_lie_between_their_ends_on_a_scale_of_logarithms() -> None:
    assert between(1.0, 100.0, 0.0) == pytest.approx(1.0)
    assert between(1.0, 100.0, 0.5) == pytest.approx(10.0)
    assert between(1.0, 100.0, 1.0) == pytest.approx(100.0)
    assert between(0.5, 0.5, 0.7) == pytest.approx(0.5)
    assert between(0.0, 0.0, 0.5) > 0.0
