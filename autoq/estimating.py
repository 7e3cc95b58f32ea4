"""What a search will cost, said before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass

from autoq.calibrating import foreseeable, rewrites_of
from autoq.preparation import Preparation, time_float_model
from autoq.search.finals import MAX_FINALISTS


@dataclass(frozen=True)
class Estimate:
    """What a search will cost, said before it starts."""

    n_trials: int
    n_anchors: int
    search_s: float  # trials, upper estimate
    finals_s: float  # final round, upper estimate
    disk_bytes: int
    refusals: tuple[str, ...]  # what the target will not run, one line each


def estimate_cost(ready: Preparation) -> Estimate:
    """Bound the cost from above: every trial takes the float model's time and the whole timing budget."""
    spec = ready.spec
    run_s = time_float_model(ready) if ready.baseline is None else ready.baseline.latency_ms / 1e3
    n_runs = ready.data.search.n_examples / ready.target.batch_size
    trial_s = spec.timing.search_s + n_runs * run_s
    search_s = spec.search.trials * trial_s
    if spec.search.time_budget_s is not None:
        search_s = min(search_s, spec.search.time_budget_s)
    n_test = 0 if ready.data.test is None else ready.data.test.n_examples
    finals_s = MAX_FINALISTS * (spec.timing.final_s + n_test / ready.target.batch_size * run_s)
    sizes = {layer.name: layer.n_params for layer in ready.model.summary.layers}
    n_narrower = ready.width_rule.n_narrower  # anchors, and float models: which widths is decided later
    all_rewrites = rewrites_of(ready.space, ready.anchors)
    variants = sum(
        sizes[name] for one in all_rewrites for name, _ in foreseeable(ready.space, ready.anchors, one)
    )
    refusals = tuple(
        f"{refusal.what} on {len(refusal.layers)} layers: {refusal.reason}"
        for refusal in ready.space.refusals
    )
    return Estimate(
        n_trials=spec.search.trials,
        n_anchors=len(ready.anchors) + n_narrower,
        search_s=search_s,
        finals_s=finals_s,
        disk_bytes=variants + 2 * (len(all_rewrites) + n_narrower) * ready.model.summary.size_bytes,
        refusals=refusals,
    )
