"""Rewrite an embedding as a lookup in blocks of integers."""

from __future__ import annotations

import onnx_ir as ir

from autoq.assembly.kernels import put_kernel
from autoq.assembly.weights import pack_unsigned
from autoq.core.choices import Choice
from autoq.core.errors import TrialError
from autoq.graph.values import add_initializer, constant
from autoq.variants.variant import Variant


def use_blocked_lookup(model: ir.Model, node: ir.Node, choice: Choice, variant: Variant) -> None:
    """Write GatherBlockQuantized: only the rows that are looked up are unpacked.

    The last block of a row may be short, and its padding is not stored. Another reader of the float
    table, as a tied output projection is, keeps it.

    Raises:
        TrialError: 4-bit rows of an odd number of columns, which would share bytes.
    """
    graph, table = model.graph, node.inputs[0]
    floats = constant(table)
    assert table is not None
    assert floats is not None
    n_rows, n_columns = floats.shape
    bits = choice.format.container_bits
    if n_columns * bits % 8:
        raise TrialError(
            f"layer {node.name!r} has rows of {n_columns} columns: {bits} bits do not fill bytes"
        )
    block_size = variant.weights.shape[1] // variant.scales.shape[1]
    packed = pack_unsigned(variant.weights[:, :n_columns], bits).reshape(n_rows, -1)
    rows = add_initializer(graph, f"{table.name}_packed", packed)
    scales = add_initializer(graph, f"{table.name}_scales", variant.scales)
    attributes = {"bits": bits, "block_size": block_size, "gather_axis": 0, "quantize_axis": 1}
    put_kernel(model, node, "GatherBlockQuantized", [rows, node.inputs[1], scales], attributes)
