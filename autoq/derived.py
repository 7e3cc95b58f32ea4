"""Float models as an earlier search made them, canonical or rewritten: kept in the home, read from there."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from autoq.calibrating import Calibrator, Source, SourceKeys, derive, save_model
from autoq.calibration.moment_store import MomentStore
from autoq.core.choices import Rewrites
from autoq.core.digests import digest_file, digest_json
from autoq.core.errors import ModelError
from autoq.core.files import written_whole
from autoq.graph.float_model import FloatModel, load_float_model, reload_float_model
from autoq.graph.loading import map_onnx
from autoq.graph.rewriting import Narrow, RewriteVectors
from autoq.home import Home

_REVISION = 1  # part of every key; raise it when a rewrite computes something else
_CANONICAL_REVISION = 4  # raise it when a file gives another canonical model than before
_PARTS = ("kept", "constants", "equalize", "smooth")
_MODEL, _EXTERNAL = "model_digest", "external"
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)  # a file that is
# What canonicalising calls; another of them may give another graph.
_VERSIONS = [version(name) for name in ("onnx", "onnx-ir", "onnxscript")]


def load_once(home: Home, path: Path) -> FloatModel:
    """Read and canonicalise an ONNX file, or read from the home what an earlier call made of the same bytes.

    Raises:
        ModelError: The file cannot be read, or has no layer that can be compressed.
    """
    try:
        digest = digest_file(path)
    except OSError:
        return load_float_model(path)  # which says what is wrong
    known = home.canonical(digest_json([_CANONICAL_REVISION, _VERSIONS, digest]))
    if (kept := _load_canonical(known, home, path.parent)) is not None:
        return kept
    external = _external_digests(path)
    model = load_float_model(path)
    save_model(model, home, anew=True)  # what is there may be damaged
    if digest_file(path) == digest and _external_digests(path) == external:  # nobody wrote to them meanwhile
        _write_text(known, json.dumps({_MODEL: model.summary.digest, _EXTERNAL: external}))
    return model


def _external_digests(path: Path) -> dict[str, str]:
    """Hash the external data of a model by their names; none of one that cannot be read."""
    try:
        files = map_onnx(path)[1]
        return {file.relative_to(path.parent).as_posix(): digest_file(file) for file in files}
    except (ModelError, OSError):
        return {}


def _load_canonical(known: Path, home: Home, folder: Path) -> FloatModel | None:
    """Read what a file gave, unless its external data have changed; what is broken is a miss."""
    try:
        found = json.loads(known.read_text(encoding="utf-8"))
        if any(digest_file(folder / name) != digest for name, digest in found[_EXTERNAL].items()):
            return None
        model = reload_float_model(home.model(found[_MODEL]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):
        return None
    return model if model.summary.digest == found[_MODEL] else None


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def derive_once(
    home: Home,
    model: FloatModel,
    rewrites: Rewrites,
    calibrator: Calibrator,
    narrow: Narrow | None = None,
) -> Source:
    """Rewrite a float model and calibrate what comes out, or read what an earlier call left in the home.

    Model and statistics lie in the home afterwards, where trials read them.

    Args:
        home: Where models are kept.
        model: Canonical float model.
        rewrites: What to do with it.
        calibrator: Gives the statistics of a model.
        narrow: Narrows a model, if the rewrites have widths.

    Raises:
        UserError: The runtime refuses the model or the data.
    """
    path = home.derived(_key(model, rewrites, calibrator.key))
    if not rewrites.changes_nothing and (known := _load(path, home)) is not None:
        rewritten, vectors = known
        calibrator(rewritten)
        return Source(rewritten, vectors, calibrator.key(rewritten))
    source = derive(model, rewrites, calibrator, calibrator.key, narrow)
    save_model(source.model, home)
    if not rewrites.changes_nothing:
        _save(path, source)
    return source


def derived_vectors(
    home: Home, model: FloatModel, rewrites: Rewrites, key: Callable[[FloatModel], str]
) -> RewriteVectors | None:
    """Return what `derive_once` rewrote a model with, if it is still in the home.

    Args:
        home: Where models are kept.
        model: Canonical float model.
        rewrites: What was done with it.
        key: Names the statistics of a model.
    """
    known = _load(home.derived(_key(model, rewrites, key)), home)
    return None if known is None else known[1]


def kept_keys(
    home: Home, model: FloatModel, rewrites: Rewrites, key: Callable[[str], str]
) -> SourceKeys | None:
    """Name what `derive_once` will give, without reading more than its name; None if it is to be made.

    Args:
        home: Where models are kept.
        model: Canonical float model.
        rewrites: What is done with it.
        key: Names the statistics of a model by its digest.
    """
    digest = model.summary.digest
    if not rewrites.changes_nothing:
        try:
            with home.derived(_key(model, rewrites, lambda one: key(one.summary.digest))).open("rb") as file:
                digest = _read_digest(file)
        except _BROKEN:
            return None
    keys = SourceKeys(digest, key(digest))
    statistics = home.statistics(keys.statistics_key)
    is_kept = (
        home.model(digest).exists() and statistics.exists() and MomentStore.beside(statistics).is_complete
    )
    return keys if is_kept else None


def _key(model: FloatModel, rewrites: Rewrites, key: Callable[[FloatModel], str]) -> str:
    """Name a derived model: rewrites are decided by the weights and by the statistics of the model."""
    return digest_json([_REVISION, model.summary.digest, rewrites.to_json(), key(model)])


def _save(path: Path, source: Source) -> None:
    """Write atomically: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = source.vectors
    vectors: list[Mapping[str, npt.NDArray[Any]]] = [
        found.kept,
        found.constants,
        found.equalize,
        found.smooth,
    ]
    arrays = {
        f"{part}/{name}": array
        for part, of_part in zip(_PARTS, vectors, strict=True)
        for name, array in of_part.items()
    }
    arrays[_MODEL] = np.array(source.model.summary.digest)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of them


def _load(path: Path, home: Home) -> tuple[FloatModel, RewriteVectors] | None:
    """Read a derived model; what is missing, broken or not what was written is a miss."""
    try:
        with path.open("rb") as stream:
            digest, vectors = _read(stream)
        model = reload_float_model(home.model(digest))
    except (*_BROKEN, ModelError):
        return None
    return (model, vectors) if model.summary.digest == digest else None


def _read_digest(stream: IO[bytes]) -> str:
    with np.load(stream, allow_pickle=False) as file:
        return str(file[_MODEL])


def _read(stream: IO[bytes]) -> tuple[str, RewriteVectors]:
    with np.load(stream, allow_pickle=False) as file:
        found: dict[str, dict[str, npt.NDArray[Any]]] = {part: {} for part in _PARTS}
        for member in file.files:
            part, _, name = member.partition("/")
            if part in found:
                found[part][name] = file[member]
        return str(file[_MODEL]), RewriteVectors(**found)
