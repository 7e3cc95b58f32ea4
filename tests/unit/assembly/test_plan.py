from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.assembly.plan import RangeTable, build_plan, restore_plan
from autoq.calibration.statistics import Statistics
from autoq.calibration.summaries import summarize
from autoq.core.choices import Candidate, Choice
from autoq.core.errors import TrialError
from autoq.graph.blocks import Block, BlockKind

INT8 = Choice.of("int8")


def statistics(**arrays: list[float]) -> Statistics:
    return Statistics({name: summarize(np.array(values)) for name, values in arrays.items()}, 1, 0.0)


def conv(upper_bound: float | None = None) -> list[Block]:
    return [Block("a", BlockKind.LAYER, "Conv", ("x",), ("y",), "clip", upper_bound)]


def test_parameters_follow_from_the_range() -> None:
    table = RangeTable(statistics(x=[-1.0, 4.1], y=[0.0, 25.5]))
    plan = build_plan(conv(), Candidate.of({"a": INT8}), table)
    assert plan.params["x"].scale == pytest.approx(5.1 / 255)
    assert plan.params["x"].zero_point == 50
    assert (plan.params["y"].zero_point, plan.params["y"].signed) == (0, False)


def test_signed_activations_have_their_zero_point_at_the_lower_end_after_a_relu() -> None:
    table = RangeTable(statistics(x=[-1.0, 1.0], y=[0.0, 25.5]))
    plan = build_plan(conv(), Candidate.of({"a": Choice.of("int8_s8")}), table)
    assert (plan.params["y"].zero_point, plan.params["y"].signed) == (-128, True)


@settings(deadline=None)
@given(st.floats(2.0**-6, 128.0, width=32), st.floats(0.0, 1.0))
def test_the_range_after_an_absorbed_clip_lies_inside_it(bound: float, share: float) -> None:
    """To the last bit: ONNX Runtime keeps the Clip, and fuses nothing, if the range passes its bound."""
    high = float(np.float32(bound) * np.float32(share))
    table = RangeTable(statistics(x=[0.0, 1.0], y=[0.0, high]))
    params = build_plan(conv(bound), Candidate.of({"a": INT8}), table).params["y"]
    top = np.float32(params.scale) * np.float32(params.high - params.zero_point)
    assert params.scale > 0.0
    assert top <= np.float32(bound)
    assert top >= np.float32(high) * np.float32(1 - 1e-5)


def test_a_tensor_of_zeros_after_a_clip_is_planned_at_once() -> None:
    """Its scale is 1, which is 16 million floats away from one that fits."""
    table = RangeTable(statistics(x=[0.0, 1.0], y=[0.0, 0.0]))
    params = build_plan(conv(6.0), Candidate.of({"a": INT8}), table).params["y"]
    assert params.scale * 255 == pytest.approx(6.0)


def test_a_tensor_that_calibration_has_not_seen_is_named() -> None:
    table = RangeTable(statistics(x=[0.0, 1.0]))
    with pytest.raises(TrialError, match="no statistics for tensor 'y'"):
        build_plan(conv(), Candidate.of({"a": INT8}), table)


def test_a_restored_plan_is_the_plan() -> None:
    table = RangeTable(statistics(x=[-1.0, 4.0], y=[0.0, 2.0]))
    candidate = Candidate.of({"a": INT8})
    plan = build_plan(conv(6.0), candidate, table)
    assert restore_plan(conv(6.0), candidate, plan.params, plan.outliers) == plan
