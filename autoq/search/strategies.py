"""The strategies: Optuna's samplers, asked in memory, with a study rebuilt from records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from autoq.core.errors import UnknownNameError
from autoq.core.measurements import Baseline
from autoq.search.goals import Goals
from autoq.search.records import TrialRecord, TrialState
from autoq.search.space import CategoryParam, IntegerParam, Param, SearchSpace

if TYPE_CHECKING:  # importing Optuna takes half a second, and `autoq --help` needs none of it
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

POPULATION_SIZE = 16
_GENERATION = "NSGAIISampler:generation"
# Optuna's database takes 2,046 characters a value; a reason is cut long before.
_REASON_LENGTH = 500


@dataclass(frozen=True)
class Suggestion:
    """What a strategy proposes, and what its sampler must be told again after a resume."""

    params: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)


class Strategy:
    """A sampler over the space, taught trial by trial; it keeps no state but the trials.

    Every proposal is drawn by a sampler of its own, seeded from (seed, trial number): a strategy
    that was taught the first k records proposes what one that ran them proposes.
    """

    def __init__(self, name: str, *, space: SearchSpace, goals: Goals, baseline: Baseline, seed: int) -> None:
        self._new_sampler = _sampler_factory(name)
        self._name, self._seed = name, seed
        self._space, self._goals, self._baseline = space, goals, baseline
        self._distributions = distributions(space)
        self._study = _new_study(goals)
        self._asked: Trial | None = None

    def suggest(self, number: int) -> Suggestion:
        """Propose the candidate of the trial with this number, which must be the next to be taught."""
        self._study.sampler = self._new_sampler(_seed_of(self._seed, number))
        with _one_torch_thread(self._name):
            self._asked = self._study.ask(self._distributions)
        if self._asked.number != number:
            raise ValueError(f"trial {number} is asked for, but {self._asked.number} were taught")
        noted = self._study.get_trials(deepcopy=False)[number].system_attrs
        notes = {_GENERATION: noted[_GENERATION]} if _GENERATION in noted else {}
        return Suggestion(self._asked.params, notes)

    def notes_for_anchor(self, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the notes of a trial that was not asked for: NSGA-II takes it for a first parent.

        Without a generation it would be in no population, and its good genes lost.
        """
        return {_GENERATION: 0} if self._name == "nsga2" and params else {}

    def teach(self, trial: TrialRecord) -> None:
        """Add a trial to what is known; trials come by ascending number."""
        asked, self._asked = self._asked, None
        frozen = to_frozen(trial, self._goals, self._baseline, self._space)
        if asked is None:
            self._study.add_trial(frozen if self._in_space(trial) else _failed(frozen))
            return
        for key, value in frozen.constraints.items():
            asked.set_constraint(key, value)
        self._study.tell(asked, frozen.values, frozen.state)

    def _in_space(self, trial: TrialRecord) -> bool:
        return trial.params.keys() == self._distributions.keys()


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's distribution of every parameter of a space."""
    return {param.name: _distribution(param) for param in space.params}


def to_frozen(trial: TrialRecord, goals: Goals, baseline: Baseline, space: SearchSpace) -> FrozenTrial:
    """Write a record as the trial of an Optuna study, in memory and in the database alike.

    A trial that breaks a constraint is complete, with a constraint above zero; one that failed is
    failed. A user's anchor outside the space has values but no parameters.
    """
    import optuna

    known = distributions(space)
    attrs: dict[str, Any] = {"digest": trial.digest, "origin": trial.origin}
    values, constraints, state = None, None, optuna.trial.TrialState.FAIL
    if trial.state is TrialState.REPEATED:
        attrs["repeated"] = True
    if trial.measurement is None:
        attrs["reason"] = trial.reason[:_REASON_LENGTH]
    else:
        state = optuna.trial.TrialState.COMPLETE
        values = goals.values(trial.measurement)
        constraints = goals.constraints.violations(trial.measurement, baseline)
        attrs["accuracy_drop"] = trial.measurement.accuracy.drop
        attrs["speedup"] = trial.measurement.latency.speedup
    frozen = optuna.trial.create_trial(
        state=state,
        values=values,
        params=dict(trial.params),
        distributions={name: known[name] for name in trial.params},
        user_attrs=attrs,
        system_attrs=dict(trial.sampler_notes),
        constraints=constraints,
    )
    frozen.datetime_start = datetime.fromtimestamp(trial.started_at)
    frozen.datetime_complete = datetime.fromtimestamp(trial.started_at + trial.seconds.get("total", 0.0))
    return frozen


def strategy_names() -> list[str]:
    """Names that a spec may give as its strategy."""
    return ["tpe", "nsga2", "gp", "random"]


def _sampler_factory(name: str) -> Callable[[int], BaseSampler]:
    from optuna import samplers

    class NSGAIISampler(samplers.NSGAIISampler):
        """Optuna's, with parents in the order of their numbers.

        Optuna returns them ranked when it selects them and by number when it has them cached, so
        the same seed gave other children after a resume. The notes carry the class's name.
        """

        def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
            return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)

    factories: dict[str, Callable[[int], BaseSampler]] = {
        # Multivariate: one split of the history per ask, not one per parameter.
        "tpe": lambda seed: samplers.TPESampler(multivariate=True, constant_liar=False, seed=seed),
        "nsga2": lambda seed: NSGAIISampler(population_size=POPULATION_SIZE, seed=seed),
        "gp": lambda seed: samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        "random": lambda seed: samplers.RandomSampler(seed=seed),
    }
    if name not in factories:
        raise UnknownNameError(f"no strategy named {name!r}", hint=f"known: {', '.join(strategy_names())}")
    return factories[name]


def _seed_of(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _distribution(param: Param) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(param, CategoryParam):
        return CategoricalDistribution([str(option) for option in param.options])
    if isinstance(param, IntegerParam):
        return IntDistribution(param.low, param.high)
    return FloatDistribution(param.low, param.high, step=param.step)


def _failed(frozen: FrozenTrial) -> FrozenTrial:
    """Return a trial that samplers pass over: one without parameters empties their common space."""
    import optuna

    return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=frozen.user_attrs)


def _new_study(goals: Goals) -> Study:
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # or it announces the study on stderr
    try:
        return optuna.create_study(directions=goals.directions)
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def _one_torch_thread(strategy: str) -> Iterator[None]:
    """Fit Gaussian processes on one thread: small matrices lose by more, and sums keep their order."""
    if strategy != "gp":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
