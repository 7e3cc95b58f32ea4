"""Group nodes as an integer kernel will take them: a layer or op with what it absorbs.

A convolution absorbs the ReLU after it, a MatMul the Add of its bias. Quantisation happens at the
borders of blocks, so this decides which tensors can be quantised at all; calibration and assembly
both read it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

from autoq.core.layers import GATES
from autoq.graph.layers import find_ops, is_layer
from autoq.graph.values import constant, only_consumer


class BlockKind(StrEnum):
    """What a block's node is."""

    LAYER = "layer"  # has a weight and a choice
    OP = "op"  # weightless arithmetic with a graph-wide choice
    MOVE = "move"  # moves or selects values: the output has the input's scale


@dataclass(frozen=True, slots=True)
class Block:
    """A node with what it absorbs. Values and nodes are given by name."""

    name: str  # of the node, which for a layer is the layer's name
    kind: BlockKind
    op: str
    sources: tuple[str, ...]  # float activations it could read as integers; none for a lookup or recurrence
    results: tuple[str, ...]  # what it writes, after the absorbed tail
    tail: str | None = None  # name of the absorbed node
    upper_bound: float | None = None  # of an absorbed Clip: the quantised range must stay below


_MOVES = {"Resize", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"}
# Layers whose kernels take and give floats (or indices) in every format: no tensor is quantised for them.
_FLOAT_ENDED = ("Gather", *GATES)


def find_blocks(model: ir.Model) -> list[Block]:
    """Return all blocks in graph order. Nodes in no block stay float, whatever surrounds them."""
    ops = {op.name for op in find_ops(model)}
    blocks = []
    for node in model.graph:
        if is_layer(node):
            blocks.append(_layer_block(node))
        elif is_move(node):
            blocks.append(_move_block(node))
        elif node.name in ops:
            blocks.append(_op_block(node))
    return blocks


def quantizable_values(blocks: Sequence[Block]) -> list[str]:
    """Names of the tensors whose range some candidate may need, each once, in graph order."""
    names: dict[str, None] = {}
    for block in blocks:
        # A move's result has its source's scale; what reads no integers writes none either.
        if block.kind is not BlockKind.MOVE and block.sources:
            names.update(dict.fromkeys((*block.sources, *block.results)))
    return list(names)


def is_move(node: ir.Node) -> bool:
    """Whether a node only moves or selects float values, so that integers pass through it."""
    if node.domain != "" or node.op_type not in _MOVES:
        return False
    if node.outputs[0].dtype != ir.DataType.FLOAT or constant(node.inputs[0]) is not None:
        return False
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1  # its second output are indices
    return True


def _layer_block(node: ir.Node) -> Block:
    if node.op_type in _FLOAT_ENDED:
        results = tuple(_name(value) for value in node.outputs if value.name)
        return Block(str(node.name), BlockKind.LAYER, node.op_type, (), results)
    source = _name(node.inputs[0])
    if node.op_type == "MatMul":
        add = bias_add(node)
        result = node.outputs[0] if add is None else add.outputs[0]
        return _block(node, BlockKind.LAYER, (source,), result, add)
    tail = _clamp_after(node)
    result = node.outputs[0] if tail is None else tail.outputs[0]
    return _block(node, BlockKind.LAYER, (source,), result, tail)


def _op_block(node: ir.Node) -> Block:
    tail = _clamp_after(node)
    result = node.outputs[0] if tail is None else tail.outputs[0]
    sources = tuple(_name(value) for value in node.inputs if value is not None)
    return _block(node, BlockKind.OP, sources, result, tail)


def _move_block(node: ir.Node) -> Block:
    results = tuple(_name(value) for value in node.outputs)
    return Block(str(node.name), BlockKind.MOVE, node.op_type, (_name(node.inputs[0]),), results)


def _block(
    node: ir.Node, kind: BlockKind, sources: tuple[str, ...], result: ir.Value, tail: ir.Node | None
) -> Block:
    bound = clip_bound(tail) if tail is not None and tail.op_type == "Clip" else None
    tail_name = None if tail is None else str(tail.name)
    return Block(str(node.name), kind, node.op_type, sources, (_name(result),), tail_name, bound)


def bias_add(matmul: ir.Node) -> ir.Node | None:
    """The Add of a constant row vector right after a MatMul, or None."""
    add = only_consumer(matmul.outputs[0])
    if add is None or add.op_type != "Add" or add.domain != "":
        return None
    bias = next((constant(value) for value in add.inputs if value is not matmul.outputs[0]), None)
    weight = constant(matmul.inputs[1])
    if bias is None or weight is None or bias.shape != (weight.shape[1],):
        return None
    return add


def _clamp_after(node: ir.Node) -> ir.Node | None:
    """The ReLU, or Clip from zero, that alone reads a node's output; runtimes fuse both."""
    tail = only_consumer(node.outputs[0])
    if tail is None or tail.domain != "":
        return None
    if tail.op_type == "Relu":
        return tail
    return tail if tail.op_type == "Clip" and clip_bound(tail) is not None else None


def clip_bound(clip: ir.Node) -> float | None:
    """Upper bound of a Clip whose lower bound is zero, or None."""
    bounds = [constant(value) for value in clip.inputs[1:3]]
    if len(bounds) < 2 or bounds[0] is None or bounds[1] is None or float(bounds[0]) != 0.0:
        return None
    return float(bounds[1])


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name
    return value.name
