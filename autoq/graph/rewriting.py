"""Derive a float model from another that computes the same and quantises better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.core.choices import Rewrites
from autoq.core.errors import ModelError
from autoq.graph.equalize import EqualizeLayers, ReplayEqualization
from autoq.graph.float_model import FloatModel, describe_graph
from autoq.graph.layers import find_layers
from autoq.graph.smooth import ReplaySmoothing, SmoothActivations, smoothing_sites

Vectors = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class RewriteVectors:
    """What rewrites multiplied with: enough to repeat them without data."""

    equalize: Vectors = field(default_factory=dict)  # by layer
    smooth: Vectors = field(default_factory=dict)  # by tensor


def rewrite_model(
    model: FloatModel, rewrites: Rewrites, channel_maxima: Callable[[FloatModel], Vectors]
) -> tuple[FloatModel, RewriteVectors]:
    """Equalise, then smooth, as far as the rewrites say.

    Args:
        model: Canonical float model; it is not changed.
        rewrites: What to do.
        channel_maxima: Largest magnitude of every channel of the tensors that layers read, for the
            model it is given: asked only for smoothing, and then of the equalised model.
    """
    equalize: Vectors = {}
    smooth: Vectors = {}
    if rewrites.equalize:
        graph, equalizing = model.clone(), EqualizeLayers()
        equalizing(graph)
        model, equalize = describe_graph(graph), equalizing.scales
    if rewrites.smooth_alpha is not None:
        graph = model.clone()
        smoothing = SmoothActivations(_worth_it(graph, channel_maxima(model)), alpha=rewrites.smooth_alpha)
        smoothing(graph)
        model, smooth = describe_graph(graph), smoothing.scales
    return model, RewriteVectors(equalize, smooth)


def replay_rewrites(model: FloatModel, vectors: RewriteVectors) -> FloatModel:
    """Repeat rewrites on the float model they were made on: the same, byte for byte.

    Raises:
        ModelError: A vector does not fit the model.
    """
    if not vectors.equalize and not vectors.smooth:
        return model
    graph = model.clone()
    try:
        ReplayEqualization(vectors.equalize)(graph)
        ReplaySmoothing(vectors.smooth)(graph)
    except ir.passes.PassError as error:
        raise ModelError(f"rewrites do not fit the model: {error}") from error
    return describe_graph(graph)


def _worth_it(graph: ir.Model, maxima: Vectors) -> Vectors:
    """Leave out what would cost a convolution a Mul before it: that takes its input off the int8 path."""
    products = {layer.name for layer in find_layers(graph) if layer.is_matmul}
    chosen = [site for site in smoothing_sites(graph) if site.folds or products & set(site.layers)]
    return {site.value_name: maxima[site.value_name] for site in chosen if site.value_name in maxima}
