"""What the calibration pass leaves behind, in memory and on disk."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.calibration.summaries import TensorSummary
from autoq.core.digests import digest_json
from autoq.core.errors import InfrastructureError
from autoq.core.files import written_whole

_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)  # a file that is
ALGORITHM_VERSION = 5  # part of every cache key; raise it when a stored figure changes its meaning


@dataclass(frozen=True, slots=True)
class Extent:
    """A whole tensor: what a kernel meets that knows of no padding."""

    low: float
    high: float
    n_values: int  # over all examples


@dataclass(frozen=True)
class Statistics:
    """Summaries of every tensor that may be quantised, and what layers read channel by channel."""

    tensors: Mapping[str, TensorSummary]
    n_examples: int
    seconds: float
    # (channels,) largest magnitudes of each tensor that a layer reads; the channels are those of the
    # layer: the last axis for a matrix product, axis 1 for a convolution.
    channel_maxima: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    # By input that marks padding: the share of its positions that it does, left out of the above.
    padding: Mapping[str, float] = field(default_factory=dict)
    padded: Mapping[str, Extent] = field(default_factory=dict)  # tensors with padding, all of it counted

    def extent(self, name: str) -> Extent:
        """Return the extent of a tensor, with its padding.

        Raises:
            KeyError: There are no statistics of it.
        """
        one = self.tensors[name]
        return self.padded.get(name) or Extent(one.low, one.high, one.n_values)


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
    names = list(statistics.tensors)
    tensors = statistics.tensors.values()
    maxima = list(statistics.channel_maxima.values())
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(names, dtype=np.str_),
            low=np.array([tensor.low for tensor in tensors]),
            high=np.array([tensor.high for tensor in tensors]),
            exponent=np.array([tensor.exponent for tensor in tensors]),
            counts=np.array([tensor.counts for tensor in tensors], np.int64),
            n_examples=statistics.n_examples,
            seconds=statistics.seconds,
            maxima_names=np.array(list(statistics.channel_maxima), dtype=np.str_),
            maxima_sizes=np.array([len(one) for one in maxima], dtype=np.int64),
            maxima=np.concatenate([np.zeros(0, np.float32), *maxima]),
            masks=np.array(list(statistics.padding), dtype=np.str_),
            padding=np.array(list(statistics.padding.values()), dtype=np.float64),
            padded_names=np.array(list(statistics.padded), dtype=np.str_),
            padded=np.array([[p.low, p.high, p.n_values] for p in statistics.padded.values()], np.float64),
        )


def load_channel_maxima(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read that part of cached statistics alone.

    Raises:
        InfrastructureError: They are gone from the disk, or damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return _channel_maxima(file)
    except _BROKEN as error:
        raise InfrastructureError(
            "the statistics of the model are damaged", hint="delete the cache folder of the home"
        ) from error


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
            shares = {str(n): float(x) for n, x in zip(file["masks"], file["padding"], strict=True)}
            rows = zip(file["padded_names"], file["padded"], strict=True)
            padded = {str(name): Extent(float(low), float(high), int(n)) for name, (low, high, n) in rows}
            seconds, maxima = float(file["seconds"]), _channel_maxima(file)
            return Statistics(tensors, int(file["n_examples"]), seconds, maxima, shares, padded)
    except _BROKEN:
        return None


def _channel_maxima(file: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
    stops = np.cumsum(file["maxima_sizes"])[:-1]
    names = [str(name) for name in file["maxima_names"]]
    return dict(zip(names, np.split(file["maxima"], stops), strict=False))
