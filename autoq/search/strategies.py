"""The strategies by name: `guided`, and Optuna's samplers on the raw parameters of a space."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from autoq.core.choices import Candidate
from autoq.core.errors import UnknownNameError
from autoq.core.measurements import Baseline
from autoq.search.goals import Goals
from autoq.search.proposals import Proposal, Strategy
from autoq.search.records import TrialRecord
from autoq.search.samplers import SAMPLERS, new_sampler, one_torch_thread, seed_of
from autoq.search.space import SearchSpace
from autoq.search.studies import for_samplers, new_study, space_distributions, to_frozen

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

    from autoq.search.engine import Plan

GUIDED = "guided"
_GENERATION = "NSGAIISampler:generation"


def strategy_names() -> list[str]:
    """Names that a spec may give as its strategy, the usual one first."""
    return [GUIDED, *SAMPLERS]


def create_strategy(plan: Plan, baseline: Baseline) -> Strategy:
    """Build the strategy that a plan names.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if plan.strategy == GUIDED:
        from autoq.search.guided import GuidedStrategy

        if plan.guide is None:
            raise ValueError("the guided strategy needs a guide")
        return GuidedStrategy(
            plan.guide,
            goals=plan.goals,
            baseline=baseline,
            n_anchors=len(plan.anchors),
            n_trials=plan.n_trials,
            seed=plan.seed,
        )
    if plan.strategy not in SAMPLERS:
        known = ", ".join(strategy_names())
        raise UnknownNameError(f"no strategy named {plan.strategy!r}", hint=f"known: {known}")
    return SamplerStrategy(
        plan.strategy, space=plan.space, goals=plan.goals, baseline=baseline, seed=plan.seed
    )


class SamplerStrategy:
    """A sampler over the raw parameters of a space: the ablation that keeps `guided` honest.

    Every proposal is drawn by a sampler of its own, seeded from (seed, trial number).
    """

    def __init__(self, name: str, *, space: SearchSpace, goals: Goals, baseline: Baseline, seed: int) -> None:
        self._name, self._seed = name, seed
        self._space, self._goals, self._baseline = space, goals, baseline
        self._study = new_study(goals)
        self._asked: Trial | None = None

    @cached_property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Optuna's distribution of every parameter of the space."""
        return space_distributions(self._space)

    def adopt(self, candidate: Candidate) -> Proposal:
        """Write an anchor as parameters; NSGA-II takes it for a first parent.

        Without a generation it would be in no population, and its good genes lost.
        """
        params = self._space.encode(candidate) or {}
        notes: dict[str, Any] = {_GENERATION: 0} if self._name == "nsga2" and params else {}
        return Proposal(candidate, params, notes)

    def propose(self, number: int) -> Proposal:
        """Ask the sampler for the trial with this number, which must be the next to be taught."""
        self._study.sampler = new_sampler(self._name, seed_of(self._seed, number))
        with one_torch_thread(self._name):
            self._asked = self._study.ask(dict(self.distributions))
        if self._asked.number != number:
            raise ValueError(f"trial {number} is asked for, but {self._asked.number} were taught")
        noted = self._study.get_trials(deepcopy=False)[number].system_attrs
        notes = {_GENERATION: noted[_GENERATION]} if _GENERATION in noted else {}
        params = self._asked.params
        return Proposal(self._space.decode(params), params, notes)

    def teach(self, trial: TrialRecord) -> None:
        """Add a trial to what is known; trials come by ascending number."""
        asked, self._asked = self._asked, None
        if asked is None:
            self._study.add_trial(for_samplers(trial, self._goals, self._baseline, self.distributions))
            return
        frozen = to_frozen(trial, self._goals, self._baseline, self.distributions)
        for key, value in frozen.constraints.items():
            asked.set_constraint(key, value)
        self._study.tell(asked, frozen.values, frozen.state)
