"""Round weights to a grid: nearest, symmetric, one scale per tensor, channel or block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Granularity
from autoq.core.quantization import weight_limit

Float = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


def round_weights(
    weight: Float, bits: int, granularity: Granularity, channel_axis: int
) -> tuple[Int8, Float]:
    """Quantise to the symmetric grid -limit..limit; zero stays zero.

    Returns:
        Integers in the weight's shape, and scales: shape () per tensor, (channels,) per channel.
        A channel of zeros gets scale 1.
    """
    limit = weight_limit(bits)
    if granularity is Granularity.TENSOR:
        scales = _safe_scale(np.abs(weight).max(initial=0.0), limit)
        return _to_grid(weight, scales, -limit, limit), scales
    axes = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    scales = _safe_scale(np.abs(weight).max(axis=axes, initial=0.0), limit)
    shape = [1] * weight.ndim
    shape[channel_axis] = -1
    return _to_grid(weight, scales.reshape(shape), -limit, limit), scales


def round_blocks(rows: Float, bits: int, block_size: int) -> tuple[Int8, Float]:
    """Quantise each run of `block_size` weights of a row with a scale of its own.

    The grid -half..half-1 has one more level below zero than above. Two ways to use it are tried a
    block, and the one with the smaller squared error is kept: the largest magnitude on the last
    level either side can hold, or, with a negative scale where needed, on -half.

    Args:
        rows: Shape (output channels, inputs).
        bits: Of the grid.
        block_size: Weights that share a scale; the last block of a row may be shorter.

    Returns:
        Integers of shape (output channels, blocks * block_size), padded with zeros, and scales of
        shape (output channels, blocks).
    """
    n_rows, n_inputs = rows.shape
    n_blocks = -(-n_inputs // block_size)
    padded = np.zeros((n_rows, n_blocks * block_size), np.float32)
    padded[:, :n_inputs] = rows
    blocks = padded.reshape(n_rows, n_blocks, block_size)
    half = 2 ** (bits - 1)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    options = [_safe_scale(np.abs(extreme), half - 1), _safe_scale(-extreme, half)]
    rounded = [_to_grid(blocks, scale[..., None], -half, half - 1) for scale in options]
    errors = [
        ((integers * scale[..., None] - blocks) ** 2).sum(axis=2)
        for integers, scale in zip(rounded, options, strict=True)
    ]
    second = errors[1] < errors[0]
    integers = np.where(second[..., None], rounded[1], rounded[0]).astype(np.int8)
    return integers.reshape(n_rows, -1), np.where(second, options[1], options[0]).astype(np.float32)


def _safe_scale(extreme: Any, limit: int) -> Float:
    """Scale that puts the extreme on the limit; 1 where that would be zero or subnormal."""
    scale = np.asarray(extreme, np.float32) / np.float32(limit)
    return np.where(np.abs(scale) > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)


def _to_grid(weight: Float, scales: Float, low: int, high: int) -> Int8:
    scaled = weight / scales
    np.rint(scaled, out=scaled)
    np.clip(scaled, low, high, out=scaled)
    return scaled.astype(np.int8)
