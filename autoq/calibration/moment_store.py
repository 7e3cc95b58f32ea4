"""Second moments on disk: one file a tensor as it is read, and an index from layers to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from autoq.calibration.geometry import Floats
from autoq.calibration.moments import Moments, mirrored
from autoq.core.digests import checksum
from autoq.core.files import written_whole
from autoq.core.tensor_files import save_tensors

_INDEX = "layers.json"


class MomentStore:
    """The moments of one model's layers over one calibration split.

    Nothing is read before it is asked for. Files are written atomically under their key, the index
    last: with it, the folder is complete.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def beside(statistics: Path) -> MomentStore:
        """Open the store that belongs to a statistics file, in a folder of the same name."""
        return MomentStore(statistics.with_suffix(".moments"))

    @property
    def is_complete(self) -> bool:
        """Whether a collection ended here and all its files are still there."""
        keys = _read_index(self._folder / _INDEX)
        return keys is not None and all(self._path(key).exists() for key in keys.values())

    def get(self, layer: str) -> Moments | None:
        """Read the moments of a layer; None if it has none, or its file is missing or broken."""
        key = self._keys.get(layer)
        return None if key is None else _load(self._path(key))

    def key(self, layer: str) -> str | None:
        """Return what names a layer's moments, the same for layers that share them."""
        return self._keys.get(layer)

    def save(self, key: str, moments: Moments) -> None:
        """Write the moments under their key.

        Raises:
            OSError: The disk is full or cannot be written to.
        """
        with written_whole(self._path(key)) as temporary:
            save_tensors(_tensors(moments), temporary)

    def save_index(self, keys: Mapping[str, str]) -> None:
        """Say under which key the moments of each layer are, and that they are complete.

        Raises:
            OSError: The disk is full or cannot be written to.
        """
        with written_whole(self._folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(dict(keys), indent=1), encoding="utf-8")
        self.__dict__.pop("_keys", None)

    @cached_property
    def _keys(self) -> dict[str, str]:
        return _read_index(self._folder / _INDEX) or {}

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def _read_index(path: Path) -> dict[str, str] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _tensors(moments: Moments) -> dict[str, npt.NDArray[np.generic]]:
    tensors: dict[str, npt.NDArray[np.generic]] = {
        "mean": np.ascontiguousarray(moments.mean),
        "n_rows": np.array(moments.n_rows, np.int64),
        "widths": np.array([block.shape[-1] for block in moments.halves[0]], np.int64),
    }
    for half, blocks in enumerate(moments.halves):
        for index, block in enumerate(blocks):
            tensors[_name(half, index)] = np.ascontiguousarray(block[:, _upper(block.shape[-1])])
    tensors["checksum"] = np.array([checksum(tensors)], np.uint32)
    return tensors


def _load(path: Path) -> Moments | None:
    """Read one file; a missing or broken one is a miss."""
    try:
        tensors = load_file(path)
        expected = tensors.pop("checksum")
        if checksum(tensors) != int(expected[0]):
            return None
        widths = tensors["widths"].tolist()
        first, second = (
            tuple(_full(tensors[_name(half, index)], width) for index, width in enumerate(widths))
            for half in range(2)
        )
        n_first, n_second = tensors["n_rows"].tolist()
        return Moments((first, second), tensors["mean"], (n_first, n_second))
    except (OSError, SafetensorError, KeyError, ValueError, IndexError):
        return None


def _name(half: int, block: int) -> str:
    return f"half{half}.block{block}"


def _upper(width: int) -> npt.NDArray[np.bool_]:
    return np.triu(np.ones((width, width), np.bool_))


def _full(triangles: Floats, width: int) -> Floats:
    out = np.zeros((len(triangles), width, width), np.float32)
    out[:, _upper(width)] = triangles
    return mirrored(out)
