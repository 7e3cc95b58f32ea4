"""The fixed sequence of rewrites that every model goes through before anything looks at it.

The result is the baseline: whatever a candidate gains, it gains over this graph.
"""

from __future__ import annotations

import sys
from functools import partial

import onnx_ir as ir
import onnx_ir.passes.common as common

from autoq.graph.drop_identities import DropIdentities
from autoq.graph.fold_batchnorm import FoldBatchNorm
from autoq.graph.fold_matmul_bias import FoldMatMulBias
from autoq.graph.keep_norms_apart import KeepNormsApart
from autoq.graph.naming import NameNodes
from autoq.graph.quiet import quiet
from autoq.graph.split_weights import SplitWeights
from autoq.graph.use_global_pool import UseGlobalPool
from autoq.graph.values import constant

# Int4 initializers, and a Cast that reads them, came with opset 21.
WANTED_OPSET = 21
_IR_VERSION = 10


def canonicalize(model: ir.Model) -> ir.Model:
    """Rewrite a model in place into the form the rest of autoq expects, and return it.

    Functions are inlined, constants lifted and folded, batch norms folded, biases joined to their
    layers, nodes named, metadata stripped. The function computed stays the same up to rounding.
    """
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    _forget_unknown_axes(model.graph)
    with quiet():
        _raise_opset(model)
        common.ShapeInferencePass()(model)
        _fold_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DropIdentities()(model)
    FoldBatchNorm()(model)
    FoldMatMulBias()(model)
    UseGlobalPool()(model)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    NameNodes()(model)
    KeepNormsApart()(model)  # after naming: the op keeps the name of an Add
    common.ClearMetadataAndDocStringPass()(model)
    _clear_values(model.graph)
    model.producer_name, model.producer_version = "autoq", None
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return model


def _forget_unknown_axes(graph: ir.Graph) -> None:
    """Leave axes without a length or a name that say -1 or "?", as some exporters write for any length."""
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None and any(map(_is_unknown, value.shape)):
            value.shape = ir.Shape([None if _is_unknown(size) else size for size in value.shape])


def _is_unknown(size: int | ir.SymbolicDim) -> bool:
    return size < 0 if isinstance(size, int) else size.value in ("?", "-1")


# onnxscript is imported where it works: most processes read models that are canonical already.
def _fold_constants(model: ir.Model) -> None:
    """Fold what is small, and what stands between a stored weight and its layer whatever its size."""
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    unpack = partial(
        optimizer.fold_constants, model, should_fold=_unpacks_weight, output_size_limit=sys.maxsize
    )
    unpack()
    while SplitWeights()(model).modified:
        unpack()


# What exporters put between a stored weight and its layer; an LSTM's gates are gathered from four.
_UNPACKING = ("Cast", "Concat", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def _unpacks_weight(node: ir.Node) -> bool:
    stored = all(value is not None and constant(value) is not None for value in node.inputs)
    return stored and node.op_type in _UNPACKING


def _clear_values(graph: ir.Graph) -> None:
    """Strip what the pass above leaves on inputs, weights and results."""
    computed = [output for node in graph for output in node.outputs]
    for value in (*graph.inputs, *graph.initializers.values(), *computed):
        value.metadata_props.clear()
        value.doc_string = None


def _raise_opset(model: ir.Model) -> None:
    """Bring the default opset to the wanted one; where a node has no conversion it stays."""
    version = model.opset_imports.get("", WANTED_OPSET)
    if version >= WANTED_OPSET:
        return
    from onnxscript import version_converter

    version_converter.convert_version(model, WANTED_OPSET, fallback=True)
