"""Everything that happens once, before the first trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoq.calibrating import (
    Calibrator,
    Source,
    SourceKeys,
    build_variants,
    rewrites_of,
    save_model,
)
from autoq.calibration.statistics import statistics_key
from autoq.core.choices import Rewrites
from autoq.core.digests import digest_all
from autoq.core.errors import ModelError, RuntimeRejectedModel, SpecError
from autoq.core.measurements import Baseline
from autoq.core.python_objects import source_digest
from autoq.derived import derive_once, kept_keys, load_once
from autoq.evaluation.batches import feeding_for, timing_feeds
from autoq.evaluation.ports import Target
from autoq.evaluation.racing import RacingSettings
from autoq.evaluation.timing import TimingSettings
from autoq.evaluation.workbench import EvaluationData, EvaluationSettings
from autoq.execution.runner import ChildTrialRunner, TrialLimits
from autoq.execution.worker import ChildProcess
from autoq.graph.find_groups import find_groups
from autoq.graph.float_model import FloatModel, build_float_model, load_float_model
from autoq.graph.torch_export import ExampleInput, export_torch
from autoq.home import Home
from autoq.narrowing import Refitting
from autoq.scoring import Scoring
from autoq.search.anchors import Anchor, build_anchors, reference_anchor, width_anchors
from autoq.search.ports import SearchListener
from autoq.search.space import SearchSpace
from autoq.search.space_building import build_space
from autoq.search.space_rules import WidthRule
from autoq.spec.data import DataSplits, load_data, read_ahead
from autoq.spec.metrics import load_metric
from autoq.spec.schema import OnnxModelSpec, SearchSpec, TorchModelSpec
from autoq.targets.cpu import this_cpu
from autoq.targets.registry import create_target
from autoq.width_planning import WidthSubject, check_globs, plan_widths
from autoq.workbench_factory import WorkbenchFactory

_log = logging.getLogger("autoq")


@dataclass
class Preparation:
    """One search, ready for its first trial."""

    spec: SearchSpec
    model: FloatModel
    output: str
    data: DataSplits
    target: Target
    space: SearchSpace
    anchors: list[Anchor]
    baseline: Baseline | None = None  # where one is known: of a search that goes on, or of another
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, Any]:
        """What figures were measured with, and what they can be rebuilt from."""
        digests = {"model": self.model.summary.digest, "calibration": self.data.calibration.digest}
        return {**self.target.environment(), "autoq_version": version("autoq"), "digests": digests}

    @property
    def width_rule(self) -> WidthRule:
        """How narrow the spec lets the model get; which widths that means is decided after calibration."""
        return self.spec.space.rewrites.widths.rule()

    @property
    def scoring(self) -> Scoring:
        """What says which channels go first."""
        return Scoring.of(self.spec, self.model)

    @property
    def content_digest(self) -> str:
        """Hash of model, data and metric: what a stored search is only comparable under."""
        return content_digest(self.spec, self.model, self.data)


def content_digest(spec: SearchSpec, model: FloatModel, data: DataSplits) -> str:
    """Hash model, data and metric."""
    splits = (data.calibration, data.search, data.test)
    source = "" if isinstance(spec.metric, str) else source_digest(spec.metric.python)
    return digest_all([model.summary.digest, *(split.digest for split in splits if split), source])


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time a block takes to a part."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start


def load_model(spec: OnnxModelSpec | TorchModelSpec, home: Home | None = None) -> FloatModel:
    """Read or export the model that a spec names, and canonicalise it, or read that from the home."""
    if isinstance(spec, OnnxModelSpec):
        path = Path(spec.path)
        return load_float_model(path) if home is None else load_once(home, path)
    example = {
        name: ExampleInput(tuple(one.shape), one.dtype, one.low, one.high)
        for name, one in spec.example.items()
    }
    checkpoint = None if spec.checkpoint is None else Path(spec.checkpoint)
    return build_float_model(export_torch(spec.torch, Path.cwd(), example, checkpoint))


def prepare(spec: SearchSpec, home: Home, listener: SearchListener) -> Preparation:
    """Load model and data, and build the space: everything a user can have got wrong.

    Raises:
        UserError: Whatever it is, before anything is measured or stored.
    """
    seconds: dict[str, float] = {}
    load_metric(spec.metric)
    read = read_ahead(spec.data)
    listener.on_phase("model", "loading")
    with timed(seconds, "model"):
        model = load_model(spec.model, home)
    output = model.output(spec.model.output).name
    listener.on_phase("data", "loading")
    with timed(seconds, "data"):
        data = load_data(spec, model.summary.inputs, read)
    for warning in data.warnings:
        listener.on_note(f"warning: {warning}")
    target = create_target(spec.target)
    _check_batch_size(spec, model)
    rules = spec.space.rules()
    if rules.rewrites.widths.n_narrower:
        check_globs(rules.rewrites.widths, find_groups(model.graph).groups)
    space = build_space(rules, model.summary.layers, model.summary.ops, target)
    for refusal in space.refusals:
        _log.info("refused on %s: %s: %s", ", ".join(refusal.layers), refusal.what, refusal.reason)
    anchors = build_anchors(space, rules, model.summary.layers, target)
    save_model(model, home)
    return Preparation(spec, model, output, data, target, space, anchors, seconds=seconds)


def _check_batch_size(spec: SearchSpec, model: FloatModel) -> None:
    fixed = {one.shape[0] for one in model.summary.inputs if one.shape and isinstance(one.shape[0], int)}
    if fixed and spec.target.batch_size not in fixed:
        given = spec.target.batch_size
        raise SpecError(f"target.batch_size: the model's batch axis is fixed at {min(fixed)}, got {given}")


def prepare_sources(ready: Preparation, home: Home, listener: SearchListener) -> dict[Rewrites, Source]:
    """Calibrate the float model, and each that rewrites in the space make of it; keep them in the home."""
    calibration = ready.data.calibration
    if calibration.n_examples == 1:
        listener.on_note("warning: calibrating on a single example")
    calibrator = Calibrator(home, calibration, ready.target.environment(), listener)
    refitting = Refitting(ready.model, home, calibrator, listener, ready.scoring)
    if ready.width_rule.n_narrower:
        with timed(ready.seconds, "widths"):
            _settle_widths(ready, home, refitting, calibrator, listener)
    sources = {}
    with timed(ready.seconds, "statistics"):
        for rewrites in rewrites_of(ready.space, ready.anchors):
            sources[rewrites] = derive_once(home, ready.model, rewrites, calibrator, refitting.narrow)
    return sources


def foresee_sources(ready: Preparation, home: Home) -> dict[Rewrites, SourceKeys] | None:
    """Name what `prepare_sources` will give, before anything is read; None if something has to be made."""
    if ready.width_rule.n_narrower:
        return None  # which widths there are is decided on the way
    data, environment = ready.data.calibration.digest, ready.target.environment()

    def key(model_digest: str) -> str:
        return statistics_key(model_digest, data, environment)

    found = {one: kept_keys(home, ready.model, one, key) for one in rewrites_of(ready.space, ready.anchors)}
    known = {rewrites: keys for rewrites, keys in found.items() if keys is not None}
    return known if len(known) == len(found) else None


def keys_of(sources: Mapping[Rewrites, Source]) -> dict[Rewrites, SourceKeys]:
    """Name sources as a trial process finds them in the home."""
    return {rewrites: SourceKeys.of(source) for rewrites, source in sources.items()}


def _settle_widths(
    ready: Preparation, home: Home, refitting: Refitting, calibrator: Calibrator, listener: SearchListener
) -> None:
    """Decide which widths the search may choose from; the space and the anchors have them afterwards."""
    inputs, reference = ready.model.summary.inputs, reference_anchor(ready.space, ready.anchors)
    feeding = feeding_for(inputs, ready.target.batch_size)
    shapes = ready.spec.timing.shapes
    subject = WidthSubject(
        model=ready.model,
        output=ready.output,
        metric=load_metric(ready.spec.metric),
        calibration=ready.data.calibration,
        target=ready.target,
        feeds=timing_feeds(ready.data.calibration, inputs, feeding, shapes=shapes, n_feeds=2),
        reference=reference,
    )
    levels = plan_widths(ready.width_rule, subject, home, refitting, calibrator, listener)
    rewrites = replace(
        ready.space.rewrites,
        widths=levels,
        refit=ready.width_rule.refit,
        criterion=ready.width_rule.criterion,
        loss=ready.scoring.loss_name,
    )
    ready.space = replace(ready.space, rewrites=rewrites)
    known = {anchor.candidate.digest for anchor in ready.anchors}
    narrower = width_anchors(ready.space, reference)
    ready.anchors = [*ready.anchors, *(one for one in narrower if one.candidate.digest not in known)]


def prepare_variants(
    ready: Preparation, sources: Mapping[Rewrites, Source], home: Home, listener: SearchListener
) -> None:
    """Build the variants the trials will ask for, as far as they can be foreseen."""
    with timed(ready.seconds, "variants"):
        build_variants(home, sources, ready.space, ready.anchors, listener)


def workbench_factory(
    ready: Preparation, sources: Mapping[Rewrites, SourceKeys], home: Home
) -> WorkbenchFactory:
    """Gather what a trial process needs."""
    data, settings = evaluation_of(ready.spec, ready.model, ready.data)
    return WorkbenchFactory(home, sources, ready.target, data, settings)


def evaluation_of(
    spec: SearchSpec, model: FloatModel, splits: DataSplits
) -> tuple[EvaluationData, EvaluationSettings]:
    """Say what candidates are measured with, and how."""
    inputs = model.summary.inputs
    feeding = feeding_for(
        inputs, spec.target.batch_size, threads=spec.target.threads, n_cores=this_cpu().n_cores
    )
    shapes = spec.timing.shapes
    data = EvaluationData(
        search=splits.search,
        test=splits.test,
        timing_feeds=timing_feeds(splits.calibration, inputs, feeding, shapes=shapes),
    )
    timing = TimingSettings(
        search_s=spec.timing.search_s, final_s=spec.timing.final_s, fixed_effort=spec.timing.fixed_effort
    )
    settings = EvaluationSettings(
        metric=load_metric(spec.metric),
        feeding=feeding,
        output=model.output(spec.model.output).name,
        timing=timing,
        seed=spec.search.seed,
        racing=racing_settings(spec),
    )
    return data, settings


def racing_settings(spec: SearchSpec) -> RacingSettings | None:
    """Say when scoring a candidate may stop: what the spec bounds, and what it trades off."""
    bounds = spec.constraints
    if not spec.search.racing:
        return None
    # Whoever is beaten on these and on accuracy is beaten for good: objectives, and whatever is bounded.
    bounded = {
        "latency": bounds.max_latency_ms is not None or bounds.max_latency_ratio is not None,
        "size": bounds.max_size_bytes is not None,
        "storage": bounds.max_bundle_bytes is not None,
    }
    return RacingSettings(
        max_accuracy_drop=bounds.max_accuracy_drop,
        max_latency_ms=bounds.max_latency_ms,
        max_latency_ratio=bounds.max_latency_ratio,
        seed=spec.search.seed,
        axes=tuple(axis for axis, is_bound in bounded.items() if is_bound or axis in spec.objectives),
    )


def time_float_model(ready: Preparation) -> float:
    """Seconds of one run of the float model, roughly: what estimates are made of.

    Raises:
        ModelError: The runtime refuses the float model or the data.
    """
    inputs = ready.model.summary.inputs
    feeding = feeding_for(inputs, ready.target.batch_size)
    feeds = timing_feeds(ready.data.search, inputs, feeding, shapes=ready.spec.timing.shapes, n_feeds=2)
    try:
        session = ready.target.open(ready.model.artifact)
        session.run(feeds[0])
    except RuntimeRejectedModel as error:
        raise ModelError(f"{ready.target.name} cannot run the float model: {error}") from error
    seconds = min(session.time_block(2, feeds) for _ in range(3)) / 2
    session.close()
    return seconds


def open_runner(
    ready: Preparation,
    sources: Mapping[Rewrites, SourceKeys],
    home: Home,
    child: ChildProcess[Any],
) -> ChildTrialRunner:
    """Make the runner of a search's trials in `child`; a baseline that is known is not measured again."""
    search, timing = ready.spec.search, ready.spec.timing
    limits = TrialLimits(
        timeout_s=search.trial_timeout_s,
        # The final round times for longer and scores another split.
        final_timeout_s=2 * search.trial_timeout_s + timing.final_s,
        memory_mb=search.trial_memory_mb,
    )
    runner = ChildTrialRunner(
        workbench_factory(ready, sources, home),
        limits,
        max_accuracy_drop=ready.spec.constraints.max_accuracy_drop,
        child=child,
    )
    if ready.baseline is not None:
        runner.restore(ready.baseline)
    return runner
