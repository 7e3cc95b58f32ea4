"""Estimate what a layer's tensors take in the storage bundle, with the bundle's own encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.packing import as_bytes, packed_bytes
from autoq.core.transforms import Transform

_PLANES = {2: Transform.PLANES_2, 4: Transform.PLANES_4, 8: Transform.PLANES_8}


def packed_grid_bytes(integers: npt.NDArray[np.int8]) -> int:
    """Size of an integer grid, one byte a weight, dense or as a bitmap with what is not zero."""
    return packed_bytes(as_bytes(integers), (Transform.PLAIN, Transform.SPARSE))


def packed_float_bytes(values: npt.NDArray[Any]) -> int:
    """Size of floats of any width: bytes of equal significance together."""
    return packed_bytes(as_bytes(values), (_PLANES[values.itemsize],))
