"""Storage bundles: a model in the fewest bytes, given back byte for byte.

Three formats hold the same: autoq's own, the smallest; HDF5, compressed, and safetensors, as they are,
for people whose tools read those.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from autoq.core.artifacts import ModelArtifact
from autoq.core.errors import ModelError, UnknownNameError, UserError
from autoq.core.files import written_whole
from autoq.export.bundle_content import DamagedBundle
from autoq.export.hdf5_bundle import MAGIC as HDF5_MAGIC
from autoq.export.hdf5_bundle import restore_hdf5, write_hdf5
from autoq.export.native_bundle import MAGIC as NATIVE_MAGIC
from autoq.export.native_bundle import restore_native, write_native
from autoq.export.safetensors_bundle import restore_safetensors, write_safetensors

_MAGIC_BYTES = 8


class BundleFormat(StrEnum):
    """What a bundle is written as."""

    NATIVE = "native"
    HDF5 = "hdf5"
    SAFETENSORS = "safetensors"

    @staticmethod
    def named(name: str) -> BundleFormat:
        """Return the format of a name.

        Raises:
            UnknownNameError: There is none.
        """
        if name not in BundleFormat.__members__.values():
            known = ", ".join(BundleFormat)
            raise UnknownNameError(f"no bundle format named {name!r}", hint=f"known formats: {known}")
        return BundleFormat(name)

    @property
    def file_name(self) -> str:
        """Of the bundle in an export folder."""
        return {"native": "model.autoq", "hdf5": "model.h5", "safetensors": "model.safetensors"}[self.value]


_WRITERS: dict[BundleFormat, Callable[[memoryview, Path], None]] = {
    BundleFormat.NATIVE: write_native,
    BundleFormat.HDF5: write_hdf5,
    BundleFormat.SAFETENSORS: write_safetensors,
}


def write_bundle(model: ModelArtifact, path: Path, bundle_format: BundleFormat) -> None:
    """Write a model as a bundle, check that it gives the same bytes back, and put it in its place.

    Raises:
        ModelError: The model keeps weights in other files.
        UserError: The file cannot be written.
    """
    try:
        with _contents(model) as content, written_whole(path) as temporary:
            _WRITERS[bundle_format](content, temporary)
            with Path(os.devnull).open("wb") as nowhere:
                _restore(temporary, nowhere)
    except OSError as error:
        raise UserError(f"{path}: cannot write the bundle: {error.strerror or error}") from error


def unbundle(path: Path, out: Path) -> int:
    """Restore the model of a bundle, in any format; return its size in bytes.

    Raises:
        UserError: The bundle is damaged or none, `out` exists, or a file cannot be read or written.
    """
    if out.exists():
        raise UserError(f"{out}: already exists", hint="give --out a new file")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder to write to")
    if not path.is_file():
        raise UserError(f"{path}: no such bundle", hint="expected a file that autoq export --bundle wrote")
    try:
        with written_whole(out) as temporary:
            with temporary.open("wb") as file:
                _restore(path, file)
            return temporary.stat().st_size
    except DamagedBundle as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a bundle that autoq wrote, or damaged: {reason}") from error
    except OSError as error:
        raise UserError(f"{out}: cannot restore {path.name}: {error.strerror or error}") from error


def _restore(path: Path, out: BinaryIO) -> None:
    with path.open("rb") as file:
        start = file.read(_MAGIC_BYTES)
    if start == HDF5_MAGIC:
        restore_hdf5(path, out)
    elif start == NATIVE_MAGIC:
        restore_native(path, out)
    else:  # safetensors has no magic: it begins with a length
        restore_safetensors(path, out)


@contextmanager
def _contents(model: ModelArtifact) -> Iterator[memoryview]:
    """Give a model's bytes, mapped where they are on the disk."""
    if model.content is not None:
        yield memoryview(model.content)
        return
    assert model.path is not None
    if model.external:
        raise ModelError(
            f"{model.path.name}: keeps weights in {model.external[0].name}, which a bundle does not hold",
            hint="models of 2 GB and more travel as their files",
        )
    # Not released by `with`: arrays that view it may still be waiting to be collected.
    with model.path.open("rb") as file:
        yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
