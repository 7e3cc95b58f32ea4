"""Taking a point of a search away: rebuild its model, write it, and check what was written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoq.calibration.statistics import Statistics, load_statistics
from autoq.core.artifacts import ModelArtifact
from autoq.core.data import Affine, Array, Feed
from autoq.core.errors import ModelError, UnfaithfulModel, UserError
from autoq.core.layers import ModelSummary, TensorSpec
from autoq.evaluation.ports import Target
from autoq.export.folder import MODEL_FILE, ExportContent, check_free, write_export
from autoq.export.recipe import (
    RECIPE_FILE,
    TENSORS_FILE,
    Recipe,
    apply_recipe,
    build_recipe,
    load_recipe,
    save_recipe,
)
from autoq.graph.float_model import FloatModel, load_float_model, reload_float_model
from autoq.home import Home
from autoq.preparation import build_stitcher, prepare, prepare_statistics
from autoq.search.outcome import Outcome, Point
from autoq.search.ports import Progress, SearchListener
from autoq.search.records import TrialRecord
from autoq.spec.loading import spec_from_json
from autoq.spec.schema import SearchSpec
from autoq.targets.registry import create_target

_N_CHECKED = 8  # examples whose outputs are compared


def export_point(home: Home, outcome: Outcome, point: Point, out: Path, listener: SearchListener) -> None:
    """Write the export folder of a point and check that it computes what was measured.

    Raises:
        UserError: `out` is taken, or model or data are no longer what was searched.
        UnfaithfulModel: The written model is not the measured one.
    """
    check_free(out)
    built = rebuild(home, outcome, point, listener)
    _check_recipe(built)
    if built.artifact.size_bytes != point.measurement.size.size_bytes:
        raise UnfaithfulModel(
            f"the rebuilt model has {built.artifact.size_bytes:,} bytes, the measured one had "
            f"{point.measurement.size.size_bytes:,}",
            hint="has autoq or onnx-ir been upgraded since the search?",
        )
    spec = spec_from_json(outcome.record.spec)
    transforms = {name: Affine(one.scale, one.offset) for name, one in spec.data.transform.items()}
    content = ExportContent(outcome, point, built.model.summary, built.artifact, built.recipe, transforms)
    write_export(content, out)
    listener.on_phase("verify", "reloading the written model")
    try:
        check_written(out / MODEL_FILE, built)
    except UnfaithfulModel:
        shutil.rmtree(out)
        raise


def write_recipe(home: Home, outcome: Outcome, point: Point, folder: Path) -> dict[str, Path]:
    """Write the recipe of a point into an existing folder; return the files by name."""
    save_recipe(rebuild(home, outcome, point, None).recipe, folder)
    return {name: folder / name for name in (RECIPE_FILE, TENSORS_FILE)}


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
    temporary = out.with_name(f".{out.name}.partial")
    try:
        artifact.save(temporary)
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{out}: cannot write: {error.strerror}") from error
    return artifact.size_bytes


@dataclass(frozen=True)
class Rebuilt:
    """The model of a point, built again."""

    model: FloatModel
    artifact: ModelArtifact
    recipe: Recipe
    target: Target


def rebuild(home: Home, outcome: Outcome, point: Point, listener: SearchListener | None) -> Rebuilt:
    """Build the model of a point from the caches or, where those are gone, from model and data."""
    spec = spec_from_json(outcome.record.spec)
    target = create_target(spec.target)
    model, statistics = _inputs(home, outcome, spec, listener)
    stitcher = build_stitcher(model, statistics, home, target)
    candidate = point.trial.candidate
    artifact = stitcher.assemble(candidate).artifact
    recipe = build_recipe(model, stitcher.plan(candidate), stitcher.variants(candidate), artifact)
    return Rebuilt(model, artifact, recipe, target)


def _inputs(
    home: Home, outcome: Outcome, spec: SearchSpec, listener: SearchListener | None
) -> tuple[FloatModel, Statistics]:
    digests = outcome.record.environment["digests"]
    path = home.model(digests["model"])
    statistics = load_statistics(home.statistics(digests["statistics"]))
    if path.exists() and statistics is not None:
        return reload_float_model(path), statistics
    ready = prepare(spec, home, listener or Silent())
    if ready.content_digest != outcome.record.model_digest:
        raise ModelError("the model or its data are no longer those that were searched")
    return ready.model, prepare_statistics(ready, home, listener or Silent())


def _check_recipe(built: Rebuilt) -> None:
    """The recipe alone must give the same bytes."""
    if apply_recipe(built.recipe, built.model).digest != built.artifact.digest:
        raise UnfaithfulModel("the recipe does not rebuild the model byte for byte")


def check_written(path: Path, built: Rebuilt) -> None:
    """Reload a written model and compare it with the one in memory, and with itself unoptimised.

    Raises:
        UnfaithfulModel: Outputs differ.
    """
    feeds = random_feeds(built.model.summary, built.target.batch_size, _N_CHECKED)
    written, memory = ModelArtifact(path=path), built.target.open(built.artifact)
    session = built.target.open(written)
    for feed in feeds:
        one, other = session.run(feed), memory.run(feed)
        for name, value in one.items():
            if not np.array_equal(value, other[name], equal_nan=True):
                raise UnfaithfulModel(f"{path.name}: output {name!r} differs from the measured model's")


def random_feeds(summary: ModelSummary, batch_size: int, n_feeds: int) -> list[Feed]:
    """Draw inputs of the model's types; dynamic axes get the batch size, or 16 elsewhere."""
    rng = np.random.default_rng(0)
    return [{spec.name: _draw(spec, batch_size, rng) for spec in summary.inputs} for _ in range(n_feeds)]


def _draw(spec: TensorSpec, batch_size: int, rng: np.random.Generator) -> Array:
    shape = [
        axis if isinstance(axis, int) else (batch_size if index == 0 else 16)
        for index, axis in enumerate(spec.shape)
    ]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)


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
