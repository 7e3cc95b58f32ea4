"""Compress weights by what the weights alone tell: prune by magnitude, round to nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.choices import Rounding
from autoq.core.layers import Layer
from autoq.variants.lstm import restore_parts, round_parts
from autoq.variants.patterns import NOfM, keep_pattern
from autoq.variants.rounding import round_blocks, round_weights
from autoq.variants.rows import from_rows, to_rows
from autoq.variants.sparsity import prune_by_magnitude
from autoq.variants.variant import Variant, WeightChoice

Float = npt.NDArray[np.float32]


def compress_plainly(layer: Layer, weight: Float, choice: WeightChoice) -> tuple[npt.NDArray[Any], Float]:
    """Return weights and scales of a choice that is plain, laid out as `Variant` says.

    Pure: the same input gives the same bytes, on any machine and without data.
    """
    pruned = prune_plainly(layer, weight, choice)
    if choice.is_float:
        return pruned, np.zeros(0, np.float32)
    if layer.op == "LSTM":
        return round_parts(pruned, choice.bits, choice.granularity, layer.input_size)
    block_size = choice.granularity.block_size
    if block_size is None:
        return round_weights(pruned, choice.bits, choice.granularity, layer.channel_axis)
    return round_blocks(block_rows(layer, pruned), choice.bits, block_size)


def prune_plainly(layer: Layer, weight: Float, choice: WeightChoice) -> Float:
    """Set the smallest magnitudes to zero, over the layer or in each run of neighbours."""
    structure = choice.pattern.n_of_m
    if structure is None:
        return prune_by_magnitude(weight, choice.sparsity)
    rows = to_rows(weight, layer)
    kept = keep_pattern(np.abs(rows), NOfM(*structure))
    return from_rows(np.where(kept, rows, np.float32(0.0)), layer)


def block_rows(layer: Layer, weight: Float) -> Float:
    """Return the weights as (output channels, inputs), along which blocks run."""
    return weight if layer.channel_axis == 0 else np.ascontiguousarray(weight.T)


def restore(layer: Layer, weights: npt.NDArray[Any], scales: Float, choice: WeightChoice) -> Float:
    """Return what compressed weights stand for, in the layer's shape."""
    if choice.is_float:
        if choice.bits != 16:
            return weights
        with np.errstate(over="ignore"):  # what half precision cannot hold becomes infinite
            return weights.astype(np.float16).astype(np.float32)
    if layer.op == "LSTM":
        return restore_parts(weights, scales, layer.input_size)
    if choice.granularity.block_size is not None:
        n_rows, n_blocks = scales.shape
        blocks = weights.reshape(n_rows, n_blocks, -1) * scales[..., None]
        inputs = layer.n_params // n_rows
        matrix = blocks.reshape(n_rows, -1)[:, :inputs]
        return np.ascontiguousarray(matrix if layer.channel_axis == 0 else matrix.T)
    if scales.ndim == 0:
        return weights * scales
    shape = [1] * weights.ndim
    shape[layer.channel_axis] = -1
    return weights * scales.reshape(shape)


def fits(layer: Layer, choice: WeightChoice, variant: Variant) -> bool:
    """Whether tensors from a file have the shapes and types that the choice gives the layer."""
    n_outputs = layer.weight_shape[layer.channel_axis] * (layer.group if layer.op == "ConvTranspose" else 1)
    if layer.is_recurrent:
        n_outputs = layer.weight_shape[0] * layer.weight_shape[1]
    if variant.correction.shape not in ((0,), (n_outputs,)):
        return False
    plain = compress_plainly(layer, np.zeros(layer.weight_shape, np.float32), _plain(choice))
    return all(
        found.shape == expected.shape and found.dtype == expected.dtype
        for found, expected in zip((variant.weights, variant.scales), plain, strict=True)
    )


def _plain(choice: WeightChoice) -> WeightChoice:
    """The plain choice whose tensors are laid out in the same way."""
    rounding = Rounding.NONE if choice.is_float else Rounding.NEAREST
    return WeightChoice(choice.bits, choice.granularity, 0.0, rounding)
