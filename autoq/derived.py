"""Rewritten float models that an earlier search derived: kept in the home, read instead of made again."""

from __future__ import annotations

import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from autoq.calibrating import Calibrator, Source, derive, save_model
from autoq.core.choices import Rewrites
from autoq.core.digests import digest_json
from autoq.core.errors import ModelError
from autoq.graph.float_model import FloatModel, reload_float_model
from autoq.graph.rewriting import Narrow, RewriteVectors
from autoq.home import Home

_REVISION = 1  # part of every key; raise it when a rewrite computes something else
_PARTS = ("kept", "constants", "equalize", "smooth")
_MODEL = "model_digest"


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
        found: dict[str, dict[str, npt.NDArray[Any]]] = {part: {} for part in _PARTS}
        for member in file.files:
            part, _, name = member.partition("/")
            if part in found:
                found[part][name] = file[member]
        return str(file[_MODEL]), RewriteVectors(**found)
