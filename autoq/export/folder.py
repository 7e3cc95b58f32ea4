"""Write an export: a folder that deploys without autoq, and says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoq.core.artifacts import ModelArtifact
from autoq.core.data import Affine
from autoq.core.digests import digest_file
from autoq.core.errors import UserError
from autoq.core.layers import ModelSummary
from autoq.export.bundle import BundleFormat, write_bundle
from autoq.export.card import write_card
from autoq.export.recipe import Recipe, save_recipe
from autoq.search.outcome import Outcome, Point

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
_PARTIAL = ".partial"
FLOAT_FILE = "float.onnx"  # what `autoq apply --model` takes
_VERSIONED = ("autoq", "onnxruntime", "onnx-ir", "onnx", "numpy")

_RUN = '''"""Run {name} with ONNX Runtime and numpy alone: `python run.py inputs.npz` prints the outputs."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

TRANSFORMS = {transforms}  # input: (scale, offset); float32 = raw * scale + offset
DTYPES = {dtypes}  # what the model takes


def load():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = {threads}
    path = Path(__file__).with_name("model.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session, raw):
    feed = {{}}
    for name, dtype in DTYPES.items():
        values = np.asarray(raw[name])
        if name in TRANSFORMS:
            scale, offset = TRANSFORMS[name]
            values = values.astype(np.float32) * np.float32(scale) + np.float32(offset)
        feed[name] = values.astype(dtype, copy=False)
    return {{output.name: value for output, value in zip(session.get_outputs(), session.run(None, feed))}}


if __name__ == "__main__":
    for name, value in run(load(), np.load(sys.argv[1])).items():
        print(name, value.shape, value, sep="\\n")
'''


@dataclass(frozen=True)
class ExportContent:
    """Everything an export folder is written from."""

    outcome: Outcome
    point: Point
    summary: ModelSummary
    artifact: ModelArtifact
    recipe: Recipe
    transforms: Mapping[str, Affine]
    float_model: ModelArtifact | None = None  # where the user has no ONNX file of it: a torch module
    bundle: BundleFormat | None = None


def write_export(content: ExportContent, out: Path, *, check: Callable[[Path], Mapping[str, Any]]) -> None:
    """Write the folder; it appears whole and checked, or not at all.

    `check` gets the folder before it takes its place: what it raises ends the export, what it returns
    stands in the manifest.

    Raises:
        UserError: `out` exists and is not an empty folder, or cannot be written.
    """
    check_free(out)
    out = out.absolute()
    building = out / _PARTIAL if out.exists() else out.with_name(f".{out.name}{_PARTIAL}")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        _write_files(content, building)
        _write_manifest(content, building, check(building))
        _put_in_place(building, out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the export: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _put_in_place(building: Path, out: Path) -> None:
    if building.parent != out:
        building.rename(out)
        return
    # An empty folder stays what it is: it may be somebody's working directory, or a mounted volume.
    for path in sorted(building.iterdir(), key=lambda path: path.name == MANIFEST_FILE):  # which vouches
        path.rename(out / path.name)


def check_free(out: Path) -> None:
    """Refuse a place that already holds something.

    Raises:
        UserError: `out` is a file or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(path.name != _PARTIAL for path in out.iterdir())):
        raise UserError(f"{out}: already exists", hint="give --out a new or empty folder")


def _write_files(content: ExportContent, folder: Path) -> None:
    content.artifact.save(folder / MODEL_FILE)
    if content.float_model is not None:
        content.float_model.save(folder / FLOAT_FILE)
    bundle: Path | None = None
    if content.bundle is not None:
        bundle = folder / content.bundle.file_name
        write_bundle(content.artifact, bundle, content.bundle)
    save_recipe(content.recipe, folder)
    card = write_card(content.outcome, content.point, content.summary, bundle)
    (folder / "card.md").write_text(card)
    transforms = {name: (affine.scale, affine.offset) for name, affine in content.transforms.items()}
    name = content.outcome.record.name
    threads = content.outcome.record.environment.get("threads", 1)
    dtypes = {spec.name: spec.dtype for spec in content.summary.inputs}
    script = _RUN.format(name=name, transforms=transforms, dtypes=dtypes, threads=threads)
    (folder / "run.py").write_text(script)


def _write_manifest(content: ExportContent, folder: Path, verified: Mapping[str, Any]) -> None:
    files = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    manifest = {**_manifest(content), "verified": dict(verified), "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def _manifest(content: ExportContent) -> dict[str, Any]:
    record = content.outcome.record
    return {
        "search": record.name,
        "trial": content.point.trial.number,
        "candidate_digest": content.point.trial.digest,
        "float_digest": content.recipe.float_digest,
        "model_digest": content.recipe.model_digest,
        "seed": record.spec["search"]["seed"],
        "strategy": record.spec["search"]["strategy"],
        "metric": record.spec["metric"] if isinstance(record.spec["metric"], str) else "user-defined",
        "environment": dict(record.environment),
        "versions": {name: version(name) for name in _VERSIONED},
        "measurement": content.point.to_json(),
    }
