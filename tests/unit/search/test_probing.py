from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from small_guides import LatencyLaw, chain, draw_stitches

from autoq.core.choices import AS_IT_IS, FLOAT, Candidate
from autoq.core.errors import OutputsNotFinite, TrialTimeout
from autoq.search.guide import Guide, Stitch
from autoq.search.latency_model import LatencyModel, Timing
from autoq.search.probing import N_PROBES, plan_timings, run_error_probes, run_latency_probes
from autoq.search.sensitivity import plan_probes, sensitivities
from autoq.testing.synthetic import SyntheticRunner

GUIDE = chain(16, n_ties=4)
ANCHORS = [Stitch(AS_IT_IS, (option,) * 16) for option in (0, 1, 4)]


def test_a_plan_is_repeatable_and_never_times_one_stitch_twice() -> None:
    plan = plan_timings(GUIDE, ANCHORS, seed=0)
    assert plan == plan_timings(GUIDE, ANCHORS, seed=0)
    assert plan != plan_timings(GUIDE, ANCHORS, seed=1)
    assert len(set(plan)) == len(plan) == N_PROBES
    for seed in range(4):
        assert not set(plan_timings(GUIDE, ANCHORS, seed=seed)) & set(ANCHORS)


def test_each_option_is_the_gentlest_of_its_kernel() -> None:
    """Bits cost no time, so a probe may as well be a model that works."""
    for stitch in plan_timings(GUIDE, ANCHORS, seed=0):
        assert set(stitch.options) <= {0, 1, 4}


def test_a_plan_leaves_less_doubt_than_as_many_random_stitches() -> None:
    unseen = draw_stitches(GUIDE, 200, np.random.default_rng(9))

    def doubt(stitches: list[Stitch]) -> float:
        model = LatencyModel(GUIDE, [Timing(one, 1.0, 0.01) for one in (*ANCHORS, *stitches)])
        mean, sd = model.predict(unseen)
        return float(np.mean(sd / mean))

    planned = doubt(plan_timings(GUIDE, ANCHORS, seed=0))
    random = [doubt(draw_stitches(GUIDE, N_PROBES, np.random.default_rng(seed))) for seed in range(5)]
    assert planned < np.median(random)


def test_what_is_foretold_after_a_plan_is_nearer_than_after_anchors_alone() -> None:
    rng = np.random.default_rng(0)
    law = LatencyLaw.drawn(GUIDE, rng, spread=0.6, quantising=0.7)
    unseen = draw_stitches(GUIDE, 100, rng)

    def error(stitches: list[Stitch]) -> float:
        ratios = zip(stitches, law(stitches), strict=True)
        model = LatencyModel(GUIDE, [Timing(one, float(ratio), 1e-3) for one, ratio in ratios])
        return float(np.median(np.abs(model.predict(unseen)[0] / law(unseen) - 1.0)))

    assert error([*ANCHORS, *plan_timings(GUIDE, ANCHORS, seed=0)]) < 0.7 * error(ANCHORS)


@pytest.mark.parametrize("n_probes", [0, 1, 500])
def test_no_more_is_planned_than_is_asked_for_or_there_is(n_probes: int) -> None:
    tiny = chain(1)
    assert len(plan_timings(tiny, [], seed=0, n_probes=n_probes)) == min(n_probes, 3)  # one a kernel


class Fragile(SyntheticRunner):
    """Two layers must not be compressed: one breaks the numbers, the other takes for ever."""

    def measure_divergence(self, candidate: Candidate) -> float:
        if candidate.by_layer["layer01"] != FLOAT:
            raise OutputsNotFinite("output 'scores' has NaN")
        if candidate.by_layer["layer02"] != FLOAT:
            raise TrialTimeout("the trial ran past its limit of 1 s")
        return super().measure_divergence(candidate)


def test_outputs_that_are_not_finite_make_a_layer_shunned_and_a_timeout_says_nothing() -> None:
    guide = chain(4)
    probes = run_error_probes(guide, plan_probes(guide), Fragile())
    found = {name: probe.divergence for probe in probes for name in probe.chosen}
    assert found["layer01"] == float("inf")
    assert "layer02" not in found
    reread = Guide.from_json(json.loads(json.dumps(replace(guide, error_probes=probes).to_json())))
    costs = sensitivities(reread)[AS_IT_IS]
    assert costs[1].max() > max(one.max() for at, one in enumerate(costs) if at != 1)


def test_a_latency_that_cannot_be_measured_is_left_out() -> None:
    stitches = draw_stitches(GUIDE, 4, np.random.default_rng(0))
    broken = GUIDE.candidate(stitches[1]).digest
    runner = SyntheticRunner(lambda candidate: "no memory" if candidate.digest == broken else "")
    probes = run_latency_probes(GUIDE, stitches, runner)
    assert [GUIDE.stitch(probe.candidate) for probe in probes] == [stitches[0], *stitches[2:]]
    assert all(probe.ratio > 0.0 and probe.error > 0.0 for probe in probes)
