"""What every ledger must do. Subclass `LedgerContract` and provide a `ledger` fixture."""

# ruff: noqa: D102 (a test's name is its sentence)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoq.core.choices import FLOAT, Candidate, Choice, Precision
from autoq.core.errors import StoreError, UnknownNameError
from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement, Size
from autoq.search.ports import Ledger
from autoq.search.records import (
    FinalMeasurement,
    SearchRecord,
    SearchState,
    TestAccuracy,
    TrialRecord,
    TrialState,
)


def example_search(name: str = "glyphs", **changes: Any) -> SearchRecord:
    """Build a search with every field set to something that is easy to lose."""
    record = SearchRecord(
        name=name,
        spec={
            "name": name,
            "model": {"path": "/models/ä %.onnx", "output": None},
            "constraints": {"max_latency_ms": 0.1 + 0.2, "max_size_bytes": 2**40},
            "objectives": ["accuracy", "latency"],
            "space": {"layers": [{"pattern": "*", "weight_bits": [2, 8]}], "empty": {}},
        },
        spec_digest="5" * 32,
        state=SearchState.RUNNING,
        created_at=1764000000.123456,
        model_digest="a" * 32,
        environment={"cpu": "one", "threads": 1, "isa": ["avx2", "vnni"]},
        baseline=Baseline(0.9125, 1.25, (1.2, 1 / 3 + 1), 1.5, 5_000_000_000, 0.0123456789012345),
        preparation_s={"statistics": 1.5, "baseline": 0.1 + 0.7},
        message="stopped by 'Ctrl-C'; go on with --resume",
    )
    return record.but(**changes)


def example_measurement(**changes: Any) -> Measurement:
    """Build a measurement whose figures have no short decimal form."""
    measurement = Measurement(
        accuracy=Accuracy(value=1 / 3, drop=-0.1 / 3, drop_ci=(-0.2 / 3, 1e-17), n_examples=4_999),
        latency=Latency(0.1 + 0.2, (0.29, 0.31), 0.4, 2 / 3, (0.6, 0.7), 24),
        size=Size(size_bytes=2**33 + 1, bundle_bytes=2**32 + 3),
        storage_only=("conv1", "fc"),
        seconds={"build": 0.04, "latency": 3.0000000000000004},
    )
    return replace(measurement, **changes)


def example_candidate(weight_bits: int = 8) -> Candidate:
    """Build a candidate; each number of bits gives another digest."""
    conv = Choice.of("int8", weight_bits=weight_bits, calibration="percentile99.99", sparsity=0.3)
    return Candidate.of({"layer1.0.conv1": conv, "fc": FLOAT}, {"add_3": Precision.INT8})


def example_trial(number: int = 0, *, weight_bits: int = 8, **changes: Any) -> TrialRecord:
    """Build a completed trial."""
    trial = TrialRecord(
        number=number,
        origin="anchor int8/channel/minmax",
        params={
            "layer1.0.conv1.format": "int8/channel/minmax",
            "bits": 7,
            "sparsity": 0.1 + 0.2,
            "flag": True,
        },
        candidate=example_candidate(weight_bits),
        state=TrialState.COMPLETE,
        measurement=example_measurement(),
        sampler_notes={"nsga2:generation": 3, "parents": [1, 2], "nothing": None},
        started_at=1764000001.654321,
        seconds={"suggest": 0.001, "store": 0.1 + 0.2},
        reasons={
            "kind": "flip",
            "why": "fc: int8 w5 \u2192 \u00e4",
            "predicted_drop": 0.1 + 0.2,
        },
    )
    return replace(trial, **changes)


def example_final(digest: str = "d" * 32, **changes: Any) -> FinalMeasurement:
    """Build a final measurement with a test accuracy."""
    final = FinalMeasurement(
        digest=digest,
        latency=Latency(0.1 + 0.2, (0.29, 0.31), 0.4, 2 / 3, (0.6, 0.7), 240),
        test=TestAccuracy(Accuracy(0.9, 0.01, (0.005, 0.02), 1000), "undecided"),
    )
    return replace(final, **changes)


