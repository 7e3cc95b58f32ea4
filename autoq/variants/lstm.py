"""Round the weights of an LSTM: its two parts, W and R, have scales of their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Granularity
from autoq.variants.rounding import round_weights

Float = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


def round_parts(weight: Float, bits: int, granularity: Granularity, split: int) -> tuple[Int8, Float]:
    """Quantise W and R of every direction to the symmetric grid -limit..limit, as `round_weights` does.

    Args:
        weight: Shape (directions, gates * hidden, input + hidden), as `Layer` describes it.
        bits: Of the grid.
        granularity: One scale for each direction and part, or for each row of them as well.
        split: Columns that are W (`Layer.input_size`); the others are R.

    Returns:
        Integers in the weight's shape, and scales of W and R in their last axis: shape (directions, 2)
        per tensor, (directions, gates * hidden, 2) per channel.
    """
    integers, scales = np.zeros(weight.shape, np.int8), []
    for direction, rows in enumerate(weight):
        for part in (slice(None, split), slice(split, None)):
            grid, scale = round_weights(rows[:, part], bits, granularity, 0)
            integers[direction][:, part] = grid
            scales.append(scale)
    paired = np.stack(scales).reshape(len(weight), 2, *scales[0].shape)
    return integers, np.ascontiguousarray(np.moveaxis(paired, 1, -1))


def restore_parts(integers: Int8, scales: Float, split: int) -> Float:
    """Return the float weights that `round_parts` stands for, in the same shape."""
    rows = scales if scales.ndim == 3 else scales[:, None, :]
    widths = [split, integers.shape[2] - split]
    restored: Float = integers.astype(np.float32) * np.repeat(rows, widths, axis=2)
    return restored
