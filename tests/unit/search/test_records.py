from __future__ import annotations

import json

import pytest

from autoq.core.choices import FLOAT, Candidate
from autoq.core.measurements import Accuracy
from autoq.search.records import FinalMeasurement, SearchRecord, SearchState, TestAccuracy
from autoq.testing.synthetic import synthetic_measurement

MEASUREMENT = synthetic_measurement(Candidate.of({"conv": FLOAT}))


@pytest.mark.parametrize(
    "test", [None, TestAccuracy(MEASUREMENT.accuracy, "yes"), TestAccuracy(Accuracy(0.5, 0.1, None, 3), "no")]
)
def test_a_final_measurement_survives_json(test: TestAccuracy | None) -> None:
    final = FinalMeasurement("d" * 32, MEASUREMENT.latency, test)
    assert FinalMeasurement.from_json(json.loads(json.dumps(final.to_json()))) == final


def test_changing_a_record_leaves_the_first_alone() -> None:
    record = SearchRecord("bench", {}, "0", SearchState.RUNNING)
    assert record.but(state=SearchState.FAILED, message="why").message == "why"
    assert record.state is SearchState.RUNNING
