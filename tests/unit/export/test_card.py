from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoq.core.choices import Candidate, Choice, Rewrites
from autoq.core.layers import Layer, ModelSummary
from autoq.core.measurements import Measurement
from autoq.export.card import write_card
from autoq.search.goals import Goals, Objective
from autoq.search.outcome import build_outcome
from autoq.search.records import SearchRecord, SearchState, TrialRecord, TrialState
from autoq.testing.synthetic import synthetic_baseline, synthetic_measurement

CANDIDATE = Candidate.of({"fc": Choice.of("int8")})
SUMMARY = ModelSummary("0", (), (), (Layer("fc", "Gemm", (4, 4), 0),), (), 64)


def card_of(measurement: Measurement, candidate: Candidate = CANDIDATE, bundle: Path | None = None) -> str:
    spec = {"metric": "top1", "search": {"strategy": "guided"}}
    record = SearchRecord("glyphs", spec, "0", SearchState.FINISHED, baseline=synthetic_baseline())
    trial = TrialRecord(0, "tpe", {}, candidate, TrialState.COMPLETE, measurement)
    outcome = build_outcome(record, Goals((Objective.ACCURACY, Objective.LATENCY)), [trial])
    return write_card(outcome, outcome.points[0], SUMMARY, bundle)


def test_an_estimate_is_not_passed_off_as_a_measured_accuracy() -> None:
    measured = synthetic_measurement(CANDIDATE)
    raced = replace(measured, accuracy=replace(measured.accuracy, is_estimate=True, n_examples=64))
    assert "top1, search split (an estimate: scoring stopped after 64 examples)" in card_of(raced)
    assert "top1, search split (100 examples)" in card_of(measured)


def test_a_narrowed_model_says_how_many_units_of_each_group_are_left() -> None:
    narrowed = replace(CANDIDATE, rewrites=Rewrites(widths=(("stem", 24),)))
    assert "| stem | 24 |" in card_of(synthetic_measurement(narrowed), narrowed)
    assert "Units are ordered by: obs. Refit of what reads them: nested." in card_of(
        synthetic_measurement(narrowed), narrowed
    )
    assert "Narrowed" not in card_of(synthetic_measurement(CANDIDATE))


def test_a_bundle_beside_the_model_is_named_with_its_size(tmp_path: Path) -> None:
    bundle = tmp_path / "model.autoqz"
    bundle.write_bytes(b"1234567")
    card = card_of(synthetic_measurement(CANDIDATE), bundle=bundle)
    assert "`model.autoqz` (7 bytes)" in card
    assert "autoq unbundle model.autoqz" in card
    assert "unbundle" not in card_of(synthetic_measurement(CANDIDATE))
