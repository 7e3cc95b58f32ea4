"""Accuracy of a candidate on a split, beside the float model's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from autoq.core.data import Array, Split
from autoq.core.digests import digest_json
from autoq.core.errors import DataError, ModelError, OutputsNotFinite, TrialError, UserError
from autoq.core.measurements import Accuracy
from autoq.evaluation.batches import (
    CHUNK_EXAMPLES,
    Chunk,
    Feeding,
    Piece,
    cut_into_pieces,
    run_pieces,
    run_split,
)
from autoq.evaluation.contest import NEVER, Contest, Stopping
from autoq.evaluation.divergence import divergences
from autoq.evaluation.metrics import MetricSpec, Outputs, evaluate_metric
from autoq.evaluation.order import N_DIVERGENCE, Positions, Scene, ScoringOrder, joined_by_shape
from autoq.evaluation.ports import OutputCache, Session
from autoq.evaluation.scores import Score, compare
from autoq.evaluation.statistics import Values

_OUTPUTS_VERSION = 1  # part of every key; raise it when the same split is run in other chunks


@dataclass(frozen=True)
class KeptOutputs:
    """Where the outputs of one float model in one runtime are kept."""

    cache: OutputCache
    origin: str  # digest of model and runtime


@dataclass(frozen=True, eq=False)
class Scored:
    """What scoring a candidate found."""

    accuracy: Accuracy
    divergence: float | None  # None without an order, or where it is infinite
    values: Values | None  # (n,) over the whole split; None if stopped, or not per example


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
        order: ScoringOrder | None = None,
    ) -> None:
        """Load the metric; nothing is run yet.

        Args:
            split: What is scored on.
            metric: How it is scored.
            feeding: How models are fed.
            output: The model's output that a built-in metric looks at.
            kept: What saves running the float model again; its scores are the same, bit by bit.
            order: Of the split; with one, scoring can stop early, and divergence is measured.

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
        self._watched = output  # what divergence looks at
        self._kept = kept
        self._order = order
        self._reference: list[Outputs] | None = None  # by chunk
        self._chunk_starts: list[int] = []
        self._float_first = _FirstOutputs(() if order is None else order.first(N_DIVERGENCE))
        self._baseline: Score | None = None
        self._jitter: Values | None = None  # (n,) what two runs of the float model differ by
        self.knows_jitter = False  # whether that has been measured

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
        chunks: Iterator[Chunk] | list[Chunk] = self._float_first.tapped(self._kept_or_run(session))
        if self._metric.needs_reference:
            chunks = list(chunks)
            self._reference = [chunk.outputs for chunk in chunks]
            self._chunk_starts = [chunk.start for chunk in chunks]
        self._baseline = self._score(chunks)
        return self._baseline

    def is_repeatable(self, session: Session) -> bool:
        """Run one batch twice and say whether the outputs are the same, bit by bit."""
        piece = cut_into_pieces(self._split, self._feeding.batch_size)[0]
        twice = [[piece], [piece]]
        [first], [second] = run_pieces(session, self._split, self._feeding, twice, output=self._output)
        return all(array.tobytes() == second[name].tobytes() for name, array in first.items())

    def measure_jitter(self, session: Session) -> float:
        """Score the float model once more; what the runs differ by widens every interval from now on.

        Returns:
            The difference of the two scores, at least 0.

        Raises:
            ModelError: Its outputs hold NaN.
            UserError: The metric failed or broke its promise.
        """
        first, again = self.baseline, self._score(self._float_chunks(session))
        self.knows_jitter = True
        if first.values is not None and again.values is not None:
            self._jitter = again.values - first.values
        return abs(again.value - first.value)

    def accuracy(self, session: Session) -> Accuracy:
        """Score a candidate on the whole split and compare it with the baseline.

        Raises:
            TrialError: Its outputs hold NaN, or the metric failed on them. It scored the float model, so
                it is this candidate's outputs that it cannot cope with.
        """
        return self.score(session).accuracy

    def score(self, session: Session, stopping: Stopping = NEVER) -> Scored:
        """Score a candidate, on the whole split unless it may stop, and say how far it diverges.

        A score of the whole split is the same, bit by bit, whether it could have stopped or not. It
        can only where the split has an order and the metric is a mean over examples.

        Raises:
            TrialError: Its outputs hold NaN, or the metric failed on them.
        """
        can_stop = self._order is not None and self._metric.scope == "example"
        try:
            if self._order is None or not can_stop or stopping == NEVER:
                return self._score_whole(session)
            return self._score_in_order(session, self._order, stopping)
        except UserError as error:
            raise TrialError(str(error.args[0]), hint=error.hint) from error

    def divergence(self, session: Session) -> float:
        """Run the first examples of the order alone and return how far the outputs are from the float ones.

        Raises:
            OutputsNotFinite: The outputs have NaN or infinite values.
            TrialError: They have another shape than the float model's.
        """
        first = _FirstOutputs(self._float_first.pieces)
        for block in self._run_checked(session, [first.pieces]):
            for piece, outputs in block:
                first.add(piece, outputs)
        divergence = self._divergence(first)
        if divergence is None:
            raise OutputsNotFinite("the outputs have infinite values")
        return divergence

    def _score_whole(self, session: Session) -> Scored:
        first = _FirstOutputs(self._float_first.pieces)
        score = self._score(first.tapped(self._checked(session)))
        accuracy = compare(self.baseline, score, self._metric, jitter=self._jitter)
        return Scored(accuracy, self._divergence(first), score.values)

    def _score_in_order(self, session: Session, order: ScoringOrder, stopping: Stopping) -> Scored:
        first = _FirstOutputs(self._float_first.pieces)
        contest = Contest(order, self._metric, self.baseline, stopping)
        for block in self._run_checked(session, order.blocks()):
            scenes = []
            for piece, outputs in block:
                first.add(piece, outputs)
                scenes.append(self._scene(piece, outputs))
            for scene in joined_by_shape(scenes):
                contest.values[scene.positions] = self._evaluate(
                    scene.outputs, scene.reference, scene.labels, scene.positions
                )
            if (estimate := contest.verdict_after([piece for piece, _ in block])) is not None:
                return Scored(estimate, self._divergence(first), None)
        score = Score(float(contest.values.mean()), contest.values, len(contest.values))
        accuracy = compare(self.baseline, score, self._metric, jitter=self._jitter)
        return Scored(accuracy, self._divergence(first), score.values)

    def _scene(self, piece: Piece, outputs: Outputs) -> Scene:
        batch = self._split.batches[piece.batch_index]
        labels = None if batch.labels is None else batch.labels[piece.rows]
        return Scene(piece.positions, outputs, self._reference_of(piece) or outputs, labels)

    def _reference_of(self, piece: Piece) -> Outputs | None:
        if self._reference is None:
            return None
        index = bisect_right(self._chunk_starts, piece.start) - 1
        start = piece.start - self._chunk_starts[index]
        return _rows(self._reference[index], start, piece.n_examples)

    def _run_checked(
        self, session: Session, blocks: Iterable[Sequence[Piece]]
    ) -> Iterator[list[tuple[Piece, dict[str, Array]]]]:
        wanted = list(blocks)
        with closing(run_pieces(session, self._split, self._feeding, wanted, output=self._output)) as found:
            for block, outputs in zip(wanted, found, strict=True):
                if name := _nan_output(outputs):
                    raise OutputsNotFinite(f"output {name!r} has NaN")
                yield list(zip(block, outputs, strict=True))

    def _divergence(self, first: _FirstOutputs) -> float | None:
        if not first.pieces:
            return None
        scenes = [
            Scene(piece.positions, first.outputs[piece.start], self._float_first.outputs[piece.start], None)
            for piece in first.pieces
        ]
        parts = [
            divergences(scene.reference, scene.outputs, self._metric, output=self._watched)
            for scene in joined_by_shape(scenes)
        ]
        mean = float(np.concatenate(parts).mean())
        return mean if np.isfinite(mean) else None

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
            if name := _nan_output([chunk.outputs]):
                raise ModelError(f"the float model's output {name!r} has NaN on the data it is scored on")
            yield chunk

    def _chunks(self, session: Session) -> Iterator[Chunk]:
        return run_split(session, self._split, self._feeding, output=self._output)

    def _checked(self, session: Session) -> Iterator[Chunk]:
        for chunk in self._chunks(session):
            if name := _nan_output([chunk.outputs]):
                raise OutputsNotFinite(f"output {name!r} has NaN")
            yield chunk

    def _score(self, chunks: Iterator[Chunk] | Sequence[Chunk]) -> Score:
        if self._metric.scope == "set":
            return self._score_set(list(chunks))
        parts = []
        for index, chunk in enumerate(chunks):
            reference = chunk.outputs if self._reference is None else self._reference[index]
            positions = np.arange(chunk.start, chunk.start + chunk.n_examples)
            parts.append(self._evaluate(chunk.outputs, reference, chunk.labels, positions))
        values = np.concatenate([np.atleast_1d(part) for part in parts])
        return Score(float(values.mean()), values, len(values))

    def _score_set(self, chunks: Sequence[Chunk]) -> Score:
        outputs = _joined([chunk.outputs for chunk in chunks], self._metric)
        reference = outputs if self._reference is None else _joined(self._reference, self._metric)
        returned = self._evaluate(outputs, reference, self._split.labels, None)
        if isinstance(returned, float):
            return Score(returned, None, self._split.n_examples)
        return Score(float(returned.mean()), returned, len(returned))

    def _evaluate(
        self, outputs: Outputs, reference: Outputs, labels: Array | None, positions: Positions | None
    ) -> Values | float:
        return evaluate_metric(self._metric, self._function, outputs, reference, labels, positions=positions)


