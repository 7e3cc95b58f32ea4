"""Which widths a search may choose from: given by group, or chosen by divergence and the profile and kept."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoq.calibrating import Calibrator, build_stitcher
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import AS_IT_IS, Criterion, Widths
from autoq.core.data import Array, Feed, Split
from autoq.core.digests import digest_json
from autoq.core.errors import TrialError
from autoq.core.files import written_whole
from autoq.core.groups import ChannelGroup
from autoq.core.names import matching
from autoq.evaluation.batches import feeding_for, run_split
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.divergence import divergences
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.ports import Target
from autoq.graph.float_model import FloatModel
from autoq.home import Home
from autoq.narrowing import Refitting
from autoq.pruning.allocation import LatencyShares, allocate, between_measured
from autoq.search.anchors import Anchor
from autoq.search.ports import SearchListener
from autoq.search.space import FULL_WIDTH, WidthLevel
from autoq.search.space_building import unmatched_glob
from autoq.search.space_rules import WidthRule
from autoq.targets.profile import seconds_by_block

_log = logging.getLogger("autoq")

_VERSION = 1  # part of every key; raise it when widths are chosen in another way
MAX_EXAMPLES = 128
MAX_MEASURED = 6  # widths of a group whose divergence is measured; those between are filled in


@dataclass(frozen=True)
class WidthSubject:
    """A model whose widths are to be chosen, and what they are judged by."""

    model: FloatModel
    output: str
    metric: MetricSpec
    calibration: Split
    target: Target
    feeds: Sequence[Feed]  # to profile it with
    reference: Anchor  # the uniform candidate whose latency is to be saved


def check_globs(rule: WidthRule, groups: Sequence[ChannelGroup]) -> None:
    """Check that every glob of a rule means some channel group; a model without any is another matter.

    Raises:
        SpecError: One does not.
    """
    names = [group.name for group in groups]
    rules = {"groups": rule.groups, **{f"given.{name}": globs for name, globs in rule.given}}
    for key, globs in rules.items():
        for pattern, _ in globs:
            if names and not matching(pattern, names):
                raise unmatched_glob(f"space.rewrites.widths.{key}", pattern, names)


def plan_widths(
    rule: WidthRule,
    subject: WidthSubject,
    home: Home,
    refitting: Refitting,
    calibrator: Calibrator,
    listener: SearchListener,
) -> tuple[WidthLevel, ...]:
    """Return the levels of width that a rule asks for, full width first, then those given by name.

    Where a group loses least for the time it saves, it is narrowed. What was decided once stays: profiles
    differ from run to run, and a search that is resumed must find the widths it had.

    Raises:
        UserError: The runtime refuses the model or the calibration data.
    """
    given = _given(rule, refitting, listener) if rule.given else []
    if not rule.shares:
        return (FULL_WIDTH, *given)
    path = home.widths(_key(rule, subject, calibrator))
    levels = _read(path)
    if levels is None:
        found = _planned(rule, subject, home, refitting, calibrator, listener)
        _write(path, found)
        levels = [WidthLevel.of_share(share, widths) for widths, share in found.items()]
    else:
        listener.on_note(f"widths: reused, {len(levels)} narrower models chosen earlier")
    for wanted in map(WidthLevel.of_share, rule.shares):
        if wanted.label not in {level.label for level in levels}:
            listener.on_note(f"widths: {wanted.label} of the latency is out of reach, or no step of its own")
    known = {level.widths: level.label for level in given}
    for level in levels:
        if level.widths in known:
            listener.on_note(f"widths: {level.label} of the latency is what {known[level.widths]} is")
    return (FULL_WIDTH, *given, *(level for level in levels if level.widths not in known))


def _given(rule: WidthRule, refitting: Refitting, listener: SearchListener) -> list[WidthLevel]:
    """Widths that a rule gives itself, each the closest on its group's grid, the wider of two.

    A group's bound holds here too.
    """
    grids = {name: one.widths for name, one in refitting.narrower.snapshots.items()}
    least = _least(rule, grids)
    found: dict[Widths, WidthLevel] = {}
    for label, globs in rule.given:
        shares = {name: share for pattern, share in globs for name in matching(pattern, grids)}
        nearest = {name: _closest(grids[name], share, least[name]) for name, share in shares.items()}
        widths = tuple(sorted((name, width) for name, width in nearest.items() if width < max(grids[name])))
        if not widths:
            listener.on_note(f"widths: {label} narrows nothing")
        elif widths in found:
            listener.on_note(f"widths: {label} is what {found[widths].label} is")
        else:
            found[widths] = WidthLevel(label, widths)
    return list(found.values())


def _closest(grid: Sequence[int], share: float, least: float) -> int:
    size = max(grid)
    wide_enough = [width for width in grid if width >= math.ceil(least * size)]
    return min(reversed(wide_enough), key=lambda width: abs(width - share * size))


def _key(rule: WidthRule, subject: WidthSubject, calibrator: Calibrator) -> str:
    # What is usual is left out: widths from before there was a choice are found again.
    order = {} if rule.criterion is Criterion.OBS else {"criterion": str(rule.criterion)}
    return digest_json(
        {
            **order,
            "version": _VERSION,
            "statistics": calibrator.key(subject.model),
            "environment": subject.target.environment(),
            "batch_size": subject.target.batch_size,
            "output": subject.output,
            "needs_labels": subject.metric.needs_labels,
            "reference": subject.reference.candidate.digest,
            "shares": list(rule.shares),
            "groups": [list(bound) for bound in rule.groups],
        }
    )


def _read(path: Path) -> list[WidthLevel] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            WidthLevel.of_share(
                float(one["share"]), tuple(sorted((str(k), int(v)) for k, v in one["widths"].items()))
            )
            for one in content
        ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.info("the widths %s cannot be read, they are chosen again: %s", path.name, error)
        return None


def _write(path: Path, found: Mapping[Widths, float]) -> None:
    content = [{"share": share, "widths": dict(widths)} for widths, share in found.items()]
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _planned(
    rule: WidthRule,
    subject: WidthSubject,
    home: Home,
    refitting: Refitting,
    calibrator: Calibrator,
    listener: SearchListener,
) -> dict[Widths, float]:
    """Widths that reach each share, with the largest share that they are the answer to."""
    offered = _offered(rule, {name: one.widths for name, one in refitting.narrower.snapshots.items()})
    if not offered:
        listener.on_note("widths: no channel group can get narrower, the search goes on at full width")
        return {}
    groups = [group for group in refitting.narrower.groups if group.name in offered]
    listener.on_phase("widths", f"divergence of {len(groups)} channel groups by width")
    shares = _latency_shares(subject, home, calibrator)
    with machine_clock():
        table = _divergences(subject, refitting, offered)
    latency = LatencyShares(shares, subject.model.summary.layers, groups)
    found: dict[Widths, float] = {}
    for one in allocate(table, latency, rule.shares):
        widths = tuple(sorted(one.widths.items()))
        found.setdefault(widths, one.share)
        text = ", ".join(f"{name} {width}" for name, width in widths)
        _log.info("widths for %.0f %% (%.1f %% expected): %s", 100 * one.share, 100 * one.predicted, text)
    return found


def _offered(rule: WidthRule, grids: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Widths below full of each group that may and can get narrower, as far down as its bound lets it."""
    least = _least(rule, grids)
    found = {
        name: [width for width in grid if math.ceil(least[name] * max(grid)) <= width < max(grid)]
        for name, grid in grids.items()
    }
    return {name: widths for name, widths in found.items() if widths}


