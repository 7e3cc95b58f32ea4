"""Uniform quantisation: parameters, and the grid they define."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Int = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ActivationParams:
    """Scale and zero point of one activation tensor: real = scale * (integer - zero_point)."""

    scale: float
    zero_point: int
    signed: bool  # s8, else u8

    @property
    def low(self) -> int:
        """Smallest integer of the type."""
        return -128 if self.signed else 0

    @property
    def high(self) -> int:
        """Largest integer of the type."""
        return self.low + 255

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        """Integer type of the quantised tensor."""
        return np.int8 if self.signed else np.uint8


def activation_params(low: float, high: float, *, signed: bool) -> ActivationParams:
    """Fit 8-bit asymmetric parameters to a range.

    The range is widened to hold zero, so that zero is exact: padding and ReLU rely on it. A range
    of no width, as of a tensor that is always zero, gets scale 1.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    # A subnormal scale divides to infinity in float32.
    scale = np.float32((high - low) / 255.0)
    if not scale > np.finfo(np.float32).tiny:
        return ActivationParams(1.0, -128 if signed else 0, signed)
    bottom = -128 if signed else 0
    zero_point = int(np.clip(np.rint(bottom - low / float(scale)), bottom, bottom + 255))
    return ActivationParams(float(scale), zero_point, signed)


def quantize(values: Float, params: ActivationParams) -> Int:
    """Round to the nearest grid point, half to even, saturating; as ONNX QuantizeLinear does."""
    raw = np.rint(values / np.float32(params.scale)) + params.zero_point
    quantized: Int = np.clip(raw, params.low, params.high).astype(params.dtype)
    return quantized


def dequantize(values: Int, params: ActivationParams) -> Float:
    """Inverse of `quantize` up to rounding."""
    return (values.astype(np.float32) - np.float32(params.zero_point)) * np.float32(params.scale)


def weight_limit(bits: int) -> int:
    """Largest magnitude of a symmetric signed grid: 127 for 8 bits, 1 for 2."""
    return int(2 ** (bits - 1)) - 1
