"""Which whole models to time before the first trial, so that the latency model can tell parts apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoq.search.guide import Guide, Option, Stitch
from autoq.search.latency_model import LatencyModel, Timing

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
