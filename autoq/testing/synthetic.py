"""A target and a runner made of arithmetic: searches without a model, in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Candidate, Choice, Format, Precision
from autoq.core.data import Feed
from autoq.core.errors import TrialError
from autoq.core.layers import Layer, OpFamily, WeightlessOp
from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement, Size
from autoq.evaluation.ports import Session, Verdict
from autoq.search.records import FinalMeasurement, TestAccuracy

_LAYER_MS = {
    Format.FP32: 1.0,
    Format.INT8: 0.25,
    Format.INT8_S8: 0.8,
    Format.INT8_DYNAMIC: 0.5,
    Format.INT8_WEIGHT: 0.9,
    Format.INT4_WEIGHT: 0.7,
}
_BASELINE_ACCURACY = 0.9


class SyntheticTarget:
    """Runs everything but what it is told to refuse, with the reason. Opens no model."""

    def __init__(
        self,
        refuse: Callable[[Layer, Choice], str] = lambda layer, choice: "",
        *,
        refused_families: Sequence[OpFamily] = (),
    ) -> None:
        self._refuse, self._refused_families = refuse, refused_families

    @property
    def name(self) -> str:
        """Readable identity."""
        return "synthetic"

    @property
    def batch_size(self) -> int:
        """Examples a run."""
        return 1

    def environment(self) -> dict[str, Any]:
        """Describe the target."""
        return {"runtime": "synthetic"}

    def judge(self, layer: Layer, choice: Choice) -> Verdict:
        """Refuse what the target was told to refuse."""
        reason = self._refuse(layer, choice)
        return Verdict(legal=not reason, reason=reason)

    def judge_op(self, family: OpFamily) -> Verdict:
        """Refuse the families that the target was told to refuse."""
        refused = family in self._refused_families
        return Verdict(legal=not refused, reason=f"no int8 kernel for {family}" if refused else "")

    def profile(self, model: ModelArtifact, feeds: Sequence[Feed]) -> dict[str, float]:
        """Know nothing of kernels."""
        return {}

    def open(self, model: ModelArtifact, *, optimize: bool = True) -> Session:
        """Refuse: there is nothing to run a model on."""
        raise TrialError("the synthetic target opens no model")


class SyntheticRunner:
    """Figures every candidate by a formula: narrower is faster, smaller and less accurate.

    `fail` returns why a candidate fails, or nothing. `measured` lists the digests that were run.
    """

    def __init__(self, fail: Callable[[Candidate], str] = lambda candidate: "") -> None:
        self._fail = fail
        self.measured: list[str] = []
        self.finals: list[str] = []

    def turn(self) -> AbstractContextManager[object]:
        """Nothing to wait for."""
        return nullcontext()

    def measure_baseline(self) -> Baseline:
        """Return the float model's figures: one millisecond and 4,000 bytes in all."""
        return synthetic_baseline()

    def run_trial(self, candidate: Candidate) -> Measurement:
        """Return the candidate's figures."""
        self.measured.append(candidate.digest)
        if reason := self._fail(candidate):
            raise TrialError(reason)
        return synthetic_measurement(candidate)

    def measure_divergence(self, candidate: Candidate) -> float:
        """Return the candidate's divergence, which grows as its drop does."""
        if reason := self._fail(candidate):
            raise TrialError(reason)
        return synthetic_divergence(candidate)

    def measure_latency(self, candidate: Candidate) -> Latency:
        """Return the candidate's latency."""
        if reason := self._fail(candidate):
            raise TrialError(reason)
        return synthetic_measurement(candidate).latency

    def run_final(self, candidate: Candidate) -> FinalMeasurement:
        """Return the same latency again, and a test accuracy."""
        self.finals.append(candidate.digest)
        if reason := self._fail(candidate):
            raise TrialError(reason)
        measurement = synthetic_measurement(candidate)
        return FinalMeasurement(
            candidate.digest, measurement.latency, TestAccuracy(measurement.accuracy, "yes")
        )


def synthetic_layers(n_layers: int = 3, *, op: str = "Conv") -> list[Layer]:
    """Build layers `layer0`, `layer1`, ..."""
    return [Layer(f"layer{index}", op, (8, 4, 3, 3), 0) for index in range(n_layers)]


def synthetic_ops(n_adds: int = 2) -> list[WeightlessOp]:
    """Build residual adds `add0`, ... and one `softmax`."""
    adds = [WeightlessOp(f"add{index}", "Add", OpFamily.ADD) for index in range(n_adds)]
    return [*adds, WeightlessOp("softmax", "Softmax", OpFamily.SOFTMAX)]


def synthetic_baseline() -> Baseline:
    """Figures of the float model."""
    return Baseline(
        accuracy=_BASELINE_ACCURACY,
        latency_ms=1.0,
        latency_ms_ci=(0.99, 1.01),
        latency_p90_ms=1.1,
        size_bytes=4_000,
        noise_floor=0.01,
    )


def synthetic_measurement(candidate: Candidate) -> Measurement:
    """Figure a candidate; no two layers weigh the same, so that few candidates tie."""
    weights = [index + 1.0 for index in range(len(candidate.choices))]
    total = sum(weights)
    ms = drop = size = 0.0
    for weight, (_, choice) in zip(weights, candidate.choices, strict=True):
        share = weight / total
        ms += share * _LAYER_MS[choice.format] * (1.0 - 0.1 * choice.sparsity)
        size += share * 4_000 * choice.weight_bits / 32 * (1.0 - choice.sparsity)
        if choice.format is not Format.FP32:
            drop += 0.02 / weight * 2.0 ** (8 - choice.weight_bits)
            drop += 0.01 * (choice.calibration == "minmax")
        drop += 0.1 * share * choice.sparsity**2
    ms -= 0.01 * sum(precision is Precision.INT8 for _, precision in candidate.graph)
    return Measurement(
        accuracy=Accuracy(_BASELINE_ACCURACY - drop, drop, (drop - 0.01, drop + 0.01), 100),
        latency=Latency(ms, (ms * 0.99, ms * 1.01), ms * 1.1, 1.0 / ms, (0.99 / ms, 1.01 / ms), 10),
        size=Size(int(size), int(size * 0.8)),
        seconds={"build": 0.001, "latency": 0.01, "accuracy": 0.02},
        divergence=5.0 * max(drop, 0.0),
    )


def synthetic_divergence(candidate: Candidate) -> float:
    """Divergence of a candidate from the float model, as its measurement has it."""
    divergence = synthetic_measurement(candidate).divergence
    assert divergence is not None
    return divergence
