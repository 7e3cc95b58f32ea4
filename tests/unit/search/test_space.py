from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autoq.core.choices import FLOAT, Calibration, Candidate, Choice, Format, Granularity, Precision
from autoq.core.layers import OpFamily
from autoq.search.space import CategoryParam, IntegerParam, LayerSpace, Param, SearchSpace
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
