"""Records of a search: what the store keeps and every view shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from autoq.core.choices import Candidate
from autoq.core.measurements import (
    Accuracy,
    Baseline,
    Latency,
    Measurement,
    accuracy_from_json,
    latency_from_json,
)


class SearchState(StrEnum):
    """Life of a search; all but `finished` can be resumed."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class TrialState(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    REPEATED = "repeated"  # the sampler proposed a candidate that was measured before
    FAILED = "failed"


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `number` is also its number in the Optuna study."""

    number: int
    origin: str  # `anchor int8/channel/minmax`, or the strategy that proposed it
    params: Mapping[str, Any]  # the sampler's parameters, as the study holds them
    candidate: Candidate
    state: TrialState
    measurement: Measurement | None = None  # None when failed
    reason: str = ""  # why it failed
    # What the sampler noted about this trial and needs again after a resume (NSGA-II: generation).
    sampler_notes: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = 0.0  # seconds since the epoch
    seconds: Mapping[str, float] = field(default_factory=dict)  # suggest, build, load, latency, ...
    # Why it was tried, and what was foretold of it: `kind`, `why`, `predicted_latency_ms`, ...
    reasons: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the candidate."""
        return self.candidate.digest


@dataclass(frozen=True)
class TestAccuracy:
    """What the test split says of a front member; it annotates and never re-decides."""

    __test__ = False  # not a pytest class

    accuracy: Accuracy
    holds: str  # yes | no | undecided


@dataclass(frozen=True)
class FinalMeasurement:
    """The fresh, longer measurement of one candidate near the front."""

    digest: str
    latency: Latency
    test: TestAccuracy | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> FinalMeasurement:
        """Inverse of `to_json`."""
        test = data["test"]
        return FinalMeasurement(
            data["digest"],
            latency_from_json(data["latency"]),
            None if test is None else TestAccuracy(accuracy_from_json(test["accuracy"]), test["holds"]),
        )


@dataclass(frozen=True)
class SearchRecord:
    """One search as the store knows it."""

    name: str
    spec: Mapping[str, Any]  # the spec as normalised JSON, paths absolute
    spec_digest: str  # of everything that decides what is searched; not of trials or time budget
    state: SearchState
    created_at: float = 0.0  # seconds since the epoch
    model_digest: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)  # CPU, runtime versions, ...
    baseline: Baseline | None = None  # None until preparation is done
    preparation_s: Mapping[str, float] = field(default_factory=dict)
    message: str = ""  # why it stopped, for people

    def but(self, **changes: Any) -> SearchRecord:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)
