"""Choose which weights become zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autoq.variants.patterns import keep_largest

Float = npt.NDArray[np.float32]


def prune_by_magnitude(weight: Float, sparsity: float) -> Float:
    """Set the smallest fraction of a layer's weights to zero.

    Exactly `round(sparsity * size)` weights are chosen; of equal magnitudes those with the lower
    flat index go first, so the result is the same on every machine.
    """
    n_zero = round(sparsity * weight.size)
    if n_zero == 0:
        return weight
    return np.where(keep_largest(np.abs(weight), n_zero), weight, np.float32(0.0))
