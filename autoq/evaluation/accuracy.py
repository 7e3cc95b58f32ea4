"""Accuracy of a candidate on a split, beside the float model's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from autoq.core.data import Array, Split
from autoq.core.digests import digest_arrays, digest_json
from autoq.core.errors import DataError, ModelError, TrialError, UserError
from autoq.core.measurements import Accuracy
from autoq.evaluation.batches import CHUNK_EXAMPLES, Chunk, Feeding, run_split
from autoq.evaluation.metrics import MetricSpec, Outputs, evaluate_metric
from autoq.evaluation.ports import OutputCache, Session
from autoq.evaluation.statistics import Values, mean_drop_estimate
from autoq.variants.shelf import Shelf

_log = logging.getLogger("autoq")

_OUTPUTS_VERSION = 1  # part of every key; raise it when the same split is run in other chunks
_DIGEST = "digest"  # entry of a file; those of outputs have a slash in their name
_DISK_BYTES = 4 << 30
_MAX_BYTES = 512 << 20


@dataclass(frozen=True, eq=False)
class Score:
    """What a metric says of a model on a split."""

    value: float
    values: Values | None  # (n,) per example; None where the metric is one number
    n_examples: int


@dataclass(frozen=True)
class KeptOutputs:
    """Where the outputs of one float model in one runtime are kept."""

    cache: OutputCache
    origin: str  # digest of model and runtime


class SplitScorer:
    """Scores models on one split; what the float model gave is computed once and kept."""

    def __init__(
        self,
        split: Split,
        metric: MetricSpec,
        feeding: Feeding,
        *,
        output: str | None = None,
        kept: KeptOutputs | None = None,
    ) -> None:
        """Load the metric; nothing is run yet.

        Args:
            split: What is scored on.
            metric: How it is scored.
            feeding: How models are fed.
            output: The model's output that a built-in metric looks at.
            kept: What saves running the float model again; its scores are the same, bit by bit.

        Raises:
            DataError: The metric needs labels, and the split has none.
            UserError: The metric cannot be loaded.
        """
        if metric.needs_labels and split.labels is None:
            raise DataError(f"metric {metric.name} needs labels and the split has none")
        self._split = split
        self._metric = metric
        self._feeding = feeding
        self._function = metric.load(output)
        # A function of the user's sees every output, a built-in metric the one it looks at.
        self._output = output if metric.reference is None else None
        self._kept = kept
        self._reference: list[Outputs] | None = None  # by chunk
        self._baseline: Score | None = None

    @property
    def baseline(self) -> Score:
        """Score of the float model; `score_baseline` comes first."""
        assert self._baseline is not None, "the baseline is scored before any candidate"
        return self._baseline

    @property
    def is_ready(self) -> bool:
        """Whether the baseline has been scored."""
        return self._baseline is not None

    def score_baseline(self, session: Session) -> Score:
        """Score the float model and keep what candidates are compared with.

        Raises:
            ModelError: Its outputs hold NaN.
            UserError: The metric failed or broke its promise.
        """
        chunks: Iterator[Chunk] | list[Chunk] = self._kept_or_run(session)
        if self._metric.needs_reference:
            chunks = list(chunks)
            self._reference = [chunk.outputs for chunk in chunks]
        self._baseline = self._score(chunks)
        return self._baseline

    def accuracy(self, session: Session) -> Accuracy:
        """Score a candidate and compare it with the baseline.

        Raises:
            TrialError: Its outputs hold NaN, or the metric failed on them. It scored the float model, so
                it is this candidate's outputs that it cannot cope with.
        """
        try:
            score = self._score(self._checked(session))
        except UserError as error:
            raise TrialError(str(error.args[0]), hint=error.hint) from error
        return compare(self.baseline, score, self._metric)

    def _kept_or_run(self, session: Session) -> Iterator[Chunk]:
        if self._kept is None:
            return self._float_chunks(session)
        outputs = self._kept.cache.load(self._key(self._kept.origin))
        if outputs is None or sum(map(_n_rows, outputs)) != self._split.n_examples:
            return self._run_and_keep(session, self._kept)
        return _labelled(outputs, self._split)

    def _run_and_keep(self, session: Session, kept: KeptOutputs) -> Iterator[Chunk]:
        chunks = self._float_chunks(session)
        first: list[Chunk] = []
        n_bytes = 0
        for chunk in chunks:
            first.append(chunk)
            n_bytes += sum(array.nbytes for array in chunk.outputs.values())
            if n_bytes > kept.cache.max_bytes:
                break
        else:  # saved before the metric sees them: it may be a user's and write to them
            kept.cache.save(self._key(kept.origin), [chunk.outputs for chunk in first])
        yield from first
        yield from chunks

    def _key(self, origin: str) -> str:
        feeding = self._feeding
        fed = [feeding.batch_size, feeding.is_static, CHUNK_EXAMPLES, self._output]
        return digest_json([_OUTPUTS_VERSION, origin, self._split.digest, *fed])

    def _float_chunks(self, session: Session) -> Iterator[Chunk]:
        for chunk in self._chunks(session):
            if name := _nan_output(chunk.outputs):
                raise ModelError(f"the float model's output {name!r} has NaN on the data it is scored on")
            yield chunk

    def _chunks(self, session: Session) -> Iterator[Chunk]:
        return run_split(session, self._split, self._feeding, output=self._output)

    def _checked(self, session: Session) -> Iterator[Chunk]:
        for chunk in self._chunks(session):
            if name := _nan_output(chunk.outputs):
                raise TrialError(f"output {name!r} has NaN")
            yield chunk

    def _score(self, chunks: Iterator[Chunk] | Sequence[Chunk]) -> Score:
        if self._metric.scope == "set":
            return self._score_set(list(chunks))
        parts = []
        for index, chunk in enumerate(chunks):
            reference = chunk.outputs if self._reference is None else self._reference[index]
            parts.append(self._evaluate(chunk.outputs, reference, chunk.labels, chunk.start))
        values = np.concatenate([np.atleast_1d(part) for part in parts])
        return Score(float(values.mean()), values, len(values))

    def _score_set(self, chunks: Sequence[Chunk]) -> Score:
        outputs = _joined([chunk.outputs for chunk in chunks], self._metric)
        reference = outputs if self._reference is None else _joined(self._reference, self._metric)
        returned = self._evaluate(outputs, reference, self._split.labels, 0)
        if isinstance(returned, float):
            return Score(returned, None, self._split.n_examples)
        return Score(float(returned.mean()), returned, len(returned))

    def _evaluate(
        self, outputs: Outputs, reference: Outputs, labels: Array | None, start: int
    ) -> Values | float:
        return evaluate_metric(self._metric, self._function, outputs, reference, labels, first_example=start)


class OutputFiles:
    """An `OutputCache` in a folder: a file a split, least recently used first to go."""

    def __init__(self, folder: Path, *, max_bytes: int = _MAX_BYTES, limit_bytes: int = _DISK_BYTES) -> None:
        self._shelf = Shelf(folder, ".npz", limit_bytes=limit_bytes)
        self._max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """Size of outputs above which they are not kept."""
        return self._max_bytes

    def load(self, key: str) -> list[dict[str, Array]] | None:
        """Read outputs; a missing or broken file is a miss."""
        if not self._shelf.has(key):
            return None
        try:
            with self._shelf.path(key).open("rb") as file, np.load(file, allow_pickle=False) as entries:
                arrays = {name: entries[name] for name in entries.files}
            # A damaged index can lose entries without a word.
            if str(arrays.pop(_DIGEST)) != digest_arrays(arrays):
                raise ValueError("not what was written")
        except (OSError, EOFError, ValueError, KeyError, RuntimeError, BadZipFile, ZlibError) as error:
            _log.info("outputs kept under %s cannot be read, the float model is run again: %s", key, error)
            return None
        chunks: dict[str, dict[str, Array]] = {}
        for entry, array in arrays.items():
            index, _, name = entry.partition("/")
            chunks.setdefault(index, {})[name] = array
        return list(chunks.values())

    def save(self, key: str, outputs: Sequence[Mapping[str, Array]]) -> None:
        """Write outputs; what is no plain number is not kept, and a full disk is only logged."""
        arrays = {
            f"{index:06d}/{name}": array
            for index, chunk in enumerate(outputs)
            for name, array in chunk.items()
        }
        if not all(array.dtype.isbuiltin == 1 and array.dtype.kind in "biuf" for array in arrays.values()):
            return
        try:
            self._shelf.save(key, lambda path: _write_arrays(path, arrays))
        except OSError as error:
            _log.warning("outputs of the float model are not kept: %s", error)


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    entries: dict[str, Any] = {**arrays, _DIGEST: np.array(digest_arrays(arrays))}
    with path.open("wb") as file:
        np.savez(file, **entries)


def _labelled(outputs: Sequence[Mapping[str, Array]], split: Split) -> Iterator[Chunk]:
    """Put outputs beside the labels of a split; no chunk reaches beyond a batch."""
    parts = iter(outputs)
    start = 0
    for batch in split.batches:
        done = 0
        while done < batch.n_examples:
            part = next(parts)
            n = _n_rows(part)
            labels = None if batch.labels is None else batch.labels[done : done + n].copy()
            yield Chunk(start + done, part, labels)
            done += n
        start += batch.n_examples


def _n_rows(outputs: Mapping[str, Array]) -> int:
    return len(next(iter(outputs.values())))


def compare(baseline: Score, candidate: Score, metric: MetricSpec) -> Accuracy:
    """Derive the drop and its interval; the drop is positive where the candidate is worse."""
    drop = metric.sign * (baseline.value - candidate.value)
    if baseline.values is None or candidate.values is None:
        return Accuracy(candidate.value, drop, None, candidate.n_examples)
    estimate = mean_drop_estimate(metric.sign * (baseline.values - candidate.values), span=metric.span)
    interval = None if estimate is None else (estimate.low, estimate.high)
    return Accuracy(candidate.value, drop, interval, candidate.n_examples)


def _nan_output(outputs: Outputs) -> str | None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            return name
    return None


def _joined(parts: Sequence[Outputs], metric: MetricSpec) -> Outputs:
    """Concatenate the outputs of all chunks.

    Raises:
        UserError: Their shapes differ beyond the first axis.
    """
    joined = {}
    for name in parts[0]:
        shapes = {part[name].shape[1:] for part in parts}
        if len(shapes) > 1:
            shown = " and ".join(str(("n", *shape)) for shape in sorted(shapes)[:2])
            raise UserError(
                f"metric {metric.name}: output {name!r} has shapes {shown} over the split",
                hint="a metric of a whole set needs one shape; pad the data, or use scope: example",
            )
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined
