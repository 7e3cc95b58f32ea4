"""Whether a written model is what was measured: its bytes, its answers, its speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.artifacts import AssembledModel, ModelArtifact
from autoq.core.choices import Candidate
from autoq.core.digests import canonical_json
from autoq.core.errors import TrialError, UnfaithfulModel, UserError
from autoq.core.measurements import Interval, Latency, Measurement
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.output_files import OutputFiles
from autoq.evaluation.ports import Target
from autoq.evaluation.workbench import EvaluationData, EvaluationSettings, Workbench
from autoq.graph.float_model import FloatModel
from autoq.home import Home
from autoq.preparation import content_digest, evaluation_of
from autoq.search.outcome import Outcome, Point
from autoq.search.ports import SearchListener
from autoq.spec.data import load_data
from autoq.spec.loading import spec_from_json
from autoq.spec.schema import SearchSpec

# Beyond both intervals. Less is what a busy machine does to an honest model: a warning. More is another
# model, other threads, or a runtime that takes another kernel: measured three times, then refused.
MAX_GAP = 0.25
_ATTEMPTS = 3
_SAME_SCORE = 1e-9  # the same kernels give the same bits; a sum over examples may take another order


@dataclass(frozen=True)
class Deployed:
    """What is written, and what it was built from."""

    model: FloatModel
    artifact: ModelArtifact
    target: Target


@dataclass(frozen=True)
class Verification:
    """What reloading a written model showed."""

    measurement: Measurement | None = None  # None: the data are gone, or this is another machine
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        measured = self.measurement
        return {
            "bytes": "identical to the measured model",
            "accuracy": None if measured is None else measured.accuracy.value,
            "n_examples": None if measured is None else measured.accuracy.n_examples,
            "speedup": None if measured is None else measured.latency.speedup,
            "speedup_ci": None if measured is None else measured.latency.speedup_ci,
            "warnings": list(self.warnings),
        }


def verify(
    path: Path, deployed: Deployed, outcome: Outcome, point: Point, *, home: Home, listener: SearchListener
) -> Verification:
    """Reload a written model, run it on the search's data, score it and time it again.

    Bytes and answers have to be those of the trial. A speed-up may differ by what the intervals and 25 %
    allow, with a warning. Where the data have gone or the machine is another one, bytes alone are
    compared, and the warnings say so.

    Raises:
        UnfaithfulModel: The file is not the measured model, or does not behave like it.
        RuntimeRejectedModel: The runtime refuses it.
    """
    written = deployed.artifact.at(path)
    if written.digest != deployed.artifact.digest:
        raise UnfaithfulModel(f"{path.name} was not written as it was built", hint="is the disk sound?")
    deployed.target.open(written).close()
    record = outcome.record
    if changed := _changes(record.environment, deployed.target.environment()):
        return Verification(
            warnings=(f"not scored or timed again: {changed} is not what the search measured with",)
        )
    spec = spec_from_json(record.spec)
    evaluation = _evaluation(spec, deployed.model, record.model_digest)
    if evaluation is None:
        return Verification(warnings=("not scored or timed again: the search's data have gone or changed",))
    listener.on_phase("export", "running, scoring and timing the written model")
    with machine_clock():
        _compare_outputs(written, deployed, evaluation[0])
        workbench = Workbench(
            _Written(deployed.model.artifact, written, point),
            deployed.target,
            *evaluation,
            OutputFiles(home.outputs),
        )
        try:
            return _measured_again(workbench, outcome, point)
        finally:
            workbench.close()


@dataclass(frozen=True)
class _Written:
    """Gives the written file out as the model of whatever candidate."""

    baseline: ModelArtifact
    written: ModelArtifact
    point: Point

    def float_model(self) -> ModelArtifact:
        return self.baseline

    def assemble(self, candidate: Candidate) -> AssembledModel:
        measured = self.point.measurement
        return AssembledModel(self.written, lambda: measured.size.bundle_bytes, measured.storage_only)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what of the target is no longer as it was."""
    return ", ".join(key for key in now if canonical_json(before.get(key)) != canonical_json(now[key]))


