"""What a strategy is to the loop: it proposes candidates and is taught what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from autoq.core.choices import Candidate
from autoq.search.records import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Proposal:
    """A candidate, what a sampler must be told again after a resume, and why it is proposed."""

    candidate: Candidate
    params: Mapping[str, Any] = field(default_factory=dict)  # as the study holds them
    notes: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, Any] = field(default_factory=dict)  # JSON-able; predictions among them
    origin: str = ""  # the strategy's name where empty
    warning: str = ""  # something the user should hear once


class Strategy(Protocol):
    """Proposes trial after trial; it keeps no state but the trials it was taught.

    A strategy that was taught the first k records proposes what one that ran them proposes.
    """

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Optuna's distribution of every parameter that trials may have."""
        ...

    def adopt(self, candidate: Candidate) -> Proposal:
        """Say how an anchor, which nobody proposed, looks to the strategy."""
        ...

    def propose(self, number: int) -> Proposal:
        """Propose the candidate of the trial with this number, which must be the next to be taught."""
        ...

    def teach(self, trial: TrialRecord) -> None:
        """Take in a trial; trials come by ascending number."""
        ...