def _least(rule: WidthRule, groups: Iterable[str]) -> dict[str, float]:
    """The least share of its units that each group has to keep."""
    least = dict.fromkeys(groups, 0.0)
    for pattern, share in rule.groups:
        least.update(dict.fromkeys(matching(pattern, least), share))
    return least


def _latency_shares(subject: WidthSubject, home: Home, calibrator: Calibrator) -> dict[str, float]:
    """Share of the reference's kernel time of each layer; of its weights where there is no profile."""
    model = subject.model
    source = (model, calibrator(model), calibrator.key(model))
    stitcher = build_stitcher(home, source, subject.target)
    # Profiled without other rewrites: they move no time, and the model as it is has been calibrated.
    candidate = replace(subject.reference.candidate, rewrites=AS_IT_IS)
    with machine_clock():
        artifact = stitcher.assemble(candidate).artifact
        try:
            seconds = subject.target.profile(artifact, subject.feeds)
        except TrialError as error:
            _log.info("no profile of the reference: %s", error)
            seconds = {}
    total = sum(seconds.values())
    layers = {layer.name: layer for layer in model.summary.layers}
    if total <= 0.0:
        n_params = sum(layer.n_params for layer in layers.values())
        return {name: layer.n_params / n_params for name, layer in layers.items()}
    by_block = seconds_by_block(seconds, model)
    return {name: spent / total for name, spent in by_block.items() if name in layers}


def _divergences(
    subject: WidthSubject, refitting: Refitting, offered: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, float]]:
    """Divergence of the model with one group narrowed, by group and width, without labels."""
    split = subject.calibration.take(MAX_EXAMPLES)
    reference = _outputs(subject, subject.model.artifact, split)
    table = {}
    for name, widths in offered.items():
        picked = np.linspace(0, len(widths) - 1, min(MAX_MEASURED, len(widths))).round().astype(int)
        measured = {}
        for width in dict.fromkeys(widths[at] for at in picked):
            narrowed = refitting.narrower.narrow({name: width}).artifact
            found = divergences(reference, _outputs(subject, narrowed, split), subject.metric)
            measured[width] = float(found.mean())
        size = refitting.narrower.snapshots[name].group.size
        table[name] = between_measured(widths, measured, size)
        text = ", ".join(f"{width} {value:.3g}" for width, value in sorted(measured.items()))
        _log.info("divergence of %s by width, of %d: %s", name, size, text)
    return table


def _outputs(subject: WidthSubject, artifact: ModelArtifact, split: Split) -> dict[str, Array]:
    feeding = feeding_for(subject.model.summary.inputs, subject.target.batch_size)
    session = subject.target.open(artifact)
    try:
        chunks = list(run_split(session, split, feeding, output=subject.output))
    finally:
        session.close()
    return {subject.output: np.concatenate([chunk.outputs[subject.output] for chunk in chunks])}
