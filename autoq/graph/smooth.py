"""Rewrite: take outlying channels out of the activations that layers read, into their weights.

SmoothQuant: Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models" (arXiv:2211.10438), equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from autoq.core.names import readable_name, unique_name
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
    scale_inputs,
    scale_origin,
    trailing_axes,
)
from autoq.graph.values import add_initializer, claim_names, fresh_name

# Keeps folded weights and the activations of unseen data within float32's comfort.
_LARGEST_SCALE = 1e3


@dataclass(frozen=True, slots=True)
class SmoothingSite:
    """A tensor that layers read; all of them take the inverse of its scales into their weights."""

    value_name: str
    layers: tuple[str, ...]
    n_channels: int
    folds: bool  # the division disappears into constants; else it costs a Mul


class SmoothActivations(ir.passes.InPlacePass):
    """Divide tensors by s and multiply the weights that read them by s.

    After the pass `scales` holds s by the name of the tensor, (channels,) each. A tensor whose readers
    are all layers, and whose producer can take the division, keeps its name and changes its values. Any
    other stays as it is and gets a divided copy, named `<value>_smoothed`, which its layers read.
    """

    def __init__(self, maxima: Mapping[str, Factors], *, alpha: float) -> None:
        self._maxima = maxima
        self._alpha = alpha
        self.scales: dict[str, Factors] = {}

    def requires(self, model: ir.Model) -> None:
        """Check alpha and the maxima.

        Raises:
            PreconditionError: Alpha lies outside [0, 1], or maxima do not fit the tensor they are for.
        """
        if not 0.0 <= self._alpha <= 1.0:
            raise ir.passes.PreconditionError(f"alpha is {self._alpha}, not between 0 and 1")
        for site in _find_sites(model):
            _check_maxima(site, self._maxima.get(site.value_name))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Decide on the scales, then apply them."""
        self.scales = smoothing_scales(model, self._maxima, alpha=self._alpha)
        _apply(model, self.scales)
        return ir.passes.PassResult(model, modified=bool(self.scales))


