from __future__ import annotations

import numpy as np
import pytest

from autoq.assembly.local_errors import local_error
from autoq.assembly.plan import RangeTable
from autoq.calibration.statistics import Extent, Statistics
from autoq.calibration.summaries import summarize
from autoq.core.choices import Choice
from autoq.core.layers import Layer
from autoq.variants.variant import Variant

LAYER = Layer("fc", "MatMul", (4, 3), channel_axis=1)
WEIGHT = np.ones((4, 3), np.float32)
NOTHING = np.zeros(0, np.float32)


def activation_error(fmt: str, padded: dict[str, Extent]) -> float:
    summaries = {"x": summarize(np.linspace(-1.0, 1.0, 1001))}
    choice = Choice.of(fmt, calibration="minmax") if fmt == "int8" else Choice.of(fmt)
    ranges = RangeTable(Statistics(summaries, 1, 0.0, padded=padded))
    return local_error(choice, Variant(WEIGHT, NOTHING, NOTHING, 0), WEIGHT, LAYER, "x", ranges).activation


def test_a_range_found_at_run_time_spans_padding_too() -> None:
    wide = {"x": Extent(-10.0, 10.0, 4000)}
    step = 2.0 / 255
    assert activation_error("int8_dynamic", {}) == pytest.approx(step**2 / 12 * WEIGHT.size, rel=0.05)
    assert activation_error("int8_dynamic", wide) == pytest.approx(
        100 * activation_error("int8_dynamic", {}), rel=0.05
    )
    assert activation_error("int8", wide) == activation_error("int8", {})
