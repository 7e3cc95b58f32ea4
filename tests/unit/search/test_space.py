from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

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
    Refit,
    Rewrites,
)
from autoq.core.layers import OpFamily
from autoq.search.anchors import reference_anchor, width_anchors
from autoq.search.space import (
    FULL_WIDTH,
    CategoryParam,
    IntegerParam,
    LayerSpace,
    Param,
    RewriteSpace,
    SearchSpace,
    WidthLevel,
)
from autoq.search.space_building import build_space
from autoq.search.space_rules import GraphRule, LayerRule, SpaceRules, SparsityRange
from autoq.testing.synthetic import SyntheticTarget, synthetic_layers, synthetic_ops


def small_space() -> SearchSpace:
    rules = SpaceRules(
        (
            LayerRule(
                "*",
                formats=(Format.FP32, Format.INT8, Format.INT4_WEIGHT),
                granularities=(Granularity.CHANNEL, Granularity.BLOCK64),
                calibrations=(Calibration.MINMAX, Calibration.MSE),
                weight_bits=(2, 8),
                sparsity=SparsityRange(0.6, 0.2),
            ),
            LayerRule("layer1", formats=(Format.INT8,), calibrations=(Calibration.MSE,)),
        ),
        (GraphRule(OpFamily.ADD, "*", (Precision.INT8, Precision.FLOAT)),),
    )
    return build_space(rules, synthetic_layers(3, op="MatMul"), synthetic_ops(), SyntheticTarget())


SPACE = small_space()


def values_of(param: Param) -> st.SearchStrategy[Any]:
    if isinstance(param, CategoryParam):
        return st.sampled_from(param.options)
    if isinstance(param, IntegerParam):
        return st.integers(param.low, param.high)
    steps = round((param.high - param.low) / param.step)
    # Sums as a sampler makes them, with their rounding.
    return st.integers(0, steps).map(lambda index: param.low + index * param.step)


PROPOSALS = st.fixed_dictionaries({param.name: values_of(param) for param in SPACE.params})


def test_what_has_one_value_is_no_parameter() -> None:
    names = [param.name for param in SPACE.params]
    assert names == [
        "layer0/format",
        "layer0/bits",
        "layer0/sparsity",
        "layer1/bits",
        "layer1/sparsity",
        "layer2/format",
        "layer2/bits",
        "layer2/sparsity",
        "graph/add",
    ]


@given(PROPOSALS)
def test_encoding_a_decoded_proposal_gives_the_same_candidate(params: dict[str, Any]) -> None:
    candidate = SPACE.decode(params)
    encoded = SPACE.encode(candidate)
    assert encoded is not None
    assert encoded.keys() == params.keys()
    assert SPACE.decode(encoded) == candidate


@given(PROPOSALS)
def test_every_decoded_choice_is_one_that_normalising_leaves_alone(params: dict[str, Any]) -> None:
    for _, choice in SPACE.decode(params).choices:
        assert (
            Choice.from_label(choice.label, weight_bits=choice.weight_bits, sparsity=choice.sparsity)
            == choice
        )


def test_bits_beyond_the_container_and_of_a_float_layer_make_no_new_candidate() -> None:
    float_a, float_b, four, eight = (
        SPACE.decode({"layer0/format": label, "layer0/bits": bits})
        for label, bits in (("fp32", 2), ("fp32", 8), ("int4_weight/block64", 4), ("int4_weight/block64", 8))
    )
    assert float_a.digest == float_b.digest
    assert four.digest == eight.digest
    assert four.by_layer["layer0"].weight_bits == 4


def test_every_layer_and_weightless_op_is_named_in_a_candidate() -> None:
    candidate = SPACE.decode({"graph/add": "int8"})
    assert list(candidate.by_layer) == ["layer0", "layer1", "layer2"]
    assert candidate.by_op == {
        "add0": Precision.INT8,
        "add1": Precision.INT8,
        "softmax": Precision.FLOAT,
    }


def test_a_candidate_outside_the_space_has_no_parameters() -> None:
    inside = SPACE.decode({})
    other_format = inside.with_choice("layer0", Choice.of("int8_dynamic"))
    off_the_grid = inside.with_choice("layer0", Choice.of("int8", calibration="mse", sparsity=0.3))
    forbidden_float = inside.with_choice("layer1", FLOAT)
    split_group = Candidate.of(inside.by_layer, {**inside.by_op, "add0": Precision.FLOAT})
    fixed_op = Candidate.of(inside.by_layer, {**inside.by_op, "softmax": Precision.INT8})
    assert SPACE.encode(inside) is not None
    for outside in (other_format, off_the_grid, forbidden_float, split_group, fixed_op):
        assert SPACE.encode(outside) is None


