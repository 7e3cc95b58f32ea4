from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.choices import (
    FLOAT,
    Calibration,
    Candidate,
    Choice,
    Criterion,
    Format,
    Granularity,
    Precision,
    Rewrites,
)
from autoq.core.digests import digest_json


def _grains(fmt: Format) -> list[Granularity]:
    blocked = [grain for grain in Granularity if grain.block_size]
    return blocked if fmt.is_weight_only else [Granularity.TENSOR, Granularity.CHANNEL]


CHOICES = st.sampled_from(list(Format)).flatmap(
    lambda fmt: st.builds(
        Choice.of,
        st.just(fmt),
        weight_bits=st.integers(2, 8),
        granularity=st.sampled_from(_grains(fmt)),
        calibration=st.sampled_from([c for c in Calibration if c is not Calibration.NONE]),
        sparsity=st.floats(0.0, 0.99),
    )
)
CANDIDATES = st.builds(
    Candidate.of,
    st.dictionaries(st.text(min_size=1, max_size=3), CHOICES, max_size=4),
    st.dictionaries(st.text(min_size=1, max_size=3), st.sampled_from(list(Precision)), max_size=3),
)


@given(CHOICES)
def test_a_choice_is_its_label_bits_and_sparsity(choice: Choice) -> None:
    rebuilt = Choice.from_label(choice.label, weight_bits=choice.weight_bits, sparsity=choice.sparsity)
    assert rebuilt == choice


@given(CANDIDATES)
def test_a_candidate_survives_json_and_pickle_with_its_digest(candidate: Candidate) -> None:
    digest = candidate.digest
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))).digest == digest
    assert pickle.loads(pickle.dumps(candidate)).digest == digest


@given(CANDIDATES, CANDIDATES)
def test_two_candidates_share_a_digest_only_if_they_are_equal(a: Candidate, b: Candidate) -> None:
    assert (a.digest == b.digest) == (a == b)


def test_the_order_of_layers_is_no_difference() -> None:
    first, second = Choice.of("int8"), Choice.of("int8_dynamic")
    assert Candidate.of({"a": first, "b": second}) == Candidate.of({"b": second, "a": first})


def test_fields_that_mean_nothing_for_a_format_make_no_other_choice() -> None:
    assert Choice.of("fp32", weight_bits=4, granularity="tensor", calibration="mse") == FLOAT
    assert Choice.of("int8_dynamic", calibration="mse") == Choice.of("int8_dynamic")
    assert Choice.of("int4_weight", weight_bits=8) == Choice.of("int4_weight", weight_bits=4)


@pytest.mark.parametrize(
    ("format", "fields"),
    [
        ("int8", {"weight_bits": 1}),
        ("int8", {"weight_bits": 9}),
        ("int8", {"sparsity": 1.0}),
        ("int8", {"sparsity": -0.1}),
        ("int8", {"sparsity": float("nan")}),
        ("int8", {"granularity": "block32"}),
        ("int8", {"granularity": "none"}),
        ("int4_weight", {"granularity": "channel"}),
        ("int3", {}),
    ],
)
def test_values_out_of_range_are_refused(format: str, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"outside|cannot have|not a valid"):
        Choice.of(format, **fields)  # type: ignore[arg-type]


def test_replacing_one_layers_choice_keeps_the_rest() -> None:
    candidate = Candidate.of({"a": FLOAT, "b": FLOAT}, {"add": Precision.INT8})
    changed = candidate.with_choice("b", Choice.of("int8"))
    assert changed == Candidate.of({"a": FLOAT, "b": Choice.of("int8")}, {"add": Precision.INT8})
    assert candidate.by_layer["b"] == FLOAT


def test_a_choice_reads_well() -> None:
    assert (
        str(Choice.of("int8", weight_bits=5, calibration="mse", sparsity=0.5))
        == "int8/channel/mse w5 50% zero"
    )
    assert str(FLOAT) == "fp32"


def test_widths_are_part_of_the_identity_only_where_something_is_narrower() -> None:
    full, narrow = Candidate.of({}), Candidate.of({}, None, Rewrites(widths=(("a", 8), ("b", 16))))
    assert "widths" not in full.to_json()["rewrites"]
    assert narrow.to_json()["rewrites"]["widths"] == {"a": 8, "b": 16}
    assert narrow.digest != full.digest
    assert Candidate.from_json(json.loads(json.dumps(narrow.to_json()))) == narrow
    unsorted = {"equalize": False, "smooth_alpha": None, "widths": {"b": 16, "a": 8}}
    assert Rewrites.from_json(unsorted) == narrow.rewrites


def test_the_digest_of_a_full_width_candidate_is_what_it_was_before_there_were_widths() -> None:
    written = {"choices": {}, "graph": {}, "rewrites": {"equalize": False, "smooth_alpha": None}}
    assert Candidate.of({}).digest == digest_json(written)


def test_what_units_are_ordered_by_is_part_of_the_identity_unless_it_is_usual() -> None:
    usual = Rewrites(widths=(("a", 8),))
    others = [replace(usual, criterion=one) for one in Criterion if one is not Criterion.OBS]
    others.append(replace(others[-1], loss="cross entropy of logits"))
    assert usual.to_json().keys() == {"equalize", "smooth_alpha", "widths"}
    assert len({Candidate.of({}, None, one).digest for one in (usual, *others)}) == 5
    assert all(Rewrites.from_json(json.loads(json.dumps(one.to_json()))) == one for one in others)
    assert str(others[0]) == "1 channel group narrowed + ordered by magnitude"


def test_narrowed_rewrites_say_so() -> None:
    assert str(Rewrites(widths=(("a", 8),))) == "1 channel group narrowed"
    assert str(Rewrites(True, 0.5, (("a", 8), ("b", 1)))) == (
        "2 channel groups narrowed + equalize + smooth 0.5"
    )
