"""What the calibration pass leaves behind, in memory and on disk."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.calibration.summaries import TensorSummary
from autoq.core.digests import digest_json

ALGORITHM_VERSION = 1  # part of every cache key; raise it when a stored figure changes its meaning


@dataclass(frozen=True)
class Statistics:
    """Summaries of every tensor that may be quantised."""

    tensors: Mapping[str, TensorSummary]
    n_examples: int
    seconds: float


def statistics_key(model_digest: str, data_digest: str, environment: Mapping[str, Any]) -> str:
    """Name under which statistics are cached: everything that can change them."""
    return digest_json(
        {
            "version": ALGORITHM_VERSION,
            "model": model_digest,
            "data": data_digest,
            "runtime": environment["runtime_version"],
        }
    )


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write atomically: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(statistics.tensors)
    tensors = statistics.tensors.values()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(names, dtype=np.str_),
            low=np.array([tensor.low for tensor in tensors]),
            high=np.array([tensor.high for tensor in tensors]),
            exponent=np.array([tensor.exponent for tensor in tensors]),
            counts=np.stack([tensor.counts for tensor in tensors]),
            n_examples=statistics.n_examples,
            seconds=statistics.seconds,
        )
    temporary.replace(path)


def load_statistics(path: Path) -> Statistics | None:
    """Read cached statistics; a missing or broken file is a miss, not an error."""
    try:
        # Given a path, numpy leaves a file open that is no archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            columns = zip(
                file["names"], file["low"], file["high"], file["exponent"], file["counts"], strict=True
            )
            tensors = {
                str(name): TensorSummary(float(low), float(high), int(exponent), counts)
                for name, low, high, exponent, counts in columns
            }
            return Statistics(tensors, int(file["n_examples"]), float(file["seconds"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