def _evaluation(
    spec: SearchSpec, model: FloatModel, digest: str
) -> tuple[EvaluationData, EvaluationSettings] | None:
    """Read the data of a search, None where they are no longer what was searched."""
    try:
        data = load_data(spec, model.summary.inputs)
        if content_digest(spec, model, data) != digest:
            return None
        evaluation, settings = evaluation_of(spec, model, data)
        # In full: a busier machine must not cut the check short, and a trial that was raced out, or too
        # slow to be scored to the end, is told at last what it scores.
        return evaluation, replace(settings, racing=None)
    except UserError:
        return None


def _compare_outputs(written: ModelArtifact, deployed: Deployed, data: EvaluationData) -> None:
    """What the file computes has to be, bit by bit, what the model in memory does."""
    sessions = [deployed.target.open(model) for model in (written, deployed.artifact)]
    try:
        for feed in data.timing_feeds:
            ours, theirs = (session.run(feed) for session in sessions)
            for name, expected in theirs.items():
                if not np.array_equal(ours[name], expected, equal_nan=expected.dtype.kind == "f"):
                    raise UnfaithfulModel(f"the written model gives another {name!r} than the one measured")
    finally:
        for session in sessions:
            session.close()


def _measured_again(workbench: Workbench, outcome: Outcome, point: Point) -> Verification:
    assert outcome.record.baseline is not None
    workbench.restore(outcome.record.baseline)
    recorded, noise = point.measurement, outcome.record.baseline.noise_floor
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            again = workbench.run_trial(point.trial.candidate)
        except TrialError as error:
            raise UnfaithfulModel(f"the written model failed where the trial did not: {error}") from error
        check_score(again, recorded)
        gap = speed_gap(again.latency, recorded.latency, noise)
        if gap <= MAX_GAP or attempt == _ATTEMPTS:
            break
    was, now = _speed(recorded.latency), _speed(again.latency)
    if gap > MAX_GAP:
        raise UnfaithfulModel(
            f"the written model runs at {now} the float model's speed, measured were {was}",
            hint=f"measured {_ATTEMPTS} times; is the machine busy with something else?",
        )
    if gap > 0.0:
        warning = f"timed again, the speed-up is {now}, measured were {was}: is the machine busy?"
        return Verification(again, (warning,))
    return Verification(again)


def check_score(again: Measurement, recorded: Measurement) -> None:
    """Hold a score against the recorded one, where both saw the same examples.

    Raises:
        UnfaithfulModel: They differ.
    """
    now, was = again.accuracy, recorded.accuracy
    if (now.n_examples, now.is_estimate) != (was.n_examples, was.is_estimate):
        return
    if not abs(now.value - was.value) <= _SAME_SCORE:
        raise UnfaithfulModel(
            f"the written model scores {now.value:.6g} on {now.n_examples} examples, "
            f"measured was {was.value:.6g}"
        )


def speed_gap(again: Latency, recorded: Latency, noise_floor: float) -> float:
    """Return how far apart two speed-ups are, as a fraction: 0 where their intervals touch.

    Both are widened by the noise floor: what two sessions of one model differ by.
    """
    (low, high), (low_before, high_before) = (
        _widened(one.speedup_ci, noise_floor) for one in (again, recorded)
    )
    return max(low / high_before, low_before / high, 1.0) - 1.0


def _widened(interval: Interval, noise_floor: float) -> Interval:
    return interval[0] / (1.0 + noise_floor), interval[1] * (1.0 + noise_floor)


def _speed(latency: Latency) -> str:
    low, high = latency.speedup_ci
    return f"{latency.speedup:.2f}x [{low:.2f}, {high:.2f}]"
