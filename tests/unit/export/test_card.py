from __future__ import annotations

from dataclasses import replace

from autoq.core.choices import Candidate, Choice
from autoq.core.layers import Layer, ModelSummary
from autoq.core.measurements import Measurement
from autoq.export.card import write_card
from autoq.search.goals import Goals, Objective
from autoq.search.outcome import build_outcome
from autoq.search.records import SearchRecord, SearchState, TrialRecord, TrialState
from autoq.testing.synthetic import synthetic_baseline, synthetic_measurement

CANDIDATE = Candidate.of({"fc": Choice.of("int8")})
SUMMARY = ModelSummary("0", (), (), (Layer("fc", "Gemm", (4, 4), 0),), (), 64)


def card_of(measurement: Measurement) -> str:
    spec = {"metric": "top1", "search": {"strategy": "guided"}}
    record = SearchRecord("glyphs", spec, "0", SearchState.FINISHED, baseline=synthetic_baseline())
    trial = TrialRecord(0, "tpe", {}, CANDIDATE, TrialState.COMPLETE, measurement)
    outcome = build_outcome(record, Goals((Objective.ACCURACY, Objective.LATENCY)), [trial])
    return write_card(outcome, outcome.points[0], SUMMARY)


def test_an_estimate_is_not_passed_off_as_a_measured_accuracy() -> None:
    measured = synthetic_measurement(CANDIDATE)
    raced = replace(measured, accuracy=replace(measured.accuracy, is_estimate=True, n_examples=64))
    assert "top1, search split (an estimate: scoring stopped after 64 examples)" in card_of(raced)
    assert "top1, search split (100 examples)" in card_of(measured)
