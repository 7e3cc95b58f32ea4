from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from small_guides import LatencyLaw, chain, draw_stitches

from autoq.core.choices import AS_IT_IS
from autoq.search.decoding import Decoder
from autoq.search.guide import Stitch
from autoq.search.latency_model import LatencyModel, Timing


def decoder_of(n_layers: int = 12) -> Decoder:
    rng = np.random.default_rng(0)
    guide = chain(n_layers)
    law = LatencyLaw.drawn(guide, rng)
    stitches = draw_stitches(guide, 30, rng)
    timings = [Timing(one, float(ratio), 0.01) for one, ratio in zip(stitches, law(stitches), strict=True)]
    costs = [np.array([0.0, *np.sort(rng.exponential(0.01, 6))]) for _ in guide.usual]
    return Decoder(guide, AS_IT_IS, costs, LatencyModel(guide, timings).prices[AS_IT_IS], bundle=True)


def decoded(decoder: Decoder, **genes: float) -> Stitch:
    found = decoder.decode(genes)
    assert found is not None
    return found


def test_the_ends_of_the_latency_gene_are_the_fastest_and_the_gentlest() -> None:
    decoder = decoder_of()
    fastest = decoder.allocator.fastest()
    assert fastest is not None
    latency = decoder.allocator.latency_of
    assert latency(decoded(decoder, latency=0.0)) == pytest.approx(latency(fastest), rel=0.02)
    assert decoded(decoder, latency=1.0).options == (0,) * 12


def test_more_of_a_budget_is_never_faster_by_much_and_covers_the_range() -> None:
    decoder = decoder_of()
    found = [decoder.allocator.latency_of(decoded(decoder, latency=at)) for at in np.linspace(0, 1, 9)]
    assert all(after >= 0.95 * before for before, after in pairwise(found))
    assert len({round(one, 3) for one in found}) >= 5


def test_both_budgets_are_kept_together() -> None:
    decoder = decoder_of()
    for latency, n_bytes in ((0.0, 0.2), (0.3, 0.3), (0.6, 0.1)):
        both = decoder.decode({"latency": latency, "bytes": n_bytes})
        if both is not None:
            one = decoded(decoder, latency=latency)
            assert decoder.allocator.latency_of(both) <= 1.1 * decoder.allocator.latency_of(one) + 0.05
    assert decoder.decode({"latency": 0.3, "bytes": 0.3}) is not None


def test_a_stage_that_counts_for_more_is_spared() -> None:
    decoder = decoder_of()
    quiet = decoded(decoder, latency=0.5, stage0=-1.6)
    dear = decoded(decoder, latency=0.5, stage0=1.6)
    n_float = [sum(option == 0 for option in one.options[:2]) for one in (quiet, dear)]
    assert n_float[0] <= n_float[1]
    assert quiet != dear


def test_the_same_genes_decode_to_the_same_stitch() -> None:
    genes = {"latency": 0.4, "bytes": 0.6, "stage2": 0.7}
    assert decoder_of().decode(genes) == decoder_of().decode(genes)
