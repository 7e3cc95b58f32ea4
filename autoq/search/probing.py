"""Probes: which whole models to run before the first trial, and running them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from autoq.core.choices import Rewrites
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
_TARGETS = 160
_PROMISING = 0.75  # of the targets; the others are mixes of anything
_EXPECTED_ERROR, _EXPECTED_MISFIT = 0.02, 0.03  # of a timing, and of the model, relative
_WORTHS = (-7.0, 2.0)  # logarithms of how much time a typical error is worth
_SWITCH_CHANCES = (0.05, 0.2, 0.5)  # of another kernel from one slot to the next


def plan_timings(
    guide: Guide, known: Sequence[Stitch], *, seed: int, n_probes: int = N_PROBES
) -> list[Stitch]:
    """Choose stitches greedily, each the one whose timing says most about those a search may come to.

    What is learnt of the others is their mean variance, relative (V-optimal design, Fedorov 1972): a slow
    kernel that no good candidate has need not be known well. The variance of a linear model does not depend
    on what is measured, so the whole plan can be made beforehand. The pool holds mixes of kernels with long
    and short runs of one kernel, so that the cost of conversions shows, and what looks promising.

    Args:
        guide: Slots and profile.
        known: Stitches that will be measured anyway: the anchors.
        seed: Of the pool.
        n_probes: How many at most.
    """
    rng = np.random.default_rng(seed)
    n_promising = round(_PROMISING * _TARGETS)
    targets = _promising(guide, rng, n_promising) + _mixes(guide, rng, _TARGETS - n_promising)
    drawn = dict.fromkeys(_promising(guide, rng, _POOL // 2) + _mixes(guide, rng, _POOL // 2))
    pool = [one for one in drawn if one not in set(known)]
    prior = LatencyModel(guide).predict(known)[0] if known else ()
    timings = [Timing(*one, _EXPECTED_ERROR) for one in zip(known, prior, strict=True)]
    mean, covariance = LatencyModel(guide, timings, misfit=_EXPECTED_MISFIT).joint([*targets, *pool])
    noise = (_EXPECTED_ERROR * mean) ** 2
    of_targets = slice(0, len(targets))
    chosen: list[int] = []
    for _ in range(min(n_probes, len(pool))):
        told = (covariance[of_targets] / mean[of_targets, None]) ** 2
        gains = told.sum(axis=0) / (covariance.diagonal() + noise)
        gains[[*range(len(targets)), *chosen]] = -1.0
        best = int(np.argmax(gains))
        chosen.append(best)
        row = covariance[best]
        covariance = covariance - np.outer(row, row) / (row[best] + noise[best])
    return [pool[one - len(targets)] for one in chosen]


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


def _mixes(guide: Guide, rng: np.random.Generator, n_stitches: int) -> list[Stitch]:
    """Draw stitches of any kernels; each option is the gentlest of its kernel."""
    gentlest = [_gentlest(slot.options) for slot in guide.usual]
    kernels = list(dict.fromkeys(kernel for options in gentlest for kernel in options))
    contexts = _contexts(guide)
    stitches = []
    for at in range(n_stitches):
        chance = rng.choice(_SWITCH_CHANCES)
        favoured = rng.choice(kernels)
        options = []
        for offered in gentlest:
            if rng.random() < chance or favoured not in offered:
                favoured = rng.choice(list(offered))
            options.append(offered[favoured])
        stitches.append(Stitch(contexts[at % len(contexts)], tuple(options)))
    return stitches


def _promising(guide: Guide, rng: np.random.Generator, n_stitches: int) -> list[Stitch]:
    """Draw stitches of kernels that seem worth their time, for all that time may be worth.

    Local errors stand in for what compression costs, and may be wrong by a factor of e either way.
    """
    contexts, prices = _contexts(guide), LatencyModel(guide).prices
    offered = [list(_gentlest(slot.options).values()) for slot in guide.usual]
    errors = [
        np.nan_to_num([_error(slot.options[one]) for one in options])
        for slot, options in zip(guide.usual, offered, strict=True)
    ]
    typical = np.mean([one.mean() for one in errors]) if errors else 0.0
    stitches = []
    for at in range(n_stitches):
        rewrites = contexts[at % len(contexts)]
        weight = math.exp(rng.uniform(*_WORTHS)) / (max(len(errors), 1) * max(float(typical), 1e-12))
        chosen = []
        for options, error, price in zip(offered, errors, prices[rewrites].options, strict=True):
            costs = price[options] * np.exp(0.2 * rng.standard_normal(len(options)))
            chosen.append(options[int(np.argmin(costs + weight * math.exp(rng.standard_normal()) * error))])
        stitches.append(Stitch(rewrites, tuple(chosen)))
    return stitches


def _contexts(guide: Guide) -> list[Rewrites]:
    """Narrower models have shapes of their own to learn of; what else is rewritten moves no time."""
    return [guide.rewrites[0], *(one for one in guide.rewrites[1:] if one.widths)]


def _gentlest(options: Sequence[Option]) -> dict[str, int]:
    found: dict[str, tuple[float, int]] = {}
    for index, option in enumerate(options):
        error = _error(option)
        if option.kernel not in found or error < found[option.kernel][0]:
            found[option.kernel] = (error, index)
    return {kernel: index for kernel, (_, index) in found.items()}


def _error(option: Option) -> float:
    return option.weight_error + option.activation_error