def test_bits_below_what_a_label_runs_at_are_raised_to_its_lowest() -> None:
    layer = LayerSpace("conv", {"int8/channel/minmax": (4, 7), "int8_s8/channel/minmax": (2, 8)})
    assert layer.bits == (2, 8)
    for (label, (low, high)), bits in itertools.product(layer.legal.items(), range(2, 9)):
        assert layer.choose(label, bits=bits).weight_bits == min(max(bits, low), high)


def narrower() -> SearchSpace:
    levels = (FULL_WIDTH, WidthLevel("80 %", (("a", 24),)), WidthLevel("50 %", (("a", 8), ("b", 16))))
    return replace(SPACE, rewrites=RewriteSpace((False,), (None, 0.6), levels))


def test_samplers_see_one_parameter_of_widths_under_the_shares_they_aim_at() -> None:
    param = next(one for one in narrower().params if one.name == "graph/widths")
    assert isinstance(param, CategoryParam)
    assert param.options == ("100 %", "80 %", "50 %")


def test_widths_go_through_parameters_and_back_with_the_usual_rewrites_only() -> None:
    space = narrower()
    for level in space.rewrites.widths:
        candidate = space.decode({"graph/widths": level.label})
        assert candidate.rewrites == Rewrites(widths=level.widths)
        assert space.decode(space.encode(candidate) or {}) == candidate
    both = space.decode({"graph/widths": "50 %", "graph/smooth": "0.6"})
    assert both.rewrites == Rewrites(widths=(("a", 8), ("b", 16)))
    assert space.rewrites.all == [
        Rewrites(),
        Rewrites(smooth_alpha=0.6),
        Rewrites(widths=(("a", 24),)),
        Rewrites(widths=(("a", 8), ("b", 16))),
    ]
    assert space.encode(replace(both, rewrites=Rewrites(widths=(("a", 9),)))) is None


def test_a_way_to_refit_goes_with_every_width_below_full() -> None:
    rewrites = replace(narrower().rewrites, refit=Refit.SEQUENTIAL)
    space = replace(SPACE, rewrites=rewrites)
    assert [one.refit for one in rewrites.all] == [Refit.NESTED] * 2 + [Refit.SEQUENTIAL] * 2
    narrow = space.decode({"graph/widths": "80 %"})
    assert narrow.rewrites == Rewrites(widths=(("a", 24),), refit=Refit.SEQUENTIAL)
    assert space.decode(space.encode(narrow) or {}) == narrow
    assert space.encode(replace(narrow, rewrites=Rewrites(widths=(("a", 24),)))) is None


def test_what_units_are_ordered_by_goes_with_every_width_below_full() -> None:
    how = {"criterion": Criterion.FISHER, "loss": "projection of features"}
    rewrites = replace(narrower().rewrites, **how)
    space = replace(SPACE, rewrites=rewrites)
    assert [one.criterion for one in rewrites.all] == [Criterion.OBS] * 2 + [Criterion.FISHER] * 2
    narrow = space.decode({"graph/widths": "80 %"})
    assert narrow.rewrites == Rewrites(widths=(("a", 24),), **how)
    assert space.decode(space.encode(narrow) or {}) == narrow
    for other in ({"criterion": Criterion.OBS}, {"loss": "projection of logits"}):
        assert space.encode(replace(narrow, rewrites=replace(narrow.rewrites, **other))) is None


def test_without_widths_nothing_is_added_to_what_samplers_see() -> None:
    assert "graph/widths" not in [param.name for param in SPACE.params]


def test_every_level_of_width_gets_the_gentlest_static_anchor() -> None:
    space = narrower()
    reference = reference_anchor(space, [])
    assert reference.name == "int8/channel/mse"
    anchors = width_anchors(space, reference)
    assert [one.name for one in anchors] == [
        "int8/channel/mse narrowed to 80 %",
        "int8/channel/mse narrowed to 50 %",
    ]
    assert [one.candidate.rewrites.widths for one in anchors] == [
        level.widths for level in space.rewrites.widths[1:]
    ]
    assert all(one.candidate.choices == reference.candidate.choices for one in anchors)


def test_half_precision_gives_no_bits_to_choose() -> None:
    rules = SpaceRules(
        (LayerRule("*", formats=(Format.FP16, Format.INT8), calibrations=(Calibration.MINMAX,)),)
    )
    space = build_space(rules, synthetic_layers(1), (), SyntheticTarget())
    assert [param.name for param in space.layers[0].params] == ["layer0/format"]
