"""Rewritten float models that an earlier search derived: kept in the home, read instead of made again."""

from __future__ import annotations

import uuid
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from autoq.calibrating import Calibrator, Source, derive, save_model
from autoq.core.choices import Rewrites
from autoq.core.digests import digest_json
from autoq.core.errors import ModelError
from autoq.graph.float_model import FloatModel, reload_float_model
from autoq.graph.rewriting import RewriteVectors, Vectors
from autoq.home import Home

_REVISION = 1  # part of every key; raise it when a rewrite computes something else
_PARTS = ("equalize", "smooth")
_MODEL = "model_digest"


def derive_once(home: Home, model: FloatModel, rewrites: Rewrites, calibrator: Calibrator) -> Source:
    """Rewrite a float model and calibrate what comes out, or read what an earlier call left in the home.

    Model and statistics lie in the home afterwards, where trials read them.

    Raises:
        UserError: The runtime refuses the model or the data.
    """
    path = home.derived(_key(model, rewrites, calibrator))
    if not rewrites.changes_nothing and (known := _load(path, home)) is not None:
        rewritten, vectors = known
        calibrator(rewritten)
        return Source(rewritten, vectors, calibrator.key(rewritten))
    source = derive(model, rewrites, calibrator, calibrator.key)
    save_model(source.model, home)
    if not rewrites.changes_nothing:
        _save(path, source)
    return source


def _key(model: FloatModel, rewrites: Rewrites, calibrator: Calibrator) -> str:
    """Name a derived model: rewrites are decided by the weights and by the statistics of the model."""
    return digest_json([_REVISION, model.summary.digest, rewrites.to_json(), calibrator.key(model)])


def _save(path: Path, source: Source) -> None:
    """Write atomically: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = {"equalize": source.vectors.equalize, "smooth": source.vectors.smooth}
    arrays = {f"{part}/{name}": array for part in _PARTS for name, array in vectors[part].items()}
    arrays[_MODEL] = np.array(source.model.summary.digest)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of them
    temporary.replace(path)


def _load(path: Path, home: Home) -> tuple[FloatModel, RewriteVectors] | None:
    """Read a derived model; what is missing, broken or not what was written is a miss."""
    try:
        with path.open("rb") as stream:
            digest, vectors = _read(stream)
        model = reload_float_model(home.model(digest))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, ModelError):
        return None
    return (model, vectors) if model.summary.digest == digest else None


def _read(stream: IO[bytes]) -> tuple[str, RewriteVectors]:
    with np.load(stream, allow_pickle=False) as file:
        found: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
        for member in file.files:
            part, _, name = member.partition("/")
            if part in found:
                found[part][name] = file[member]
        vectors: tuple[Vectors, Vectors] = found["equalize"], found["smooth"]
        return str(file[_MODEL]), RewriteVectors(*vectors)