class LedgerContract:
    """Every promise of `autoq.search.ports.Ledger`, on an empty ledger."""

    def test_a_search_comes_back_as_it_was_saved(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        assert ledger.load_search("glyphs") == example_search()

    def test_a_search_that_has_only_begun_comes_back_as_it_was_saved(self, ledger: Ledger) -> None:
        begun = SearchRecord("begun", {}, "0", SearchState.RUNNING)
        ledger.create_search(begun)
        assert ledger.load_search("begun") == begun

    def test_a_search_nobody_created_is_none(self, ledger: Ledger) -> None:
        assert ledger.load_search("glyphs") is None
        assert ledger.list_searches() == []

    def test_a_taken_name_is_refused_and_its_search_kept(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        with pytest.raises(StoreError, match="already has a search named 'glyphs'"):
            ledger.create_search(example_search(spec_digest="other"))
        assert ledger.load_search("glyphs") == example_search()

    def test_an_update_replaces_every_field_of_one_search(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        ledger.create_search(example_search("other"))
        ledger.add_trial("glyphs", example_trial())
        changed = SearchRecord(
            "glyphs",
            {"new": 1},
            "new",
            SearchState.FINISHED,
            1.5,
            "new",
            {"cpu": "two"},
            None,
            {"a": 0.5},
            "",
        )
        ledger.update_search(changed)
        assert ledger.load_search("glyphs") == changed
        assert ledger.load_search("other") == example_search("other")
        assert ledger.load_trials("glyphs") == [example_trial()]

    def test_searches_are_listed_oldest_first(self, ledger: Ledger) -> None:
        for name, created_at in (("b", 2.0), ("a", 3.0), ("c", 1.0)):
            ledger.create_search(example_search(name, created_at=created_at))
        assert [record.name for record in ledger.list_searches()] == ["c", "b", "a"]

    def test_writing_to_an_unknown_search_names_it(self, ledger: Ledger) -> None:
        with pytest.raises(UnknownNameError, match="no search named 'glyphs'"):
            ledger.update_search(example_search())
        with pytest.raises(UnknownNameError, match="no search named 'glyphs'"):
            ledger.delete_search("glyphs")
        with pytest.raises(UnknownNameError, match="no search named 'glyphs'"):
            ledger.add_trial("glyphs", example_trial())
        with pytest.raises(UnknownNameError, match="no search named 'glyphs'"):
            ledger.save_finals("glyphs", [example_final()])

    def test_reading_an_unknown_search_finds_nothing(self, ledger: Ledger) -> None:
        assert ledger.load_trials("glyphs") == []
        assert ledger.load_finals("glyphs") == []

    def test_a_trial_comes_back_as_it_was_saved(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        ledger.add_trial("glyphs", example_trial())
        (found,) = ledger.load_trials("glyphs")
        assert found == example_trial()
        assert found.digest == example_trial().digest
        assert list(found.params) == list(example_trial().params)

    def test_a_metric_without_an_interval_stays_without(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        accuracy = Accuracy(0.5, 0.1, None, 10)
        trial = example_trial(measurement=example_measurement(accuracy=accuracy, storage_only=()))
        ledger.add_trial("glyphs", trial)
        assert ledger.load_trials("glyphs") == [trial]

    def test_figures_that_are_infinite_or_no_number_are_kept(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        accuracy = Accuracy(float("nan"), float("inf"), (float("-inf"), 0.0), 10)
        ledger.add_trial("glyphs", example_trial(measurement=example_measurement(accuracy=accuracy)))
        (found,) = ledger.load_trials("glyphs")
        assert found.measurement is not None
        assert str(found.measurement.accuracy) == str(accuracy)

    def test_a_failed_trial_keeps_its_reason(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        failed = example_trial(
            state=TrialState.FAILED, measurement=None, reason="ORT said:\n\t'no' 100 % \u2014 ä"
        )
        ledger.add_trial("glyphs", failed)
        assert ledger.load_trials("glyphs") == [failed]

    def test_a_reason_with_bytes_that_are_no_text_is_still_kept(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        reason = "not \udcff text\0"
        ledger.add_trial("glyphs", example_trial(state=TrialState.FAILED, measurement=None, reason=reason))
        (found,) = ledger.load_trials("glyphs")
        assert found.reason.startswith("not ")

    def test_reasons_stay_with_the_trial_they_were_given_for(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        first = example_trial(0, reasons={"kind": "seed", "nested": {"budget": [0.5, None]}, "yes": True})
        second = example_trial(1, weight_bits=5, reasons={})
        for trial in (first, second):
            ledger.add_trial("glyphs", trial)
        ledger.update_trial_seconds("glyphs", 0, first.seconds)
        assert ledger.load_trials("glyphs") == [first, second]

    def test_a_figure_foretold_without_bound_is_kept(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        ledger.add_trial("glyphs", example_trial(reasons={"predicted_divergence": float("inf")}))
        (found,) = ledger.load_trials("glyphs")
        assert found.reasons == {"predicted_divergence": float("inf")}

    def test_trials_come_by_ascending_number(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        for number in (2, 10, 0, 1):
            ledger.add_trial("glyphs", example_trial(number, weight_bits=2 + number % 6))
        assert [trial.number for trial in ledger.load_trials("glyphs")] == [0, 1, 2, 10]

    def test_the_same_number_replaces_a_trial(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        ledger.add_trial("glyphs", example_trial(state=TrialState.FAILED, measurement=None, reason="died"))
        ledger.add_trial("glyphs", example_trial())
        ledger.add_trial("glyphs", example_trial())
        assert ledger.load_trials("glyphs") == [example_trial()]

    def test_a_replaced_trial_keeps_nothing_of_the_first(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        ledger.add_trial("glyphs", example_trial(weight_bits=4))
        other = example_trial(
            weight_bits=5, origin="tpe", params={}, state=TrialState.FAILED, measurement=None, reason="died"
        )
        other = replace(other, sampler_notes={}, started_at=0.0, seconds={}, reasons={})
        ledger.add_trial("glyphs", other)
        assert ledger.load_trials("glyphs") == [other]

    def test_a_repeated_candidate_shares_the_first_measurement(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        first = example_trial(0)
        repeated = example_trial(1, origin="tpe", state=TrialState.REPEATED, measurement=first.measurement)
        ledger.add_trial("glyphs", first)
        ledger.add_trial("glyphs", repeated)
        assert ledger.load_trials("glyphs") == [first, repeated]

    def test_a_failed_trial_does_not_borrow_the_measurement_of_its_candidate(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        failed = example_trial(1, state=TrialState.FAILED, measurement=None, reason="died")
        ledger.add_trial("glyphs", example_trial(0))
        ledger.add_trial("glyphs", failed)
        assert ledger.load_trials("glyphs") == [example_trial(0), failed]

    def test_one_candidate_is_measured_separately_in_two_searches(self, ledger: Ledger) -> None:
        slow = example_trial(measurement=example_measurement(seconds={"latency": 9.0}))
        ledger.create_search(example_search("fast"))
        ledger.create_search(example_search("slow"))
        ledger.add_trial("fast", example_trial())
        ledger.add_trial("slow", slow)
        assert ledger.load_trials("fast") == [example_trial()]
        assert ledger.load_trials("slow") == [slow]

    def test_a_candidate_of_many_layers_fits(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        layers = {f"encoder.layer.{i}.attention.self.query": Choice.of("int8_dynamic") for i in range(400)}
        trial = example_trial(candidate=Candidate.of(layers), params=dict.fromkeys(layers, "int8_dynamic"))
        ledger.add_trial("glyphs", trial)
        assert ledger.load_trials("glyphs") == [trial]

    def test_final_measurements_come_back_in_the_order_they_were_saved(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        finals = [example_final(digest) for digest in ("c", "a", "b")]
        finals[1] = replace(finals[1], test=None)
        ledger.save_finals("glyphs", finals)
        assert ledger.load_finals("glyphs") == finals

    def test_final_measurements_replace_those_before(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        ledger.create_search(example_search("other"))
        ledger.save_finals("other", [example_final("kept")])
        ledger.save_finals("glyphs", [example_final("a"), example_final("b")])
        ledger.save_finals("glyphs", [example_final("b")])
        assert ledger.load_finals("glyphs") == [example_final("b")]
        ledger.save_finals("glyphs", [])
        assert ledger.load_finals("glyphs") == []
        assert ledger.load_finals("other") == [example_final("kept")]

    def test_a_deleted_search_leaves_nothing_behind(self, ledger: Ledger) -> None:
        for name in ("glyphs", "other"):
            ledger.create_search(example_search(name))
            ledger.add_trial(name, example_trial())
            ledger.save_finals(name, [example_final()])
        ledger.delete_search("glyphs")
        assert ledger.load_search("glyphs") is None
        assert ledger.load_trials("glyphs") == []
        assert ledger.load_finals("glyphs") == []
        assert [record.name for record in ledger.list_searches()] == ["other"]
        assert ledger.load_trials("other") == [example_trial()]
        assert ledger.load_finals("other") == [example_final()]

    def test_a_deleted_name_starts_afresh(self, ledger: Ledger) -> None:
        ledger.create_search(example_search())
        ledger.add_trial("glyphs", example_trial())
        ledger.delete_search("glyphs")
        ledger.create_search(example_search(spec_digest="new"))
        assert ledger.load_search("glyphs") == example_search(spec_digest="new")
        assert ledger.load_trials("glyphs") == []
