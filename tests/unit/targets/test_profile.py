from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest

from autoq.graph.float_model import build_float_model
from autoq.targets.profile import latency_shares
from autoq.testing.models import attention, mlp, residual_cnn, token_classifier


@pytest.mark.parametrize("build", [residual_cnn, mlp, attention, token_classifier])
def test_shares_belong_to_layers_and_do_not_exceed_the_whole(
    build: Callable[[], onnx.ModelProto],
) -> None:
    model = build_float_model(ir.from_proto(build()))
    shares = latency_shares(model)
    assert set(shares) <= {layer.name for layer in model.summary.layers}
    assert all(share > 0.0 for share in shares.values())
    assert sum(shares.values()) <= 1.0 + 1e-9


def test_layers_are_found_again_after_fusion() -> None:
    model = build_float_model(ir.from_proto(residual_cnn()))
    shares = latency_shares(model)
    assert set(shares) == {layer.name for layer in model.summary.layers}