class ReplaySmoothing(ir.passes.InPlacePass):
    """Apply scales that `SmoothActivations` found on the same model: the result is the same byte for byte."""

    def __init__(self, scales: Mapping[str, Factors]) -> None:
        self._scales = scales

    def requires(self, model: ir.Model) -> None:
        """Check that every vector has its tensor.

        Raises:
            PreconditionError: No layers read such a tensor, or a vector does not fit; see `check_factors`.
        """
        check_factors(self._scales, {site.value_name: site.width for site in _find_sites(model)})

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the scales in graph order."""
        _apply(model, self._scales)
        return ir.passes.PassResult(model, modified=bool(self._scales))


def smoothing_sites(model: ir.Model) -> list[SmoothingSite]:
    """Return the tensors of a canonical model that can be smoothed, in graph order.

    Every layer reads one, unless layers of one tensor disagree about which axis is the channel's.
    """
    return [
        SmoothingSite(
            site.value_name,
            tuple(str(layer.name) for layer in site.layers),
            site.width,
            folds=site.origin is not None,
        )
        for site in _find_sites(model)
    ]


def smoothing_scales(model: ir.Model, maxima: Mapping[str, Factors], *, alpha: float) -> dict[str, Factors]:
    """Find s = a^alpha / w^(1 - alpha) for the tensors that `maxima` names, (channels,) each.

    a are the tensor's absolute maxima in `maxima`, w those of the weights over all layers that read it.
    The geometric mean of s is 1: a common factor changes no quantised value, only the float magnitude of
    what it is folded into. Channels that are dead in a or w keep s = 1. Tensors that no layer reads are
    passed over.
    """
    sites = _find_sites(model)
    largest = {str(layer.name): magnitudes(layer) for site in sites for layer in site.layers}
    found = {}
    # Backwards: folding a later tensor's scales changes the rows of weights, which an earlier one weighs.
    for site in reversed(sites):
        if site.value_name not in maxima:
            continue
        weights = np.max([input_maxima(largest[str(layer.name)]) for layer in site.layers], axis=0)
        scales = _scales(maxima[site.value_name].astype(np.float64), weights, alpha)
        found[site.value_name] = scales.astype(np.float32)
        if site.origin is not None and str(site.origin.node.name) in largest:
            rows = largest[str(site.origin.node.name)]
            rows /= scales.reshape(len(rows), -1, 1)
    return {name: found[name] for name in reversed(found)}


def _scales(activations: Figures, weights: Figures, alpha: float) -> Figures:
    live = live_channels(activations) & live_channels(weights)
    exponents = alpha * np.log(activations[live]) - (1.0 - alpha) * np.log(weights[live])
    scales: Figures = np.ones(live.size)
    if live.any():
        scales[live] = np.exp(exponents - exponents.mean())
    return scales.clip(1.0 / _LARGEST_SCALE, _LARGEST_SCALE)


@dataclass(frozen=True, slots=True)
class _Site:
    """A tensor, the layers that read it, and where a division of it can go."""

    value: ir.Value
    layers: tuple[ir.Node, ...]
    width: int
    trailing: int
    origin: Origin | None

    @property
    def value_name(self) -> str:
        return str(self.value.name)


def _find_sites(model: ir.Model) -> list[_Site]:
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if is_linear(node) and node.inputs[0] is not None:
            readers.setdefault(node.inputs[0], []).append(node)
    sites = (_site(value, tuple(layers)) for value, layers in readers.items())
    return [site for site in sites if site is not None]


def _site(value: ir.Value, layers: tuple[ir.Node, ...]) -> _Site | None:
    trailing = trailing_axes(layers[0])
    if any(trailing_axes(layer) != trailing for layer in layers):
        return None
    width = input_width(layers[0])
    only_layers = len(value.uses()) == len(layers) and not value.is_graph_output()
    origin = find_origin(value, width=width, trailing=trailing) if only_layers else None
    return _Site(value, layers, width, trailing, origin)


def _check_maxima(site: _Site, maxima: Factors | None) -> None:
    if maxima is None:
        return
    if maxima.shape != (site.width,):
        raise ir.passes.PreconditionError(
            f"{site.value_name!r} has {site.width} channels, its maxima have the shape {maxima.shape}"
        )
    if not (np.isfinite(maxima).all() and (maxima >= 0).all()):
        raise ir.passes.PreconditionError(f"maxima of {site.value_name!r} are negative or not finite")


def _apply(model: ir.Model, scales: Mapping[str, Factors]) -> None:
    claim_names(model.graph)
    for site in _find_sites(model):
        vector = scales.get(site.value_name)
        if vector is None:
            continue
        wide = vector.astype(np.float64)
        if site.origin is None:
            _insert_mul(model.graph, site, 1.0 / wide)
        else:
            scale_origin(model.graph, site.origin, 1.0 / wide)
        for layer in site.layers:
            scale_inputs(model.graph, layer, wide)


def _insert_mul(graph: ir.Graph, site: _Site, factors: Figures) -> None:
    """Let the layers of a site, and only these, read a scaled copy of its tensor."""
    shaped = factors.reshape(-1, *[1] * site.trailing).astype(np.float32)
    operand = add_initializer(graph, f"{site.value_name}_smoothing", shaped)
    taken = {str(node.name) for node in graph}
    name = unique_name(readable_name(f"{site.value_name}_smoothed"), taken)
    mul = ir.Node("", "Mul", [site.value, operand], name=name)
    smoothed = mul.outputs[0]
    smoothed.name = fresh_name(graph, f"{site.value_name}_smoothed")
    smoothed.shape, smoothed.type = site.value.shape, site.value.type
    graph.insert_before(site.layers[0], mul)
    for layer in site.layers:
        layer.replace_input_with(0, smoothed)
