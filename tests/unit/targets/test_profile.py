from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Choice, Precision
from autoq.core.errors import ModelError
from autoq.graph.float_model import build_float_model
from autoq.targets.profile import latency_shares, seconds_by_block
from autoq.testing.bench import INT8, build_bench
from autoq.testing.models import GraphBuilder, attention, mlp, residual_cnn, token_classifier


@pytest.mark.parametrize("build", [residual_cnn, mlp, attention, token_classifier])
def test_shares_belong_to_layers_and_do_not_exceed_the_whole(
    build: Callable[[], onnx.ModelProto],
) -> None:
    model = build_float_model(ir.from_proto(build()))
    shares = latency_shares(model)
    assert set(shares) <= {layer.name for layer in model.summary.layers}
    assert all(share > 0.0 for share in shares.values())
    assert sum(shares.values()) <= 1.0 + 1e-9


@pytest.mark.parametrize("build", [residual_cnn, mlp, attention, token_classifier])
def test_layers_are_found_again_after_fusion(build: Callable[[], onnx.ModelProto]) -> None:
    model = build_float_model(ir.from_proto(build()))
    shares = latency_shares(model)
    assert set(shares) == {layer.name for layer in model.summary.layers}


@pytest.mark.parametrize("build", [residual_cnn, mlp])
def test_layers_are_found_by_values_named_after_scopes(build: Callable[[], onnx.ModelProto]) -> None:
    """As TorchScript's exporter names them: `/layer1/conv1/output_0`."""
    proto = build()
    outputs = {value.name for value in proto.graph.output}
    made = {name for node in proto.graph.node for name in node.output} - outputs
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"/{name}/output_0" if name in made else name for name in names]
    model = build_float_model(ir.from_proto(proto))
    assert set(latency_shares(model)) == {layer.name for layer in model.summary.layers}


def test_kernels_of_layers_and_of_weightless_ops_are_summed_by_block() -> None:
    model = build_float_model(ir.from_proto(residual_cnn()))
    add = next(op.name for op in model.summary.ops if op.op == "Add")
    conv = next(node for node in model.graph.graph if node.name == "stem")
    seconds = {"stem": 1.0, str(conv.outputs[0].name): 2.0, add: 4.0, "ReorderOutput": 8.0}
    assert seconds_by_block(seconds, model) == {"stem": 3.0, add: 4.0}


def test_what_stands_beside_the_kernel_of_a_split_layer_counts_with_it(tmp_path: Path) -> None:
    """Nobody else pays for it; of what layers share, the first pays."""
    bench = build_bench(attention(), tmp_path)
    choice = Choice.of("int8_outlier", weight_bits=INT8.weight_bits)
    model = bench.build(bench.uniform(choice, precision=Precision.FLOAT))
    assert model.content is not None
    before = {node.name for node in bench.model.graph.graph}
    added = [node.name for node in onnx.load_from_string(model.content).graph.node if node.name not in before]
    assert len(added) == 4 * 2 + 6 * 2  # four tensors are split, for six layers
    spent = seconds_by_block(dict.fromkeys(added, 1.0), bench.model)
    assert spent == {name: 2.0 if name.endswith((".k", ".v")) else 4.0 for name in bench.layer_names}


def test_a_model_that_takes_no_drawn_input_has_no_shares_and_one_that_does_not_load_is_refused() -> None:
    net = GraphBuilder()
    ids = net.input("ids", "batch", "length", dtype=onnx.TensorProto.INT64)
    table = net.weight("table", 1, 8, fan_in=8)  # drawn ids are ones
    picky = build_float_model(
        ir.from_proto(net.build(y=(net.node("Gather", table, ids), ("batch", "length", 8))))
    )
    assert latency_shares(picky) == {}
    broken = replace(picky, artifact=ModelArtifact.from_bytes(b"no model"))
    with pytest.raises(ModelError, match="refused the model"):
        latency_shares(broken)
