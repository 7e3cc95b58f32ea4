"""Snapshots on disk: one file a group and width, and an index; a trial reads the widths that it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from autoq.core.digests import checksum, digest_json
from autoq.core.errors import InfrastructureError
from autoq.core.files import written_whole
from autoq.core.groups import ChannelGroup
from autoq.core.tensor_files import save_tensors
from autoq.pruning.refit import Refit
from autoq.pruning.widths import GroupSnapshots, Part, Snapshot

ALGORITHM_VERSION = 1  # part of the key; raise it when an order or a refit changes
_INDEX = "groups.json"


def snapshots_key(statistics_key: str, settings: Mapping[str, Any]) -> str:
    """Name the snapshots of a model that was calibrated under a key: everything that can change them."""
    return digest_json(
        {"version": ALGORITHM_VERSION, "statistics": statistics_key, "settings": dict(settings)}
    )


class SnapshotStore:
    """The snapshots of one model's groups. Files are written whole, the index last: then all are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, snapshots: Mapping[str, GroupSnapshots]) -> None:
        """Write all widths of all groups.

        Raises:
            OSError: The disk is full or cannot be written to.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        index = {}
        for name, group in snapshots.items():
            errors = {}
            for width in group.widths:
                snapshot = group.at(width)
                errors[str(width)] = snapshot.error
                _write(self._path(name, width), snapshot)
            index[name] = {"order": group.order.tolist(), "errors": errors}
        with written_whole(self._folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index), encoding="utf-8")

    def load(self, groups: Sequence[ChannelGroup]) -> dict[str, GroupSnapshots] | None:
        """Open the snapshots of a model's groups; None if they are not all there. Weights are read later."""
        try:
            index = json.loads((self._folder / _INDEX).read_text(encoding="utf-8"))
            known = {group.name: group for group in groups}
            found = {}
            for name, one in index.items():
                errors = {int(width): float(error) for width, error in one["errors"].items()}
                stored = _StoredWidths(self._folder, known[name], errors)
                if not all(self._path(name, width).exists() for width in errors):
                    return None
                found[name] = GroupSnapshots(known[name], np.array(one["order"], np.int64), stored)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found

    def _path(self, group: str, width: int) -> Path:
        return _path(self._folder, group, width)


@dataclass(frozen=True)
class _StoredWidths(Mapping[int, Snapshot]):
    """The widths of a group, each read whenever it is asked for."""

    folder: Path
    group: ChannelGroup
    errors: Mapping[int, float]

    def __getitem__(self, width: int) -> Snapshot:
        return _read(_path(self.folder, self.group.name, width), self.group.name, self.errors[width])

    def __iter__(self) -> Iterator[int]:
        return iter(self.errors)

    def __len__(self) -> int:
        return len(self.errors)


def _path(folder: Path, group: str, width: int) -> Path:
    return folder / f"{digest_json([group])}.{width}.safetensors"


def _write(path: Path, snapshot: Snapshot) -> None:
    tensors: dict[str, npt.NDArray[np.generic]] = {"kept": np.array(snapshot.kept, np.int64)}
    for layer, parts in snapshot.refits.items():
        for index, part in enumerate(parts):
            tensors.update({f"{layer}|{index}|{name}": array for name, array in _arrays(part).items()})
    tensors["checksum"] = np.array([checksum(tensors)], np.uint32)
    with written_whole(path) as temporary:
        save_tensors(tensors, temporary)


def _arrays(part: Part) -> dict[str, npt.NDArray[np.generic]]:
    refit = part.refit
    return {
        "replaced": part.replaced,
        "columns": refit.columns,
        "weight": refit.weight,
        "bias": refit.bias,
        "figures": np.array([part.row_group, refit.error, refit.variance], np.float64),
    }


def _read(path: Path, group: str, error: float) -> Snapshot:
    """Read one file.

    Raises:
        InfrastructureError: It is missing or damaged.
    """
    try:
        tensors = load_file(path)
        expected = int(tensors.pop("checksum")[0])
        if checksum(tensors) != expected:
            raise ValueError("another checksum")
        kept = tuple(tensors.pop("kept").tolist())
        refits: dict[str, list[Part]] = {}
        for layer, index in sorted({_place(name) for name in tensors}):
            one = {
                name: tensors[f"{layer}|{index}|{name}"] for name in ("replaced", "columns", "weight", "bias")
            }
            row_group, lost, variance = tensors[f"{layer}|{index}|figures"].tolist()
            refit = Refit(one["columns"], one["weight"], one["bias"], lost, variance)
            refits.setdefault(layer, []).append(Part(int(row_group), one["replaced"], refit))
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as broken:
        raise InfrastructureError(
            f"the snapshot of channel group {group!r} is damaged", hint="delete the cache folder of the home"
        ) from broken
    return Snapshot(group, kept, {layer: tuple(parts) for layer, parts in refits.items()}, error)


def _place(name: str) -> tuple[str, int]:
    layer, index, _ = name.rsplit("|", 2)
    return layer, int(index)
