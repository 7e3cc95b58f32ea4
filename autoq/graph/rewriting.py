"""Derive a float model from another: narrower, or one that computes the same and quantises better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from autoq.core.choices import Rewrites
from autoq.core.errors import ModelError
from autoq.graph.equalize import EqualizeLayers, ReplayEqualization
from autoq.graph.float_model import FloatModel, describe_graph
from autoq.graph.layers import find_layers
from autoq.graph.replay_narrowing import Constants, ReplayNarrowing, Units
from autoq.graph.smooth import ReplaySmoothing, SmoothActivations, smoothing_sites

Vectors = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class RewriteVectors:
    """What rewrites kept, put in place and multiplied with: enough to repeat them without data."""

    kept: Units = field(default_factory=dict)  # by channel group
    constants: Constants = field(default_factory=dict)  # refitted, by their place in the narrowed model
    equalize: Vectors = field(default_factory=dict)  # by layer
    smooth: Vectors = field(default_factory=dict)  # by tensor


# Finds out which units to keep, and refits what stays, as far as the rewrites have widths.
Narrow = Callable[[FloatModel, Rewrites], RewriteVectors]


@dataclass(frozen=True)
class Means:
    """What rewriting has to look up of a model, beside its weights."""

    # Largest magnitude of every channel of the tensors that layers read: asked only for smoothing.
    channel_maxima: Callable[[FloatModel], Vectors]
    narrow: Narrow | None = None  # asked only where there are widths


def rewrite_model(model: FloatModel, rewrites: Rewrites, means: Means) -> tuple[FloatModel, RewriteVectors]:
    """Narrow, then equalise, then smooth, as far as the rewrites say.

    Args:
        model: Canonical float model; it is not changed.
        rewrites: What to do.
        means: Asked of the model as it is when its turn comes: smoothing comes after narrowing.

    Raises:
        ValueError: There are widths, and nothing to narrow with.
    """
    done = RewriteVectors()
    if rewrites.widths:
        if means.narrow is None:
            raise ValueError(f"nothing is given to narrow a model with: {rewrites}")
        done = means.narrow(model, rewrites)
        model = replay_rewrites(model, done)
    if rewrites.equalize:
        graph, equalizing = model.clone(), EqualizeLayers()
        equalizing(graph)
        model, done = describe_graph(graph), replace(done, equalize=equalizing.scales)
    if rewrites.smooth_alpha is not None:
        graph = model.clone()
        maxima = _worth_it(graph, means.channel_maxima(model))
        smoothing = SmoothActivations(maxima, alpha=rewrites.smooth_alpha)
        smoothing(graph)
        model, done = describe_graph(graph), replace(done, smooth=smoothing.scales)
    return model, done


def replay_rewrites(model: FloatModel, vectors: RewriteVectors) -> FloatModel:
    """Repeat rewrites on the float model they were made on: the same, byte for byte.

    Raises:
        ModelError: A vector does not fit the model.
    """
    try:
        if vectors.kept or vectors.constants:
            graph = model.clone()
            ReplayNarrowing(vectors.kept, vectors.constants)(graph)
            model = describe_graph(graph)
        if not vectors.equalize and not vectors.smooth:
            return model
        graph = model.clone()
        ReplayEqualization(vectors.equalize)(graph)
        ReplaySmoothing(vectors.smooth)(graph)
    except (ir.passes.InvariantError, ir.passes.PassError, ValueError) as error:
        raise ModelError(f"rewrites do not fit the model: {error}") from error
    return describe_graph(graph)


def _worth_it(graph: ir.Model, maxima: Vectors) -> Vectors:
    """Leave out what would cost a convolution a Mul before it: that takes its input off the int8 path."""
    products = {layer.name for layer in find_layers(graph) if layer.is_matmul}
    chosen = [site for site in smoothing_sites(graph) if site.folds or products & set(site.layers)]
    return {site.value_name: maxima[site.value_name] for site in chosen if site.value_name in maxima}
