"""Give the convolutions of a narrowed model the mean and variance of outputs that they had before.

Batch normalisation would be re-estimated after pruning; most exports have it folded into convolutions,
so that a scale and a shift of each output channel takes its place. Convolutions are corrected in order of
depth, each on the outputs of those corrected before: all at once, each would make up again for what the
ones before it already did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir

from autoq.assembly.biases import correct_bias
from autoq.assembly.parts import by_depth, cut_after
from autoq.calibration.channel_outputs import ChannelFigures, Figures, collect_channel_figures
from autoq.core.data import Array, Split
from autoq.graph.float_model import FloatModel, describe_graph
from autoq.graph.layers import bias_input, channel_axis, is_layer, layer_weight
from autoq.graph.values import claim_names, constant, set_initializer

MAX_EXAMPLES = 256
_LIMITS = (0.5, 2.0)  # of a scale: a channel that changed more is another one
_QUIET = 1e-6  # of the largest variance: what lies below is not scaled up


class OutputCorrector:
    """Corrects narrowed models of one float model over the first examples of a split."""

    def __init__(self, model: FloatModel, split: Split) -> None:
        """Remember both; the float model is run when the first narrowed model comes."""
        self._model = model
        self._split = split.take(MAX_EXAMPLES)

    def correct(self, narrowed: FloatModel, kept: Mapping[str, Sequence[int]]) -> FloatModel:
        """Return the narrowed model with outputs that vary as those of the float model do.

        Convolutions that write what no convolution of the float model writes are left alone.

        Args:
            narrowed: A narrowed model, its layers named as in the float model.
            kept: Output channels that stayed, by layer; layers that are missing kept all.

        Raises:
            ModelError: The runtime refuses a model.
        """
        graph = narrowed.clone()
        claim_names(graph.graph)
        for nodes in by_depth(graph, _is_conv):
            outputs = {str(node.name): str(node.outputs[0].name) for node in nodes}
            names = list(outputs.values())
            found = collect_channel_figures(cut_after(graph, names), names, self._split)
            for node in nodes:
                wanted = self._wanted(str(node.name), kept)
                if wanted is not None:
                    _match(graph.graph, node, found[outputs[str(node.name)]], wanted)
        return describe_graph(graph)

    @cached_property
    def _float_figures(self) -> dict[str, ChannelFigures]:
        outputs = {
            str(node.name): str(node.outputs[0].name) for node in self._model.graph.graph if _is_conv(node)
        }
        found = collect_channel_figures(self._model, list(outputs.values()), self._split)
        return {layer: found[value] for layer, value in outputs.items()}

    def _wanted(self, layer: str, kept: Mapping[str, Sequence[int]]) -> ChannelFigures | None:
        figures = self._float_figures.get(layer)
        if figures is None or layer not in kept:
            return figures
        return figures.of(np.array(kept[layer], np.int64))


def _is_conv(node: ir.Node) -> bool:
    return is_layer(node) and node.op_type in ("Conv", "ConvTranspose")


def _match(graph: ir.Graph, node: ir.Node, found: ChannelFigures, wanted: ChannelFigures) -> None:
    quiet = _QUIET * float(wanted.variance.max(initial=0.0)) + float(np.finfo(np.float64).tiny)
    scales = np.clip(np.sqrt((wanted.variance + quiet) / (found.variance + quiet)), *_LIMITS)
    weight = _scaled(node, scales)
    bias = constant(node.inputs[bias_input(node)]) if len(node.inputs) > bias_input(node) else None
    old = np.zeros(len(scales)) if bias is None else bias.astype(np.float64)
    shift = (scales - 1.0) * old + wanted.mean - scales * found.mean
    correct_bias(graph, node, shift.astype(np.float32))
    value = node.inputs[1]
    assert value is not None
    set_initializer(graph, node, 1, str(value.name), weight)


def _scaled(node: ir.Node, scales: Figures) -> Array:
    """The weight with every output channel scaled; those of a transposed convolution run by groups."""
    weight, groups = layer_weight(node).astype(np.float64), node.attributes.get_int("group", 1)
    if channel_axis(node) == 0:
        return (weight * scales.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    shaped = scales.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (by_group * shaped).reshape(weight.shape).astype(np.float32)
