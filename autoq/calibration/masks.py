"""Padding of the data: positions that an input marks, and whose contents no output depends on.

Sentences of a batch are filled up to one length, and a mask says where. What a model computes there is read
by nothing, yet there may be more of it than of the rest: kept in the statistics, it would choose ranges,
roundings and units. Whether an input is such a mask is found by filling the padding with other contents: no
output may change, as one has to if the rest is filled instead. Where the padding lies in a tensor is seen by
what does change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from autoq.core.data import Array, Feed, Split

Flags = npt.NDArray[np.bool_]
_SEED = 20211
_N_CONTENTS = 1024  # positions that padding is filled from


@dataclass(frozen=True, slots=True)
class Mask:
    """An input of two values, (examples, positions), one of which may mark padding of other inputs."""

    name: str
    marker: float  # the value that does
    masked: tuple[tuple[str, int], ...]  # inputs, and their axis of positions; the first is of examples
    # What each of them holds where it is no padding, (vectors, ...).
    contents: Mapping[tuple[str, int], Array] = field(default_factory=dict, compare=False)

    def padding(self, array: Array) -> Flags:
        """Tell the padding by the mask itself, shape (examples, positions)."""
        flags: Flags = _two_axes(array) == self.marker
        return flags

    def refilled(self, feed: Feed, *, elsewhere: bool = False) -> Feed:
        """Return a feed whose padding, or all that is none, holds what is found in the data elsewhere."""
        flags = self.padding(feed[self.name])
        changed = ~flags if elsewhere else flags
        filled = dict(feed)
        for name, axis in self.masked:
            rows, contents = np.moveaxis(feed[name].copy(), axis, 1), self.contents[name, axis]
            if rows.shape[2:] == contents.shape[1:]:
                chosen = np.random.default_rng(_SEED).integers(len(contents), size=np.count_nonzero(changed))
                rows[changed] = contents[chosen]
                filled[name] = np.moveaxis(rows, 1, axis)
        is_same = all(np.array_equal(filled[name], feed[name]) for name, _ in self.masked)
        return feed if is_same else filled


def possible_masks(split: Split) -> list[Mask]:
    """Every input of two values, with either as the marker, beside others with the same positions."""
    names = list(split.batches[0].inputs) if split.batches else []
    values = {name: _two_values(split, name) for name in names if len(names) > 1}
    found = []
    for name, markers in values.items():
        others = (one for one, other in values.items() if not other) if markers else ()
        masked = tuple((one, axis) for one in others for axis in _position_axes(split, one, name))
        for mask in (Mask(name, marker, masked) for marker in markers if masked):
            contents = {(one, axis): _contents(split, mask, one, axis) for one, axis in masked}
            if all(map(len, contents.values())):
                found.append(replace(mask, contents=contents))
    return found


def most_padded(split: Split, mask: Mask, n_examples: int) -> Split:
    """Return the examples with the most padding, after those of which nothing else would remain."""
    shares = np.concatenate([mask.padding(array).mean(axis=1) for array in _arrays(split, mask.name)])
    order = np.argsort(np.where(shares < 1.0, -shares, 0.0), kind="stable")
    return split.rows(np.sort(order[:n_examples]))


def padded_share(split: Split, mask: Mask) -> float:
    """Return how much of all positions is padding."""
    flags = [mask.padding(array).reshape(-1) for array in _arrays(split, mask.name)]
    return float(np.concatenate(flags).mean())


def padding_of(changed: Flags, example_axis: int, mask: Flags) -> Flags | None:
    """Find the padding of a tensor: the slices that hold whatever changed with the contents of padding.

    Attention scores between positions have no such slices: padding has a row and a column there.

    Args:
        changed: The elements that did.
        example_axis: The axis that runs over examples, alone or with what was merged into it.
        mask: Padding of the inputs, (examples, positions).

    Returns:
        Flags of all elements; None if there are no such slices.
    """
    found = []
    for flags, axes in _laid_out(mask, changed.shape, example_axis):
        if not (changed & ~flags).any():
            # A channel that never changes does not come from what the mask is of.
            found.append(flags & changed.any(axis=axes, keepdims=True))
    return min(found, key=np.mean) if found else None


def differing(one: Array, other: Array) -> Flags:
    """Tell which elements of two arrays differ; NaN does not differ from NaN."""
    flags: Flags = one != other
    if flags.any() and np.issubdtype(one.dtype, np.floating):
        flags &= ~(np.isnan(one) & np.isnan(other))
    return flags


def _laid_out(
    mask: Flags, shape: tuple[int, ...], example_axis: int
) -> Iterator[tuple[Flags, tuple[int, ...]]]:
    """Lay a mask along the axes of a tensor that can be its own; what comes of it broadcasts."""
    n_examples, n_positions = mask.shape
    n_merged, rest = divmod(shape[example_axis], n_examples)
    if rest:
        return
    if n_merged == n_positions:
        for order in (mask, mask.T):
            yield _spread(order.reshape(-1), (example_axis,), len(shape)), (example_axis,)
    repeated = mask.repeat(n_merged, axis=0)
    for axis, size in enumerate(shape):
        if size == n_positions and axis != example_axis:
            yield _spread(repeated, (example_axis, axis), len(shape)), (example_axis, axis)


def _spread(flags: Flags, axes: Sequence[int], n_axes: int) -> Flags:
    ordered = flags if list(axes) == sorted(axes) else flags.T
    return np.expand_dims(ordered, [axis for axis in range(n_axes) if axis not in axes])


def _contents(split: Split, mask: Mask, name: str, axis: int) -> Array:
    """What an input holds where it is no padding, from the first examples."""
    found: list[Array] = []
    for flags, array in zip(_arrays(split, mask.name), _arrays(split, name), strict=True):
        fresh = np.moveaxis(array, axis, 1)[~mask.padding(flags)][:_N_CONTENTS]
        if not found or fresh.shape[1:] == found[0].shape[1:]:
            found.append(fresh)
        if sum(map(len, found)) >= _N_CONTENTS:
            break
    return np.concatenate(found)


def _arrays(split: Split, name: str) -> Iterator[Array]:
    """One input, batch by batch."""
    for batch in split.batches:
        array = batch.inputs[name]
        yield split.transform[name](array) if name in split.transform else array


def _two_values(split: Split, name: str) -> tuple[float, ...]:
    """The two values of an input over all data; none if there are fewer or more."""
    values: set[float] = set()
    for array in (one for batch in split.batches for one in batch.inputs[name]):
        values.update(np.unique(array).tolist())
        if len(values) > 2:
            return ()
    if len(values) < 2:
        return ()
    raw = np.array(sorted(values), split.batches[0].inputs[name].dtype)
    return tuple((split.transform[name](raw) if name in split.transform else raw).tolist())


def _position_axes(split: Split, name: str, mask: str) -> list[int]:
    """The axes of an input, whose first is of examples, that may run over the positions of a mask."""
    axes = set(range(1, split.batches[0].inputs[name].ndim))
    for batch in split.batches:
        positions, shape = _two_axes(batch.inputs[mask]).shape, batch.inputs[name].shape
        axes = {axis for axis in axes if len(positions) == 2 and shape[axis] == positions[1]}
    return sorted(axes)


def _two_axes(array: Array) -> Array:
    """Leave out axes of one beside examples and positions: masks come ready to be broadcast."""
    others = [size for size in array.shape[1:] if size != 1]
    return array if array.ndim < 3 else array.reshape(len(array), *(others or [1]))
