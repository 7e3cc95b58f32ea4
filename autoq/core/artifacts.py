"""A model as a thing that travels: bytes, or a file with external data beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autoq.core.digests import digest_bytes, digest_file


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
        """Content hash over all files."""
        if self.content is not None:
            return digest_bytes(self.content)
        return digest_bytes(*(digest_file(path).encode() for path in self.files))

    def save(self, path: Path) -> None:
        """Write the model to `path` and its external data beside it."""
        if self.content is not None:
            path.write_bytes(self.content)
            return
        assert self.path is not None
        shutil.copyfile(self.path, path)
        for extra in self.external:
            shutil.copyfile(extra, path.parent / extra.name)


@dataclass(frozen=True)
class AssembledModel:
    """A candidate as the model that would be deployed."""

    artifact: ModelArtifact
    bundle_bytes: int  # estimate of the storage bundle
    storage_only: tuple[str, ...]  # layers whose bits save bytes but no time
