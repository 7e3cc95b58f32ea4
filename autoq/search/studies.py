"""Optuna studies rebuilt from records: what samplers look at, and what the database holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from autoq.core.measurements import Baseline
from autoq.search.goals import Goals
from autoq.search.records import TrialRecord, TrialState
from autoq.search.space import CategoryParam, IntegerParam, Param, SearchSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# Lists of trials show it whole.
_REASON_LENGTH = 500


def space_distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's distribution of every parameter of a space."""
    return {param.name: _distribution(param) for param in space.params}


def to_frozen(
    trial: TrialRecord, goals: Goals, baseline: Baseline, known: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    """Write a record as the trial of an Optuna study, in memory and in the database alike.

    A trial that breaks a constraint is complete, with a constraint above zero; one that failed is
    failed. One that the parameters cannot express has values but no parameters.
    """
    import optuna

    attrs: dict[str, Any] = {"digest": trial.digest, "origin": trial.origin, **trial.reasons}
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


def for_samplers(
    trial: TrialRecord, goals: Goals, baseline: Baseline, known: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    """The same for a sampler: it passes over what it cannot express, which would empty the common space."""
    import optuna

    frozen = to_frozen(trial, goals, baseline, known)
    if trial.params.keys() == known.keys():
        return frozen
    return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=frozen.user_attrs)


def study_of(
    trials: Iterable[TrialRecord], goals: Goals, baseline: Baseline, known: Mapping[str, BaseDistribution]
) -> Study:
    """Build a study in memory that holds these trials."""
    study = new_study(goals)
    study.add_trials([for_samplers(trial, goals, baseline, known) for trial in trials])
    return study


def new_study(goals: Goals) -> Study:
    """Create an empty study in memory."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # or it announces the study on stderr
    try:
        return optuna.create_study(directions=goals.directions)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(param: Param) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(param, CategoryParam):
        return CategoricalDistribution([str(option) for option in param.options])
    if isinstance(param, IntegerParam):
        return IntDistribution(param.low, param.high)
    return FloatDistribution(param.low, param.high, step=param.step)
