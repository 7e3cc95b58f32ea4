"""Labels on the channels of values, and which of them can only be removed together.

A value's labels are an array of as many axes as the value has. An axis has length 1 where labels do not
vary along it, else the value's own length. Label 0 marks what has to stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Dims = tuple[int | str | None, ...]  # a str names a dynamic axis, None is an unknown one

KEPT = 0


class Units:
    """Disjoint sets of labels (union-find). A set is removed as a whole, or has a reason to stay."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self._reasons: dict[int, str] = {KEPT: ""}  # by root

    def make(self, count: int) -> Labels:
        """Make new labels, each in a set of its own: (count,)."""
        start = len(self._parent)
        made = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, made])
        return made

    def find(self, labels: Labels) -> Labels:
        """Return one label of each set for all labels of the set, and 0 for what has to stay."""
        roots = self._roots(labels)
        stay = np.fromiter(self._reasons, np.int64)
        return np.where(np.isin(roots, stay), KEPT, roots)

    def reasons(self, labels: Labels) -> list[str]:
        """Return why some of the labels have to stay, each reason once."""
        roots = np.unique(self._roots(labels))
        known = (self._reasons.get(int(root), "") for root in roots)
        return list(dict.fromkeys(reason for reason in known if reason))

    def join(self, first: Labels, second: Labels, reason: str) -> None:
        """Unite the sets of labels in the same place; `reason` is given to what meets a 0."""
        one, other = (array.reshape(-1) for array in np.broadcast_arrays(first, second))
        pairs = np.stack([self._roots(one), self._roots(other)], axis=1)
        for left, right in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist():
            self._unite(left, right, reason)

    def keep(self, labels: Labels, reason: str) -> None:
        """Say that the sets of these labels have to stay."""
        for root in np.unique(self._roots(labels)).tolist():
            self._reasons.setdefault(root, reason)

    def _unite(self, left: int, right: int, reason: str) -> None:
        low, high = sorted((self._root(left), self._root(right)))
        if low == KEPT:
            self._reasons.setdefault(high, reason)
        elif low != high:
            self._parent[high] = low
            if high in self._reasons:
                self._reasons.setdefault(low, self._reasons.pop(high))

    def _root(self, label: int) -> int:
        while (parent := int(self._parent[label])) != label:
            label = parent
        return label

    def _roots(self, labels: Labels) -> Labels:
        roots = self._parent[labels]
        while not np.array_equal(above := self._parent[roots], roots):
            roots = above
        self._parent[labels] = roots
        return roots


def unlabelled(rank: int) -> Labels:
    """Labels of a value of which everything has to stay."""
    return np.zeros((1,) * rank, np.int64)


def along(labels: Labels, *, axis: int, rank: int) -> Labels:
    """Lay a vector of labels along one axis of a value."""
    return labels.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def varying(labels: Labels) -> tuple[int, ...]:
    """Return the axes along which labels vary."""
    return tuple(axis for axis, size in enumerate(labels.shape) if size > 1)


def first_along(labels: Labels, axes: Iterable[int]) -> Labels:
    """Return the labels at the start of some axes, which stay with length 1."""
    chosen = set(axes)
    return labels[tuple(slice(0, 1) if axis in chosen else slice(None) for axis in range(labels.ndim))]


def compact(labels: Labels) -> Labels:
    """Shorten every axis along which labels are the same to length 1."""
    for axis in varying(labels):
        if (labels == first_along(labels, [axis])).all():
            labels = first_along(labels, [axis])
    return labels


def spread(labels: Labels, axis: int, size: int) -> Labels:
    """Repeat labels along an axis of length 1 so that it has the value's own length."""
    if labels.shape[axis] == size:
        return labels
    return np.repeat(labels, size, axis)


def reshaped(labels: Labels, dims: Dims, target: Dims) -> Labels | None:
    """Follow labels through a reshape in row-major order.

    Args:
        labels: Of the value that is read.
        dims: Its shape.
        target: The shape of the result.

    Returns:
        Labels of the result, or None where a labelled axis is mixed with one of unknown length.
    """
    full: list[int] = []
    result: list[int] = []
    for ins, outs in segments(dims, target):
        sizes, wanted = [dims[axis] for axis in ins], [target[axis] for axis in outs]
        if not any(labels.shape[axis] > 1 for axis in ins):
            full += [1] * len(ins)
            result += [1] * len(outs)
        elif len(ins) == len(outs) == 1:
            full.append(labels.shape[ins[0]])
            result.append(labels.shape[ins[0]])
        else:
            known = [size for size in (*sizes, *wanted) if isinstance(size, int)]
            if len(known) < len(sizes) + len(wanted):
                return None
            full += known[: len(sizes)]
            result += known[len(sizes) :]
    if int(np.prod(full)) != int(np.prod(result)):
        return None
    return compact(np.broadcast_to(labels, full).reshape(result))


def segments(dims: Dims, target: Dims) -> list[tuple[range, range]]:
    """Pair runs of axes of two shapes that hold the same elements: from the right, then from the left.

    What neither end reaches, because of lengths that are not known, is one run.
    """
    right = _matched(dims[::-1], target[::-1])
    ins, outs = sum(len(a) for a, _ in right), sum(len(b) for _, b in right)
    rest, rest_target = dims[: len(dims) - ins], target[: len(target) - outs]
    left = _matched(rest, rest_target)
    start, start_target = sum(len(a) for a, _ in left), sum(len(b) for _, b in left)
    middle = (range(start, len(rest)), range(start_target, len(rest_target)))
    mirrored = [
        (
            range(len(dims) - a.stop, len(dims) - a.start),
            range(len(target) - b.stop, len(target) - b.start),
        )
        for a, b in reversed(right)
    ]
    return [*left, middle, *mirrored]


def _matched(dims: Dims, target: Dims) -> list[tuple[range, range]]:
    """Pair runs of equal products from the left, up to the first that is not known."""
    runs: list[tuple[range, range]] = []
    start = start_target = 0
    while start < len(dims) and start_target < len(target):
        if dims[start] is not None and dims[start] == target[start_target]:
            stop, stop_target = start + 1, start_target + 1
        else:
            run = _equal_products(dims[start:], target[start_target:])
            if run is None:
                break
            stop, stop_target = start + run[0], start_target + run[1]
        runs.append((range(start, stop), range(start_target, stop_target)))
        start, start_target = stop, stop_target
    return runs


def _equal_products(dims: Sequence[object], target: Sequence[object]) -> tuple[int, int] | None:
    """Lengths of the shortest runs at the start of two shapes that hold the same number of elements."""
    counts, products = [0, 0], [1, 1]
    while counts == [0, 0] or 0 in counts or products[0] != products[1]:
        side = 0 if counts[0] == 0 or (counts[1] > 0 and products[0] < products[1]) else 1
        shape = (dims, target)[side]
        size = shape[counts[side]] if counts[side] < len(shape) else None
        if not isinstance(size, int):
            return None
        counts[side] += 1
        products[side] *= size
    return counts[0], counts[1]
