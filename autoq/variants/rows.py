"""Lay a layer's weights out as the rows of a matrix product, and back."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autoq.core.layers import Layer

Scalar = TypeVar("Scalar", bound=np.generic)


def to_rows(weight: npt.NDArray[Scalar], layer: Layer) -> npt.NDArray[Scalar]:
    """Return the weights as (groups, rows, columns): one row an output channel, one column an input.

    Columns run over (input channel of the group, taps) in C order, as im2col lays inputs out, so an
    output channel of group g is `rows[g] @ x` for the inputs x of that group.

    Args:
        weight: In the layer's shape: Conv (O, I/g, k...), ConvTranspose (I, O/g, k...), Gemm and
            MatMul (out, in) or (in, out) by the layer's channel axis, LSTM and GRU as they are, with
            directions for groups. A Gather multiplies nothing: its table is one group of rows.
        layer: Tells the op, its groups and its channel axis.
    """
    if layer.is_matmul:
        matrix = weight if layer.channel_axis == 0 else weight.T
        return np.ascontiguousarray(matrix)[None]
    if layer.is_recurrent:
        return np.ascontiguousarray(weight)
    if layer.op == "ConvTranspose":
        inputs, outputs = weight.shape[0] // layer.group, weight.shape[1]
        split = weight.reshape(layer.group, inputs, outputs, -1).swapaxes(1, 2)
        return np.ascontiguousarray(split).reshape(layer.group, outputs, -1)
    return np.ascontiguousarray(weight).reshape(layer.group, weight.shape[0] // layer.group, -1)


def from_rows(rows: npt.NDArray[Scalar], layer: Layer) -> npt.NDArray[Scalar]:
    """Inverse of `to_rows`, for any dtype: (groups, rows, columns) to the layer's shape."""
    if layer.is_matmul:
        return np.ascontiguousarray(rows[0] if layer.channel_axis == 0 else rows[0].T)
    if layer.is_recurrent:
        return np.ascontiguousarray(rows)
    if layer.op == "ConvTranspose":
        groups, outputs, _ = rows.shape
        inputs = layer.weight_shape[0] // groups
        split = rows.reshape(groups, outputs, inputs, -1).swapaxes(1, 2)
        return np.ascontiguousarray(split).reshape(layer.weight_shape)
    return np.ascontiguousarray(rows).reshape(layer.weight_shape)
