"""Rewrite: give two layers in a row the same weight range in every channel that joins them.

Cross-layer equalisation: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and
Bias Correction" (arXiv:1906.04721), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.graph.layers import is_linear
from autoq.graph.scaling import (
    Factors,
    Figures,
    Origin,
    check_factors,
    find_origin,
    input_maxima,
    input_width,
    live_channels,
    magnitudes,
    output_maxima,
    scale_inputs,
    scale_origin,
    trailing_axes,
)
from autoq.graph.values import claim_names, only_consumer

_MAX_ROUNDS = 40
_TOLERANCE = 1e-4  # relative change of a range in the last round


class EqualizeLayers(ir.passes.InPlacePass):
    """Equalise every pair of layers that nothing but scale-equivariant ops stands between.

    After the pass `scales` holds s by the name of each pair's first layer, (channels,) each: its
    output was divided by s, the second layer's input weights multiplied. Activations between them
    are divided by s as well, so statistics taken before no longer hold there.
    """

    def __init__(self) -> None:
        self.scales: dict[str, Factors] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Decide on the scales, then apply them."""
        self.scales = equalization_scales(model)
        _apply(model, self.scales)
        return ir.passes.PassResult(model, modified=bool(self.scales))


class ReplayEqualization(ir.passes.InPlacePass):
    """Apply scales that `EqualizeLayers` found on the same model: the weights come out byte for byte."""

    def __init__(self, scales: Mapping[str, Factors]) -> None:
        self._scales = scales

    def requires(self, model: ir.Model) -> None:
        """Check that every vector has its pair of layers.

        Raises:
            PreconditionError: A layer starts no pair, or its vector does not fit; see `check_factors`.
        """
        check_factors(self._scales, {_name(link.first): link.width for link in _find_links(model)})

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the scales in graph order."""
        _apply(model, self._scales)
        return ir.passes.PassResult(model, modified=bool(self._scales))


def equalization_scales(model: ir.Model) -> dict[str, Factors]:
    """Find s = sqrt(r1 r2) / r2 (equation 11) for the pairs of a canonical model, by first layer.

    r1 and r2 are the largest absolute weights of each channel in the two layers; s is the product over
    rounds, which go on until the ranges along every chain have settled. Channels that are dead in one of
    the two layers keep s = 1. Biases do not count: one of a nearly dead channel may grow.
    """
    links = _find_links(model)
    largest = {_name(layer): magnitudes(layer) for link in links for layer in (link.first, link.second)}
    pairs = [(largest[_name(link.first)], largest[_name(link.second)]) for link in links]
    live = [live_channels(output_maxima(a)) & live_channels(input_maxima(b)) for a, b in pairs]
    totals = [np.ones(link.width) for link in links]
    for _ in range(_MAX_ROUNDS):
        change = 0.0
        for (first, second), channels, total in zip(pairs, live, totals, strict=True):
            scales = _equalize(first, second, channels)
            total *= scales
            change = max(change, float(np.abs(np.log(scales)).max(initial=0.0)))
        if change < _TOLERANCE:
            break
    return {_name(link.first): total.astype(np.float32) for link, total in zip(links, totals, strict=True)}


@dataclass(frozen=True, slots=True)
class _Link:
    """Two layers and the channels that lead from the first to the second, and nowhere else."""

    origin: Origin  # its node is the first layer
    second: ir.Node
    width: int

    @property
    def first(self) -> ir.Node:
        return self.origin.node


def _find_links(model: ir.Model) -> list[_Link]:
    links = (_link_to(node) for node in model.graph if is_linear(node))
    return [link for link in links if link is not None]


def _link_to(second: ir.Node) -> _Link | None:
    value = second.inputs[0]
    if value is None or only_consumer(value) is not second:
        return None
    width = input_width(second)
    origin = find_origin(value, width=width, trailing=trailing_axes(second))
    return None if origin is None or not is_linear(origin.node) else _Link(origin, second, width)


def _equalize(first: Figures, second: Figures, live: npt.NDArray[np.bool_]) -> Figures:
    """Equalise two layers' magnitudes in place and return the scales of this round."""
    scales: Figures = np.ones(live.size)
    scales[live] = np.sqrt(output_maxima(first)[live] / input_maxima(second)[live])
    first /= scales.reshape(len(first), -1, 1)
    second *= scales.reshape(len(second), 1, -1)
    return scales


def _apply(model: ir.Model, scales: Mapping[str, Factors]) -> None:
    claim_names(model.graph)
    for link in _find_links(model):
        vector = scales.get(_name(link.first))
        if vector is not None:
            wide = vector.astype(np.float64)
            scale_origin(model.graph, link.origin, 1.0 / wide)
            scale_inputs(model.graph, link.second, wide)


def _name(layer: ir.Node) -> str:
    assert layer.name
    return layer.name
