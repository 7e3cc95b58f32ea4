"""A model as a thing that travels: bytes, or a file with external data beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autoq.core.digests import digest_bytes, digest_file
from autoq.core.files import written_whole
from autoq.core.measurements import Size


@dataclass(frozen=True)
class ModelArtifact:
    """An ONNX model: its bytes, or the path of a file and of the external data it names."""

    content: bytes | None = None
    path: Path | None = None
    external: tuple[Path, ...] = ()  # files beside `path`

    @staticmethod
    def from_bytes(content: bytes) -> ModelArtifact:
        """Hold a model in memory; protobuf limits it to 2 GB."""
        return ModelArtifact(content=content)

    @property
    def source(self) -> bytes | str:
        """What a runtime opens: the bytes, or the path. Hold the artifact until it has been opened."""
        if self.content is not None:
            return self.content
        assert self.path is not None
        return str(self.path)

    @property
    def size_bytes(self) -> int:
        """Size of everything that is deployed."""
        if self.content is not None:
            return len(self.content)
        return sum(path.stat().st_size for path in self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The model's file and its external data; empty when it lives in memory."""
        return () if self.path is None else (self.path, *self.external)

    @cached_property
    def digest(self) -> str:
        """Content hash over all files, wherever they are; a single file counts as its bytes do."""
        if self.content is not None:
            return digest_bytes(self.content)
        assert self.path is not None
        if not self.external:
            return digest_bytes(self.path.read_bytes())
        data = sorted(self.external, key=lambda path: path.name)
        return digest_bytes(*(digest_file(path).encode() for path in (self.path, *data)))

    def at(self, path: Path) -> ModelArtifact:
        """Return the artifact that `save(path)` leaves behind; its files may be missing."""
        return ModelArtifact(path=path, external=tuple(path.parent / extra.name for extra in self.external))

    def save(self, path: Path) -> None:
        """Write the model to `path` and its external data beside it.

        The data keep their name, which the model refers to; autoq names them after their content, so that
        models which share a folder do not overwrite each other's.
        """
        for extra in self.external:
            _copy_aside(extra, path.parent / extra.name)
        if self.content is not None:
            path.write_bytes(self.content)
        else:
            assert self.path is not None
            shutil.copyfile(self.path, path)


def _copy_aside(source: Path, target: Path) -> None:
    """Copy a file and put it in its place whole: others may have what was there mapped."""
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)


@dataclass(frozen=True)
class AssembledModel:
    """A candidate as the model that would be deployed."""

    artifact: ModelArtifact
    estimate_bundle: Callable[[], int]  # asked once, and only where somebody wants to know
    storage_only: tuple[str, ...]  # layers whose bits save bytes but no time

    @cached_property
    def bundle_bytes(self) -> int:
        """Estimate of the storage bundle."""
        return self.estimate_bundle()

    def weigh(self) -> Size:
        """Return what it takes, and hash it: both are looked up from then on."""
        _ = self.artifact.digest
        return Size(self.artifact.size_bytes, self.bundle_bytes)
