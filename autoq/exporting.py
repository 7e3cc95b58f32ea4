"""Taking a point of a search away: rebuild its model, write it, and check what was written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autoq.calibrating import Calibrator, Source, build_stitcher, derive, key_of
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.statistics import Statistics, load_statistics
from autoq.core.choices import Rewrites
from autoq.core.data import Affine
from autoq.core.errors import ModelError, UnfaithfulModel, UserError
from autoq.core.files import written_whole
from autoq.derived import derive_once, derived_vectors
from autoq.export.bundle import BundleFormat
from autoq.export.folder import MODEL_FILE, ExportContent, check_free, write_export
from autoq.export.recipe import (
    RECIPE_FILE,
    TENSORS_FILE,
    Ingredients,
    Recipe,
    apply_recipe,
    build_recipe,
    load_recipe,
    save_recipe,
)
from autoq.graph.float_model import FloatModel, load_float_model, reload_float_model
from autoq.graph.rewriting import RewriteVectors
from autoq.home import Home
from autoq.narrowing import Refitting
from autoq.preparation import prepare
from autoq.search.outcome import Outcome, Point
from autoq.search.ports import Progress, SearchListener
from autoq.search.records import TrialRecord
from autoq.spec.loading import spec_from_json
from autoq.spec.schema import SearchSpec, TorchModelSpec
from autoq.targets.registry import create_target
from autoq.tracking.onnx_model import DeployedModel
from autoq.verifying import Deployed, verify


@dataclass(frozen=True)
class Destination:
    """Where an export goes, and whether a storage bundle goes with it."""

    out: Path
    bundle: BundleFormat | None = None


def export_point(
    home: Home, outcome: Outcome, point: Point, destination: Destination, listener: SearchListener
) -> None:
    """Write the export folder of a point and check that it computes what was measured.

    Raises:
        UserError: The folder is taken, or model or data are no longer what was searched.
        UnfaithfulModel: The written model is not the measured one.
    """
    out = destination.out.resolve()
    check_free(out)
    built = rebuild(home, outcome, point, listener)
    _check_recipe(built)
    _check_measured(built, point)
    spec = spec_from_json(outcome.record.spec)
    transforms = {name: Affine(one.scale, one.offset) for name, one in spec.data.transform.items()}
    exported = built.model.artifact if isinstance(spec.model, TorchModelSpec) else None
    content = ExportContent(
        outcome,
        point,
        built.model.summary,
        built.artifact,
        built.recipe,
        transforms,
        float_model=exported,
        bundle=destination.bundle,
    )
    listener.on_phase("export", "writing and reloading the model")

    def check(folder: Path) -> dict[str, Any]:
        found = verify(folder / MODEL_FILE, built, outcome, point, home=home, listener=listener)
        for warning in found.warnings:
            listener.on_note(f"warning: {warning}")
        return found.to_json()

    write_export(content, out, check=check)


def write_recipe(home: Home, outcome: Outcome, point: Point, folder: Path) -> dict[str, Path]:
    """Write the recipe of a point into an existing folder; return the files by name."""
    save_recipe(rebuild(home, outcome, point, None).recipe, folder)
    return {name: folder / name for name in (RECIPE_FILE, TENSORS_FILE)}


def deployed_model(
    home: Home, outcome: Outcome, point: Point, listener: SearchListener | None
) -> DeployedModel:
    """Build the model of a point for MLflow.

    Raises:
        UserError: Model or data are no longer what was searched.
        UnfaithfulModel: The rebuilt model is not the measured one.
    """
    built = rebuild(home, outcome, point, listener)
    _check_measured(built, point)
    summary, threads = built.model.summary, int(outcome.record.environment.get("threads", 1))
    return DeployedModel(
        outcome.record.name, point.trial.number, built.artifact, summary.inputs, summary.outputs, threads
    )


def apply_recipe_file(recipe: Path, model: Path, out: Path) -> int:
    """Rebuild a deployed model; return its size in bytes.

    Raises:
        UserError: An input cannot be read, they do not belong together, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out}: already exists", hint="give --out a new file")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder to write to")
    artifact = apply_recipe(load_recipe(recipe), load_float_model(model))
    try:
        with written_whole(out) as temporary:
            artifact.save(temporary)
    except OSError as error:
        raise UserError(f"{out}: cannot write: {error.strerror}") from error
    return artifact.size_bytes


