"""What a trial measures, each figure with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Interval = tuple[float, float]  # 95 %


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Score of one candidate on one split.

    `drop` is positive when the candidate is worse than the baseline, whichever way the metric runs. An
    estimate comes from the first examples of the split alone: the candidate lost its race, and drop and
    value are the middle of the interval, or it is too slow to matter.
    """

    value: float
    drop: float
    drop_ci: Interval | None  # None where the metric is one number for the whole set
    n_examples: int
    is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one run at the target's batch size."""

    latency_ms: float
    latency_ms_ci: Interval
    p90_ms: float
    speedup: float  # baseline time / candidate time, interleaved in one process
    speedup_ci: Interval
    n_blocks: int


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of the deployed file, and the estimate for the storage bundle."""

    size_bytes: int
    bundle_bytes: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything one trial found out."""

    accuracy: Accuracy
    latency: Latency
    size: Size
    storage_only: tuple[str, ...] = ()  # layers whose bits save bytes but no time
    model_digest: str = ""  # of the measured model, byte for byte
    seconds: Mapping[str, float] = field(default_factory=dict)  # where the trial's time went
    divergence: float | None = None  # from the float model's outputs; None if unknown or infinite

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Measurement:
        """Inverse of `to_json`."""
        return Measurement(
            accuracy_from_json(data["accuracy"]),
            latency_from_json(data["latency"]),
            Size(**data["size"]),
            tuple(data["storage_only"]),
            data["model_digest"],
            dict(data["seconds"]),
            data.get("divergence"),
        )


@dataclass(frozen=True, slots=True)
class Baseline:
    """The float model on the target: what every candidate is compared with."""

    accuracy: float
    latency_ms: float
    latency_ms_ci: Interval
    latency_p90_ms: float
    size_bytes: int
    noise_floor: float  # half-width, as a fraction, of the A/A control
    test_accuracy: float | None = None
    is_deterministic: bool = True  # whether two runs of one batch gave the same bits
    accuracy_jitter: float = 0.0  # by how much a second run of the search split scored another value
    measured_at: float = 0.0  # seconds since the epoch; 0: when the search was stored that it is of

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Baseline:
        """Inverse of `to_json`."""
        return Baseline(**{**data, "latency_ms_ci": tuple(data["latency_ms_ci"])})


def accuracy_from_json(data: Mapping[str, Any]) -> Accuracy:
    """Rebuild an `Accuracy` written by `asdict`."""
    interval = data["drop_ci"]
    return Accuracy(**{**data, "drop_ci": None if interval is None else tuple(interval)})


def latency_from_json(data: Mapping[str, Any]) -> Latency:
    """Rebuild a `Latency` written by `asdict`."""
    return Latency(
        **{
            **data,
            "latency_ms_ci": tuple(data["latency_ms_ci"]),
            "speedup_ci": tuple(data["speedup_ci"]),
        }
    )
