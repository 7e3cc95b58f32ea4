"""Probes: which whole models to run before the first trial, and running them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from autoq.core.errors import OutputsNotFinite, TrialError
from autoq.core.measurements import Latency
from autoq.evaluation.statistics import Z
from autoq.search.guide import ErrorProbe, Guide, LatencyProbe, Option, Stitch
from autoq.search.latency_model import LatencyModel, Timing
from autoq.search.ports import TrialRunner
from autoq.search.sensitivity import ProbePlan

_log = logging.getLogger("autoq")

N_PROBES = 12
_POOL = 160
_SWITCH_CHANCES = (0.05, 0.2, 0.5)  # of another kernel from one slot to the next


def plan_timings(
    guide: Guide, known: Sequence[Stitch], *, seed: int, n_probes: int = N_PROBES
) -> list[Stitch]:
    """Choose stitches greedily, each the one that the model knows least about given all before.

    The variance of a linear model does not depend on what is measured, so the whole plan can be made
    beforehand (D-optimal design, Fedorov 1972). The pool holds mixes of kernels with long and short runs
    of one kernel, so that the cost of conversions shows.

    Args:
        guide: Slots and profile.
        known: Stitches that will be measured anyway: the anchors.
        seed: Of the pool.
        n_probes: How many at most.
    """
    pool = list(dict.fromkeys(_pool(guide, np.random.default_rng(seed))))
    chosen: list[Stitch] = []
    while pool and len(chosen) < n_probes:
        # The values are of no account, only where they were taken.
        model = LatencyModel(guide, [Timing(stitch, 1.0, 0.01) for stitch in (*known, *chosen)])
        mean, sd = model.predict(pool)
        chosen.append(pool.pop(int(np.argmax(sd / mean))))
    return chosen


def run_error_probes(guide: Guide, plans: Sequence[ProbePlan], runner: TrialRunner) -> tuple[ErrorProbe, ...]:
    """Measure how far each planned model is from the float model.

    Outputs that are not finite are infinitely far, which is what a search has to know of what was
    compressed. A probe that fails otherwise says nothing, and is left out.
    """
    found = []
    for plan in plans:
        options = [
            plan.chosen.get(slot.name, float_option)
            for slot, float_option in zip(guide.usual, guide.float_options, strict=True)
        ]
        candidate = guide.candidate(Stitch(plan.rewrites, tuple(options)))
        try:
            divergence = runner.measure_divergence(candidate)
        except OutputsNotFinite:
            divergence = math.inf
        except TrialError as error:
            _log.info("a probe of %s failed: %s", ", ".join(plan.chosen), error)
            continue
        found.append(ErrorProbe(plan.rewrites, plan.chosen, divergence))
    return tuple(found)


def run_latency_probes(
    guide: Guide, stitches: Sequence[Stitch], runner: TrialRunner
) -> tuple[LatencyProbe, ...]:
    """Time each stitch; one that fails is left out."""
    found = []
    for candidate in map(guide.candidate, stitches):
        try:
            latency = runner.measure_latency(candidate)
        except TrialError as error:
            _log.info("a timing probe failed: %s", error)
            continue
        found.append(LatencyProbe(candidate, 1.0 / latency.speedup, _log_error(latency)))
    return tuple(found)


def _log_error(latency: Latency) -> float:
    low, high = latency.speedup_ci
    return max(math.log(max(high, 1e-12) / max(low, 1e-12)) / (2 * Z), 1e-3)


def _pool(guide: Guide, rng: np.random.Generator) -> list[Stitch]:
    """Draw stitches; each option is the gentlest of its kernel."""
    gentlest = [_gentlest(slot.options) for slot in guide.usual]
    kernels = list(dict.fromkeys(kernel for options in gentlest for kernel in options))
    # Narrower models have shapes of their own to learn of; what else is rewritten moves no time.
    contexts = [guide.rewrites[0], *(one for one in guide.rewrites[1:] if one.widths)]
    stitches = []
    for at in range(_POOL):
        chance = rng.choice(_SWITCH_CHANCES)
        favoured = rng.choice(kernels)
        options = []
        for offered in gentlest:
            if rng.random() < chance or favoured not in offered:
                favoured = rng.choice(list(offered))
            options.append(offered[favoured])
        stitches.append(Stitch(contexts[at % len(contexts)], tuple(options)))
    return stitches


def _gentlest(options: Sequence[Option]) -> dict[str, int]:
    found: dict[str, tuple[float, int]] = {}
    for index, option in enumerate(options):
        error = option.weight_error + option.activation_error
        if option.kernel not in found or error < found[option.kernel][0]:
            found[option.kernel] = (error, index)
    return {kernel: index for kernel, (_, index) in found.items()}
