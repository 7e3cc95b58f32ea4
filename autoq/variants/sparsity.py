"""Choose which weights become zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]


def prune_by_magnitude(weight: Float, sparsity: float) -> Float:
    """Set the smallest fraction of a layer's weights to zero.

    Exactly `round(sparsity * size)` weights are chosen; of equal magnitudes those with the lower
    flat index go first, so the result is the same on every machine.
    """
    n_zero = round(sparsity * weight.size)
    if n_zero == 0:
        return weight
    magnitude = np.abs(weight).reshape(-1)
    threshold = np.partition(magnitude, n_zero - 1)[n_zero - 1]
    pruned = weight.reshape(-1).copy()
    below = magnitude < threshold
    pruned[below] = 0.0
    ties = np.flatnonzero(magnitude == threshold)
    pruned[ties[: n_zero - int(below.sum())]] = 0.0
    return pruned.reshape(weight.shape)