class _FirstOutputs:
    """Outputs of the first batches of an order, picked out of whatever order they are run in."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.outputs: dict[int, Outputs] = {}  # by the start of the batch
        self._wanted = {piece.start for piece in pieces}

    def add(self, piece: Piece, outputs: Outputs) -> None:
        """Take in the outputs of one batch, if it is one of the first."""
        if piece.start in self._wanted:
            # Copies: a metric of the user's may write to what it is shown.
            self.outputs[piece.start] = {name: array.copy() for name, array in outputs.items()}

    def tapped(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on."""
        for chunk in chunks:
            for piece in self.pieces:
                if chunk.start <= piece.start < chunk.start + chunk.n_examples:
                    self.add(piece, _rows(chunk.outputs, piece.start - chunk.start, piece.n_examples))
            yield chunk


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


def _rows(outputs: Outputs, start: int, n: int) -> dict[str, Array]:
    return {name: array[start : start + n] for name, array in outputs.items()}


def _n_rows(outputs: Mapping[str, Array]) -> int:
    return len(next(iter(outputs.values())))


def _nan_output(parts: Sequence[Outputs]) -> str | None:
    """Name an output that has NaN, of several batches whose shapes may differ."""
    names = parts[0] if parts else ()
    for name in names:
        arrays = [one[name] for one in parts]
        if arrays[0].dtype.kind != "f":
            continue
        # One look at many small arrays: of a large one no copy is made.
        values = arrays[0] if len(arrays) == 1 else np.concatenate([one.reshape(-1) for one in arrays])
        if np.isnan(values).any():
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
