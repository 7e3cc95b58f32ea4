"""Rewrite an LSTM as its dynamic integer kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from autoq.assembly.kernels import put_kernel
from autoq.assembly.weights import add_grid
from autoq.core.choices import Choice
from autoq.graph.layers import weight_parts
from autoq.graph.values import add_initializer
from autoq.variants.variant import Variant

# Bias, lengths, first states and peepholes, which both kernels take in the same places.
_PASSED_ON = slice(3, 8)


def use_dynamic_lstm(model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
    """Write DynamicQuantizeLSTM, whose weights are transposed and whose W and R have scales of their own.

    Everything but the products of W and R stays float: states, gates, biases.
    """
    grids: list[ir.Value] = []
    parameters: list[ir.Value] = []
    for place, (index, part) in enumerate(weight_parts(node, variant.weights)):
        old = node.inputs[index]
        assert old is not None
        transposed = np.ascontiguousarray(part.swapaxes(1, 2))
        grids.append(add_grid(model, node, f"{old.name}_quantized", transposed, choice.stored_bits))
        scales = np.ascontiguousarray(variant.scales[..., place])
        zeros = np.zeros(scales.shape, np.int8)
        parameters.append(add_initializer(model.graph, f"{old.name}_scale", scales))
        parameters.append(add_initializer(model.graph, f"{old.name}_zero_point", zeros))
    passed_on = list(node.inputs[_PASSED_ON])
    passed_on += [None] * (_PASSED_ON.stop - _PASSED_ON.start - len(passed_on))
    attributes = {
        "hidden_size": variant.weights.shape[1] // 4,
        "direction": node.attributes.get_string("direction", "forward"),
    }
    inputs = [node.inputs[0], *grids, *passed_on, *parameters]
    put_kernel(model, node, "DynamicQuantizeLSTM", inputs, attributes)
