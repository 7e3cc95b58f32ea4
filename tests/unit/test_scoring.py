"""What a spec says that units are ordered by, and what of it names the orders."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from autoq.core.choices import Criterion
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.graph.torch_gradients import OutputLoss
from autoq.scoring import Scoring
from autoq.spec.loading import spec_from_json
from autoq.spec.schema import SearchSpec
from autoq.testing.models import GraphBuilder


@pytest.fixture(scope="module")
def model() -> FloatModel:
    net = GraphBuilder(seed=0)
    x = net.conv(net.input("image", "batch", 3, 8, 8), "stem", (3, 8))
    logits = net.classify(x, 8, 4)
    shape = ("batch", 4)
    built = net.build(scaled=(net.node("Relu", logits), shape), logits=(logits, shape))
    return build_float_model(ir.from_proto(built))


def spec_with(criterion: str, *, output: str = "logits", metric: object = "top1") -> SearchSpec:
    source = {"npz": "d.npz", "inputs": {"image": "x"}, "labels": "y"}
    widths = {"latency": [0.5], "criterion": criterion}
    content: dict[str, Any] = {
        "version": 1,
        "name": "any",
        "model": {"torch": "m.py:f", "example": {"image": {"shape": ["batch", 3, 8, 8]}}, "output": output},
        "data": {"calibration": source, "search": source},
        "metric": metric,
        "space": {"version": 1, "layers": {"*": {"format": "int8"}}, "rewrites": {"widths": widths}},
    }
    return spec_from_json(content)


def test_the_loss_is_of_the_output_that_is_judged_and_as_divergence_is_measured(model: FloatModel) -> None:
    scores = Scoring.of(spec_with("fisher"), model)
    assert scores.loss == OutputLoss(1, 2, is_class_scores=True)
    assert scores.loss_name == "cross entropy of logits"
    other = Scoring.of(spec_with("fisher", output="scaled", metric="fidelity"), model)
    assert other.loss == OutputLoss(0, 2, is_class_scores=False)
    assert other.loss_name == "projection of scaled"


def test_everything_that_can_change_an_order_is_part_of_its_name(model: FloatModel) -> None:
    found = [
        Scoring.of(spec_with("fisher"), model),
        Scoring.of(spec_with("fisher", output="scaled"), model),
        Scoring.of(spec_with("fisher", metric="fidelity"), model),
        Scoring.of(spec_with("magnitude"), model),
        Scoring.of(spec_with("activation"), model),
        Scoring.of(spec_with("obs"), model),
    ]
    assert len({str(one.settings) for one in found}) == 6
    assert found[-1].settings == {}  # snapshots from before there was a choice are found again


def test_only_fisher_scores_need_a_module(model: FloatModel) -> None:
    assert Scoring.of(spec_with("magnitude"), model) == Scoring(Criterion.MAGNITUDE)
