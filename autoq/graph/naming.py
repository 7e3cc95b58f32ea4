"""Give every node a stable, readable name; a layer's is that of its weight."""

from __future__ import annotations

import json
import re
from ast import literal_eval

import onnx_ir as ir

from autoq.core.layers import GATES
from autoq.core.names import readable_name, unique_name
from autoq.graph.layers import weight_input
from autoq.graph.values import rank_of

# What exporters call a weight they made up: `val_97`, `onnx::MatMul_120`, `const_fold_opt__33`, `12`.
_ANONYMOUS = re.compile(
    r"^(val_\d+|onnx::.*|const_fold_opt.*|_?tensor\d*|initializer(_\d+)?|node_.*|\d+|.*_cast)$"
)
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *GATES)
_SCOPES = "pkg.torch.onnx.name_scopes"


class NameNodes(ir.passes.InPlacePass):
    """Name nodes after their weight, else their torch module scope, else their own name, else their op."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename all nodes; names are unique within the model."""
        taken: set[str] = set()
        for node in model.graph:
            wanted = _weight_name(node) or _scope_name(node) or _own_name(node) or node.op_type.lower()
            node.name = unique_name(wanted, taken)
            taken.add(node.name)
        return ir.passes.PassResult(model, modified=True)


def _weight_name(node: ir.Node) -> str:
    """Name of the weight, without `.weight`; empty if the node has none or its name is made up."""
    weight = _weight(node)
    if node.op_type not in _WEIGHTED or weight is None or _ANONYMOUS.match(str(weight.name)):
        return ""
    name = readable_name(str(weight.name))
    return re.sub(r"[._](weight|kernel|w|W|weight_ih_l0)$", "", name) or name


def _weight(node: ir.Node) -> ir.Value | None:
    """The initializer in the place of a node's weight; axes and shapes are none, nor is a list of values."""
    index = weight_input(node)
    value = node.inputs[index] if len(node.inputs) > 1 else None
    if value is None or not value.is_initializer() or value.dtype is not ir.DataType.FLOAT:
        return None
    return value if node.op_type != "Gather" or rank_of(value) == 2 else None


def _scope_name(node: ir.Node) -> str:
    """The innermost torch module around the node.

    The exporter's list ends with the node's own name, which counts on from run to run.
    """
    text = node.metadata_props.get(_SCOPES, "")
    if not text:
        return ""
    scopes = _parse_list(text)[:-1]
    inner = next((scope for scope in reversed(scopes) if scope), "")
    plain = readable_name(inner)
    return f"{plain}.{node.op_type.lower()}" if plain and _weight(node) is None else plain


def _parse_list(text: str) -> list[str]:
    try:
        parsed = json.loads(text) if text.startswith('["') else literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(item) for item in parsed] if isinstance(parsed, list) else []


def _own_name(node: ir.Node) -> str:
    """The node's name without the op type that TorchScript exports append: `/fc/MatMul` is `fc`."""
    name = readable_name(node.name or "")
    if _weight(node) is not None and name.endswith(f".{node.op_type}"):
        name = name[: -len(node.op_type) - 1]
    return name
