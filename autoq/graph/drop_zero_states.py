"""Rewrite: an LSTM or GRU that is given zeros to start from is given nothing, which means the same."""

from __future__ import annotations

import onnx_ir as ir

from autoq.core.layers import GATES
from autoq.graph.values import constant

# What exporters put between a zero and the state.
_COPIES = ("Expand", "Slice", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze")


class DropZeroStates(ir.passes.InPlacePass):
    """Torch expands a zero to the size of the batch, and so names the hidden size in a shape."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop every initial state that is zero; what computed it is left unused."""
        modified = False
        for node in model.graph:
            if node.domain != "" or node.op_type not in GATES:
                continue
            for index in range(5, min(7, len(node.inputs))):
                if _is_zero(node.inputs[index]):
                    node.replace_input_with(index, None)
                    modified = True
        return ir.passes.PassResult(model, modified)


def _is_zero(value: ir.Value | None) -> bool:
    array = constant(value)
    if array is not None:
        return not array.any()
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not fill.as_tensor().numpy().any()
    return node.op_type in _COPIES and _is_zero(node.inputs[0])
