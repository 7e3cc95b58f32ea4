"""Accuracy of a candidate on a split, beside the float model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.data import Array, Split
from autoq.core.errors import DataError, ModelError, TrialError, UserError
from autoq.core.measurements import Accuracy
from autoq.evaluation.batches import Chunk, Feeding, run_split
from autoq.evaluation.metrics import MetricSpec, Outputs, evaluate_metric
from autoq.evaluation.ports import Session
from autoq.evaluation.statistics import Values, mean_drop_estimate


@dataclass(frozen=True, eq=False)
class Score:
    """What a metric says of a model on a split."""

    value: float
    values: Values | None  # (n,) per example; None where the metric is one number
    n_examples: int


class SplitScorer:
    """Scores models on one split; what the float model gave is computed once and kept."""

    def __init__(
        self, split: Split, metric: MetricSpec, feeding: Feeding, *, output: str | None = None
    ) -> None:
        if metric.needs_labels and split.labels is None:
            raise DataError(f"metric {metric.name} needs labels and the split has none")
        self._split = split
        self._metric = metric
        self._feeding = feeding
        self._function = metric.load(output)
        # A function of the user's sees every output, a built-in metric the one it looks at.
        self._output = output if metric.reference is None else None
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
        chunks: Iterator[Chunk] | list[Chunk] = self._float_chunks(session)
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
