"""Where the time of a float model goes, by the runtime's own profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoq.assembly.split_products import own_names, shared_names
from autoq.core.errors import ModelError, RuntimeRejectedModel
from autoq.core.layers import TensorSpec
from autoq.graph.blocks import BlockKind, find_blocks
from autoq.graph.float_model import FloatModel
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget


def latency_shares(model: FloatModel) -> dict[str, float]:
    """Share of kernel time that each layer takes, at batch 1 on one thread.

    What a layer absorbs counts with it; a layer that was fused away is missing, and so are all layers of
    a model that refuses drawn inputs. Dynamic axes get 1 on
    the batch axis and 64 elsewhere.

    Raises:
        ModelError: The runtime refuses the model.
    """
    rng = np.random.default_rng(0)
    feed = {spec.name: _example(spec, rng) for spec in model.summary.inputs}
    target = OnnxRuntimeTarget()
    try:
        seconds = target.profile(model.artifact, [feed])
    except RuntimeRejectedModel:
        _check_opens(target, model)
        return {}  # it does not take drawn inputs of these shapes: nobody knows the shares
    total = sum(seconds.values()) or 1.0
    by_layer = seconds_by_block(seconds, model)
    layers = {layer.name for layer in model.summary.layers}
    return {name: spent / total for name, spent in by_layer.items() if name in layers}


def _check_opens(target: OnnxRuntimeTarget, model: FloatModel) -> None:
    try:
        target.open(model.artifact).close()
    except RuntimeRejectedModel as error:
        raise ModelError(str(error)) from error


def seconds_by_block(seconds: Mapping[str, float], model: FloatModel) -> dict[str, float]:
    """Sum the times of kernels by the layer or weightless op that they came from.

    Args:
        seconds: By node, of the model itself or of what assembly made of it.
        model: The float model.
    """
    names = _kernel_names(model)
    spent: defaultdict[str, float] = defaultdict(float)
    for kernel, one in seconds.items():
        if kernel in names:
            spent[names[kernel]] += one
    return dict(spent)


def _kernel_names(model: FloatModel) -> dict[str, str]:
    """Block of every name that the runtime may give its kernel: the node's, or that of what it writes."""
    names: dict[str, str] = {}
    for block in find_blocks(model.graph):
        if block.kind is not BlockKind.MOVE:
            names.update(dict.fromkeys((block.name, *block.results), block.name))
        if block.kind is BlockKind.LAYER and block.sources:  # the first reader pays for what layers share
            for part in (*own_names(block.name), *shared_names(block.sources[0])):
                names.setdefault(part, block.name)
    for node in model.graph.graph:
        if node.name in names:
            names.setdefault(str(node.outputs[0].name), str(node.name))
    return names


def _example(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[Any]]:
    shape = [
        axis if isinstance(axis, int) else (1 if index == 0 else 64) for index, axis in enumerate(spec.shape)
    ]
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        return np.ones(shape, dtype)
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
