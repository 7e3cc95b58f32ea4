"""Data: batches of named arrays, and splits of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.digests import digest_all, digest_arrays, digest_json

Array = npt.NDArray[Any]
Feed = dict[str, Array]


@dataclass(frozen=True)
class Affine:
    """Input transform of the spec: float32 value = raw * scale + offset."""

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, raw: Array) -> Array:
        """Apply the transform to a raw array of any number type."""
        return raw.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that share the shapes of all but the first axis."""

    inputs: Mapping[str, Array]  # each (n, ...)
    labels: Array | None = None  # (n, ...)

    @property
    def n_examples(self) -> int:
        """Length of the first axis."""
        return len(next(iter(self.inputs.values())))

    def rows(self, rows: slice | Sequence[int] | npt.NDArray[np.integer[Any]]) -> Batch:
        """Return the chosen rows of every array."""
        labels = None if self.labels is None else self.labels[rows]
        return Batch({name: array[rows] for name, array in self.inputs.items()}, labels)


@dataclass(frozen=True, eq=False)
class Split:
    """One data split. Batches of a ragged data set may differ in their other axes.

    Raw arrays are kept as read; `transform` is applied as feeds are taken, so uint8 images stay
    small in memory.
    """

    batches: tuple[Batch, ...]
    transform: Mapping[str, Affine] = field(default_factory=dict)

    @cached_property
    def n_examples(self) -> int:
        """Number of examples over all batches."""
        return sum(batch.n_examples for batch in self.batches)

    @cached_property
    def labels(self) -> Array | None:
        """All labels in order, or None if the split has none."""
        parts = [batch.labels for batch in self.batches]
        if any(part is None for part in parts):
            return None
        return np.concatenate([part for part in parts if part is not None])

    @cached_property
    def digest(self) -> str:
        """Content hash of arrays, labels and transform."""
        content = [
            digest_arrays({**batch.inputs, **({} if batch.labels is None else {"": batch.labels})})
            for batch in self.batches
        ]
        shape = {name: [t.scale, t.offset] for name, t in self.transform.items()}
        return digest_all([*content, digest_json(shape)])

    def take(self, n_examples: int) -> Split:
        """Return the first examples."""
        return self.rows(np.arange(min(n_examples, self.n_examples)))

    def rows(self, rows: npt.NDArray[np.integer[Any]]) -> Split:
        """Return the examples at sorted global positions."""
        parts, start = [], 0
        for batch in self.batches:
            inside = rows[(rows >= start) & (rows < start + batch.n_examples)] - start
            if len(inside):
                parts.append(batch.rows(inside))
            start += batch.n_examples
        return Split(tuple(parts), self.transform)

    def feeds(self, batch_size: int) -> Iterator[Feed]:
        """Yield transformed feeds of at most `batch_size` examples, in order."""
        for batch in self.batches:
            for start in range(0, batch.n_examples, batch_size):
                yield self._feed(batch, slice(start, start + batch_size))

    def _feed(self, batch: Batch, rows: slice) -> Feed:
        return {
            name: self.transform[name](array[rows]) if name in self.transform else array[rows]
            for name, array in batch.inputs.items()
        }
