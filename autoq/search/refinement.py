"""After the trials: the best points once more, with what is too slow to search with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoq.core.choices import Candidate, Rounding
from autoq.search.goals import Goals
from autoq.search.outcome import build_outcome
from autoq.search.records import SearchRecord, TrialRecord

MAX_REFINED = 3  # the best point, and so many of the front beside it as are left
_BITS = 8  # a grid of so many leaves nothing to gain
_OF_TRIAL = " of trial "


@dataclass(frozen=True, slots=True)
class Refinement:
    """A point's candidate with its layers rounded anew."""

    origin: str  # `adaround of trial 7`
    candidate: Candidate


def is_refinement(trial: TrialRecord) -> bool:
    """Whether a trial is one of these: it counts towards no budget of trials."""
    return any(trial.origin.startswith(f"{rounding}{_OF_TRIAL}") for rounding in Rounding)


def refinements(
    record: SearchRecord, goals: Goals, trials: Sequence[TrialRecord], rounding: Rounding
) -> list[Refinement]:
    """List what to try: the best point first, then feasible members of the front, fastest first.

    Only points with a layer on a grid below 8 bits count, and exactly these layers change. Trials that
    are refinements themselves are passed over, so an interrupted round is resumed with the same list.
    """
    outcome = build_outcome(record, goals, [trial for trial in trials if not is_refinement(trial)])
    first = [] if outcome.best is None else [outcome.best]
    known = {trial.digest for trial in trials}
    found: dict[str, Refinement] = {}
    for point in (*first, *(point for point in outcome.front if point.feasible)):
        candidate = _rounded(point.trial.candidate, rounding)
        if candidate != point.trial.candidate:
            origin = f"{rounding}{_OF_TRIAL}{point.trial.number}"
            found.setdefault(candidate.digest, Refinement(origin, candidate))
    chosen = list(found.values())[:MAX_REFINED]
    return [one for one in chosen if one.candidate.digest not in known]


def _rounded(candidate: Candidate, rounding: Rounding) -> Candidate:
    for name, choice in candidate.choices:
        if choice.weight_bits < _BITS:
            candidate = candidate.with_choice(name, replace(choice, rounding=rounding))
    return candidate
