"""Feeding a split to a session, batch by batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from autoq.core.data import Array, Feed, Split
from autoq.core.errors import DataError, ModelError
from autoq.core.layers import TensorSpec
from autoq.evaluation.ports import Session

In = TypeVar("In")
Out = TypeVar("Out")

# Outputs of so many examples are held before the metric is asked: few calls, little memory.
CHUNK_EXAMPLES = 512


@dataclass(frozen=True)
class Piece:
    """One batch as it is fed."""

    start: int  # position of its first example in the split
    batch_index: int  # of the split
    rows: slice  # of that batch

    @cached_property
    def n_examples(self) -> int:
        """Number of examples."""
        return int(self.rows.stop - self.rows.start)

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """Positions of its examples in the split; every trial looks them up again."""
        return np.arange(self.start, self.start + self.n_examples)


@dataclass(frozen=True, slots=True)
class Feeding:
    """How a model wants its examples.

    The batch size is part of what is scored: formats that take one scale over the batch give other
    outputs at another size.
    """

    batch_size: int
    is_static: bool = False  # the model takes exactly `batch_size`: short batches are filled up
    n_workers: int = 1  # threads that call one session


@dataclass(frozen=True, eq=False)
class Chunk:
    """Outputs of some consecutive examples of one shape."""

    start: int  # position of the first example in the split
    outputs: Mapping[str, Array]  # each (n, ...)
    labels: Array | None  # (n, ...)

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(next(iter(self.outputs.values())))


def feeding_for(
    inputs: Sequence[TensorSpec], batch_size: int, *, threads: int = 1, n_cores: int = 1
) -> Feeding:
    """Say how to feed a model: at the target's batch size, or at the one that is written into the model.

    Args:
        inputs: The model's inputs.
        batch_size: The target's.
        threads: Threads of one run; runs go side by side while cores are left.
        n_cores: Cores of the machine that runs the model.
    """
    sizes = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)}
    n_workers = max(1, n_cores // max(1, threads))
    if sizes:
        return Feeding(int(min(sizes)), is_static=True, n_workers=n_workers)
    return Feeding(batch_size, n_workers=n_workers)


def timing_feeds(
    split: Split,
    inputs: Sequence[TensorSpec],
    feeding: Feeding,
    *,
    shapes: Mapping[str, int] | None = None,
    n_feeds: int = 8,
) -> tuple[Feed, ...]:
    """Take inputs to time a model with: the first examples, all of one shape.

    Args:
        split: Where the examples come from, usually calibration; used again from the start if short.
        inputs: The model's inputs.
        feeding: Gives the batch size.
        shapes: Size of dynamic axes by name; arrays are cut, or repeated, to it.
        n_feeds: How many feeds; fewer if the first batch of the split has not enough examples.

    Raises:
        DataError: A name in `shapes` is not a dynamic axis of an input.
    """
    sizes = dict(shapes or {})
    axes = {axis for spec in inputs for axis in spec.shape[1:] if isinstance(axis, str)}
    if unknown := sorted(sizes.keys() - axes):
        known = ", ".join(sorted(axes)) or "none"
        raise DataError(f"timing.shapes: no dynamic axis {unknown[0]!r}", hint=f"dynamic axes: {known}")
    size = feeding.batch_size
    first = split.batches[0]
    n_feeds = max(1, min(n_feeds, first.n_examples // size))
    rows = np.arange(n_feeds * size) % first.n_examples
    feeds = Split((first.rows(rows),), split.transform).feeds(size)
    return tuple(
        {spec.name: _resized(feed[spec.name], spec, sizes) for spec in inputs if spec.name in feed}
        for feed in feeds
    )


def run_split(
    session: Session, split: Split, feeding: Feeding, *, output: str | None = None
) -> Iterator[Chunk]:
    """Run every example and yield the outputs in order, whatever the number of workers.

    Args:
        session: The model.
        split: The examples.
        feeding: How to feed them.
        output: The one output to keep; all by default.

    Raises:
        ModelError: There is no such output, or one has not a row per example.
    """
    with _crew(feeding.n_workers) as mapped:
        for start, part in _parts(split, feeding.batch_size):
            feeds = part.feeds(feeding.batch_size)
            batches = mapped(lambda feed: _run(session, feed, feeding, output), feeds)
            yield Chunk(start, _concatenated(batches), part.labels)


def cut_into_pieces(split: Split, batch_size: int) -> list[Piece]:
    """Return the batches that a split is fed in, in order; the same as `run_split` feeds."""
    pieces, position = [], 0
    for index, batch in enumerate(split.batches):
        for start in range(0, batch.n_examples, batch_size):
            rows = slice(start, min(start + batch_size, batch.n_examples))
            pieces.append(Piece(position + start, index, rows))
        position += batch.n_examples
    return pieces


def run_pieces(
    session: Session,
    split: Split,
    feeding: Feeding,
    blocks: Iterable[Sequence[Piece]],
    *,
    output: str | None = None,
) -> Generator[list[dict[str, Array]], None, None]:
    """Run some batches of a split, block by block; yield the outputs of each, which are those of `run_split`.

    Raises:
        ModelError: There is no such output, or one has not a row per example.
    """

    def run(piece: Piece) -> dict[str, Array]:
        batch = split.batches[piece.batch_index].rows(piece.rows)
        [feed] = Split((batch,), split.transform).feeds(feeding.batch_size)
        return _run(session, feed, feeding, output)

    with _crew(feeding.n_workers) as mapped:
        for block in blocks:
            yield mapped(run, block)


def _parts(split: Split, batch_size: int) -> Iterator[tuple[int, Split]]:
    """Cut a split into pieces of whole batches and one shape, with the position of each."""
    length = max(batch_size, CHUNK_EXAMPLES // batch_size * batch_size)
    position = 0
    for batch in split.batches:
        for start in range(0, batch.n_examples, length):
            yield position + start, Split((batch.rows(slice(start, start + length)),), split.transform)
        position += batch.n_examples


def _run(session: Session, feed: Feed, feeding: Feeding, output: str | None) -> dict[str, Array]:
    n = len(next(iter(feed.values())))
    n_fed = feeding.batch_size if feeding.is_static else n
    outputs = session.run(feed if n_fed == n else _filled(feed, n_fed))
    if output is not None:
        if output not in outputs:
            raise ModelError(f"the model has no output {output!r}, it has {', '.join(sorted(outputs))}")
        outputs = {output: outputs[output]}
    for name, array in outputs.items():
        if array.shape[:1] != (n_fed,):
            raise ModelError(
                f"model output {name!r} has shape {array.shape} for {n_fed} examples, "
                f"expected {n_fed} along its first axis"
            )
    return {name: array[:n] for name, array in outputs.items()}


def _concatenated(batches: Sequence[dict[str, Array]]) -> dict[str, Array]:
    joined = {}
    for name, first in batches[0].items():
        arrays = [batch[name] for batch in batches]
        if other := next((one.shape for one in arrays if one.shape[1:] != first.shape[1:]), None):
            raise ModelError(
                f"model output {name!r} has shape {first.shape} for one batch and {other} for another of the "
                "same input shape, expected all axes but the first to be independent of the data"
            )
        joined[name] = np.concatenate(arrays)
    return joined


def _filled(feed: Feed, n_examples: int) -> Feed:
    """Repeat the last example until there are enough."""
    return {
        name: np.concatenate([array, np.repeat(array[-1:], n_examples - len(array), axis=0)])
        for name, array in feed.items()
    }


class _Mapped(Protocol):
    def __call__(self, call: Callable[[In], Out], items: Iterable[In]) -> list[Out]: ...


@contextmanager
def _crew(n_workers: int) -> Iterator[_Mapped]:
    """Start threads that map side by side, the caller being one of them; results are in order.

    Whoever is free takes the next item, so that none wait that have been made already, and nobody waits
    for a thread that only hands out work. Of several errors that of the first item is raised.
    """
    if n_workers == 1:
        yield lambda call, items: [call(item) for item in items]
        return
    with ThreadPoolExecutor(n_workers - 1) as pool:

        def mapped(call: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
            results: dict[int, Out] = {}
            errors: dict[int, BaseException] = {}
            numbered, turn = enumerate(items), threading.Lock()

            def work() -> None:
                while not errors:
                    with turn:
                        taken = next(numbered, None)
                    if taken is None:
                        return
                    index, item = taken
                    try:
                        results[index] = call(item)
                    except BaseException as error:  # raised below, in the caller's thread
                        errors[index] = error

            others: list[Future[None]] = []
            try:
                others += (pool.submit(work) for _ in range(n_workers - 1))
                work()
            except BaseException as error:  # an interrupt, or the items': nobody takes another turn
                errors[-1] = error
            wait(others)
            for other in others:  # what the items raised in another thread
                if (failed := other.exception()) is not None:
                    errors[-1] = failed
            if errors:
                # An error that a frame of its own traceback knows would live until garbage is collected.
                raise errors.pop(min(errors))
            return [results[index] for index in range(len(results))]

        yield mapped


def _resized(array: Array, spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    for axis, name in enumerate(spec.shape):
        if axis > 0 and isinstance(name, str) and name in sizes:
            array = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)