@dataclass(frozen=True)
class Rebuilt(Deployed):
    """The model of a point, built again."""

    recipe: Recipe


def rebuild(home: Home, outcome: Outcome, point: Point, listener: SearchListener | None) -> Rebuilt:
    """Build the model of a point from the caches or, where those are gone, from model and data."""
    spec = spec_from_json(outcome.record.spec)
    target = create_target(spec.target)
    candidate = point.trial.candidate
    model, source, statistics = _source(home, outcome, spec, candidate.rewrites, listener)
    stitcher = build_stitcher(home, (source.model, statistics, source.statistics_key), target)
    artifact = stitcher.assemble(candidate).artifact
    ingredients = Ingredients(stitcher.plan(candidate), stitcher.variants(candidate), source.vectors)
    return Rebuilt(model, artifact, target, build_recipe(model, ingredients, artifact))


def _source(
    home: Home, outcome: Outcome, spec: SearchSpec, rewrites: Rewrites, listener: SearchListener | None
) -> tuple[FloatModel, Source, Statistics]:
    """Return the float model, and what the rewrites make of it with its statistics."""
    environment, digests = outcome.record.environment, outcome.record.environment["digests"]
    path = home.model(digests["model"])
    model = _kept_model(path)
    if model is not None:
        key = partial(key_of, data_digest=digests["calibration"], environment=environment)
        kept: dict[str, Statistics] = {}

        def load(one: FloatModel) -> Statistics:
            statistics = load_statistics(home.statistics(key(one)))
            if statistics is None or not MomentStore.beside(home.statistics(key(one))).is_complete:
                raise _NotKept
            kept[key(one)] = statistics
            return statistics

        def narrow(one: FloatModel, rewrites: Rewrites) -> RewriteVectors:
            vectors = derived_vectors(home, one, rewrites, key)
            if vectors is None:
                raise _NotKept
            return vectors

        with suppress(_NotKept):
            source = derive(model, rewrites, load, key, narrow)
            return model, source, kept[source.statistics_key]
    heard = listener or Silent()
    ready = prepare(spec, home, heard)
    if ready.content_digest != outcome.record.model_digest:
        raise ModelError("the model or its data are no longer those that were searched")
    calibrator = Calibrator(home, ready.data.calibration, ready.target.environment(), heard)
    narrow_again = Refitting(ready.model, home, calibrator, heard, ready.scoring).narrow
    source = derive_once(home, ready.model, rewrites, calibrator, narrow_again)
    return ready.model, source, calibrator(source.model)


class _NotKept(Exception):
    """The cache no longer holds what a point is rebuilt from."""


def _kept_model(path: Path) -> FloatModel | None:
    """Read a float model from the cache; one that was pruned, or whose data were, is a miss."""
    if path.exists():
        with suppress(ModelError):
            return reload_float_model(path)
    return None


def _check_recipe(built: Rebuilt) -> None:
    """The recipe alone must give the same bytes."""
    if apply_recipe(built.recipe, built.model).digest != built.artifact.digest:
        raise UnfaithfulModel("the recipe does not rebuild the model byte for byte")


def _check_measured(built: Rebuilt, point: Point) -> None:
    if built.artifact.digest != point.measurement.model_digest:
        raise UnfaithfulModel(
            "the rebuilt model is not the one that was measured",
            hint="has autoq, onnx-ir or the cache changed since the search?",
        )


class Silent:
    """A listener that hears nothing."""

    def on_phase(self, name: str, detail: str) -> None:
        """Ignore."""

    def on_note(self, text: str) -> None:
        """Ignore."""

    def on_trial_start(self, number: int, origin: str) -> None:
        """Ignore."""

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        """Ignore."""
