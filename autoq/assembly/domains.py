"""Decide which blocks run on integers, and so which tensors carry Q/DQ pairs. Nothing is edited here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoq.core.choices import FLOAT, Calibration, Candidate, Precision
from autoq.graph.blocks import Block, BlockKind

# Ops that a user who chooses int8 wants there whatever is around them; the other families only
# join a neighbour that already computes in int8.
_FORCED = {"Softmax", "MatMul"}


@dataclass(frozen=True)
class Domains:
    """Where integers flow for one candidate. Values are given by name."""

    integer_blocks: frozenset[str]  # run on dequantised inputs and quantised outputs
    produced: frozenset[str]  # values that only exist in int8: every reader takes the dequantised one
    quantized: frozenset[str]  # values with a Q/DQ pair
    roots: Mapping[str, str]  # quantised value -> the value whose scale it shares, often itself
    styles: Mapping[str, Style]  # root -> how its range is fixed


@dataclass(frozen=True, slots=True)
class Style:
    """How the range of one tensor is fixed, and the sign of its integer type."""

    calibration: Calibration
    signed: bool


def decide_domains(blocks: Sequence[Block], candidate: Candidate) -> Domains:
    """Propagate int8 through the blocks in graph order.

    A layer is int8 where its choice is static. A weightless op is int8 where that is chosen and a
    source is int8 already. A move follows its source.
    """
    produced = _produced(blocks, candidate)
    integer = _integer_blocks(blocks, candidate, produced)
    quantized = set(produced)
    for block in blocks:
        if (block.name in integer and block.kind is not BlockKind.MOVE) or _is_static_matmul(
            block, candidate
        ):
            quantized.update(block.sources)
    roots = _roots(blocks, integer, quantized)
    return Domains(
        frozenset(integer),
        frozenset(produced),
        frozenset(quantized),
        roots,
        _styles(blocks, candidate, roots),
    )


def _is_static(block: Block, candidate: Candidate) -> bool:
    chosen = candidate.by_layer.get(block.name, FLOAT)
    return block.kind is BlockKind.LAYER and bool(block.sources) and chosen.format.is_static


def _is_static_matmul(block: Block, candidate: Candidate) -> bool:
    """A static MatMul reads integers and writes floats: its kernel rescales and adds the bias."""
    return _is_static(block, candidate) and block.op == "MatMul"


def _produced(blocks: Sequence[Block], candidate: Candidate) -> set[str]:
    produced: set[str] = set()
    for block in blocks:
        if _runs_on_integers(block, candidate, produced):
            produced.update(block.results)
    # A Gemm without a tail can write floats from integers: nothing is gained by quantising what only
    # floats read. With a ReLU the runtime fuses a float Gemm first unless a Q follows.
    for block in reversed(blocks):
        if block.op == "Gemm" and block.tail is None and block.results[0] in produced:
            readers = _integer_readers(block.results[0], blocks, candidate, produced)
            if not readers:
                produced -= _moved_from(block.results[0], blocks)
    return produced


def _runs_on_integers(block: Block, candidate: Candidate, produced: set[str]) -> bool:
    if block.kind is BlockKind.LAYER:
        return _is_static(block, candidate) and block.op != "MatMul"
    if block.kind is BlockKind.MOVE:
        chosen = candidate.by_op.get(block.name, Precision.INT8)  # most moves have no choice to make
        return block.sources[0] in produced and chosen is Precision.INT8
    if candidate.by_op.get(block.name, Precision.FLOAT) is not Precision.INT8:
        return False
    return block.op in _FORCED or any(source in produced for source in block.sources)


def _integer_blocks(blocks: Sequence[Block], candidate: Candidate, produced: set[str]) -> set[str]:
    """Blocks that compute on integers, a Gemm that writes floats included."""
    return {
        block.name
        for block in blocks
        if block.results[0] in produced or (block.op == "Gemm" and _is_static(block, candidate))
    }


def _integer_readers(
    value: str, blocks: Sequence[Block], candidate: Candidate, produced: set[str]
) -> list[str]:
    """Blocks that compute on a value in int8, seen through moves."""
    reached = _moved_from(value, blocks)
    return [
        block.name
        for block in blocks
        if block.kind is not BlockKind.MOVE
        and reached & set(block.sources)
        and (block.results[0] in produced or _is_static(block, candidate))
    ]


def _moved_from(value: str, blocks: Sequence[Block]) -> set[str]:
    """A value, and everything that moves make of it."""
    reached = {value}
    for block in blocks:
        if block.kind is BlockKind.MOVE and block.sources[0] in reached:
            reached.update(block.results)
    return reached


def _roots(blocks: Sequence[Block], integer: set[str], quantized: set[str]) -> dict[str, str]:
    roots = {value: value for value in quantized}
    for block in blocks:
        if block.kind is BlockKind.MOVE and block.name in integer:
            for result in block.results:
                roots[result] = roots[block.sources[0]]
    return roots


def _styles(blocks: Sequence[Block], candidate: Candidate, roots: Mapping[str, str]) -> dict[str, Style]:
    """The first static layer that reads a tensor fixes its range; else the layer that writes it.

    One tensor has one scale: a second one would cost a requantisation between kernels.
    """
    readers: dict[str, Style] = {}
    writers: dict[str, Style] = {}
    for block in blocks:
        if not _is_static(block, candidate):
            continue
        choice = candidate.by_layer[block.name]
        style = Style(choice.calibration, choice.format.value.endswith("s8"))
        for source in block.sources:
            readers.setdefault(roots.get(source, source), style)
        for result in block.results:
            writers.setdefault(roots.get(result, result), style)
    default = next(iter(readers.values()), Style(Calibration.MINMAX, signed=False))
    return {root: readers.get(root, writers.get(root, default)) for root in set(roots.values())}
