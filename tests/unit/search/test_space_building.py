from __future__ import annotations

import pytest

from autoq.core.choices import Calibration, Choice, Format, Granularity, Grid, Precision
from autoq.core.errors import ModelError, SpecError
from autoq.core.layers import Layer, OpFamily
from autoq.search.space_building import build_space
from autoq.search.space_rules import GraphRule, LayerRule, SpaceRules, SparsityRange, WeightMethods
from autoq.testing.synthetic import SyntheticTarget, synthetic_layers, synthetic_ops

ALL = LayerRule(
    "*",
    formats=(Format.FP32, Format.INT8),
    granularities=(Granularity.CHANNEL, Granularity.TENSOR),
    calibrations=(Calibration.MINMAX, Calibration.ENTROPY),
    weight_bits=(2, 8),
    sparsity=SparsityRange(0.5, 0.25),
)


def no_dynamic(layer: Layer, choice: Choice) -> str:
    dynamic_conv = layer.op == "Conv" and choice.format is Format.INT8_DYNAMIC
    return "Conv has no dynamic kernel" if dynamic_conv else ""


def no_full_range(layer: Layer, choice: Choice) -> str:
    full = choice.format is Format.INT8 and choice.weight_bits == 8
    return "u8 x s8 saturates without VNNI" if full else ""


def test_labels_are_the_product_of_what_each_format_can_have() -> None:
    rules = SpaceRules((ALL, LayerRule("layer1", formats=(Format.INT8_DYNAMIC, Format.INT4_WEIGHT))))
    space = build_space(rules, synthetic_layers(2, op="MatMul"), [], SyntheticTarget())
    assert space.layers[0].labels == (
        "fp32",
        "int8/channel/minmax",
        "int8/channel/entropy",
        "int8/tensor/minmax",
        "int8/tensor/entropy",
    )
    assert space.layers[1].labels == ("int8_dynamic/channel", "int8_dynamic/tensor", "int4_weight/block32")


def test_a_later_rule_overrides_only_what_it_says() -> None:
    rules = SpaceRules((ALL, LayerRule("layer[12]", weight_bits=(6, 8))))
    space = build_space(rules, synthetic_layers(3), [], SyntheticTarget())
    assert [layer.bits for layer in space.layers] == [(2, 8), (6, 8), (6, 8)]
    assert space.layers[0].labels == space.layers[2].labels
    assert space.layers[1].sparsities == (0.0, 0.25, 0.5)


def test_a_layer_that_no_rule_matches_stays_float_and_has_no_parameter() -> None:
    rules = SpaceRules((LayerRule("layer0", formats=(Format.FP32, Format.INT8)),))
    space = build_space(rules, synthetic_layers(2), [], SyntheticTarget())
    assert space.layers[1].labels == ("fp32",)
    assert [param.name for param in space.params] == ["layer0/format"]


def test_a_refused_width_narrows_the_bits_of_its_label_and_is_told_once() -> None:
    rules = SpaceRules((LayerRule("*", formats=(Format.INT8, Format.INT8_S8), weight_bits=(4, 8)),))
    space = build_space(rules, synthetic_layers(2), [], SyntheticTarget(no_full_range))
    assert space.layers[0].legal == {"int8/channel/minmax": (4, 7), "int8_s8/channel/minmax": (4, 8)}
    assert space.layers[0].choose("int8/channel/minmax", bits=8).weight_bits == 7
    (refusal,) = space.refusals
    assert refusal.layers == ("layer0", "layer1")
    assert refusal.what == "int8/channel/minmax at 8 bits"
    assert refusal.reason == "u8 x s8 saturates without VNNI"


def test_a_refused_grid_is_left_out_and_told_once() -> None:
    def no_codebooks(layer: Layer, choice: Choice) -> str:
        return "codebooks use all 8 bits" if choice.grid is Grid.CODEBOOK else ""

    methods = WeightMethods(grid=(Grid.UNIFORM, Grid.CODEBOOK))
    rules = SpaceRules(
        (LayerRule("*", formats=(Format.FP32, Format.INT8), weight_bits=(2, 7), methods=methods),)
    )
    for target, n_grids in ((SyntheticTarget(no_codebooks), 1), (SyntheticTarget(), 2)):
        space = build_space(rules, synthetic_layers(2), [], target)
        assert {len({way.get("grid") for way in layer.ways}) for layer in space.layers} == {n_grids}
        told = [(one.what, one.reason) for one in space.refusals]
        assert told == ([("codebook", "codebooks use all 8 bits")] if n_grids == 1 else [])


def test_the_legal_bits_are_one_range_even_where_the_refused_ones_lie_inside() -> None:
    target = SyntheticTarget(lambda layer, choice: "no 6-bit grid" if choice.weight_bits == 6 else "")
    space = build_space(SpaceRules((ALL,)), synthetic_layers(1), [], target)
    assert space.layers[0].legal["int8/tensor/minmax"] == (7, 8)


def test_a_format_refused_everywhere_by_the_star_is_noted_as_one() -> None:
    rules = SpaceRules(
        (LayerRule("*", formats=(Format.FP32, Format.INT8, Format.INT8_DYNAMIC), weight_bits=(2, 8)),)
    )
    space = build_space(rules, synthetic_layers(2), [], SyntheticTarget(no_dynamic))
    assert [(r.what, r.layers) for r in space.refusals] == [("int8_dynamic", ("layer0", "layer1"))]


def test_a_format_refused_everywhere_by_an_explicit_glob_is_the_users_error() -> None:
    rules = SpaceRules((ALL, LayerRule("layer*", formats=(Format.FP32, Format.INT8_DYNAMIC))))
    with pytest.raises(SpecError, match=r"layers.layer\*: synthetic cannot run format int8_dynamic .*kernel"):
        build_space(rules, synthetic_layers(2), [], SyntheticTarget(no_dynamic))


def test_a_format_that_some_layer_of_an_explicit_glob_runs_is_no_error() -> None:
    layers = [*synthetic_layers(2), Layer("layer_fc", "Gemm", (4, 4), 0)]
    rules = SpaceRules((LayerRule("layer*", formats=(Format.FP32, Format.INT8_DYNAMIC)),))
    space = build_space(rules, layers, [], SyntheticTarget(no_dynamic))
    assert space.layers[0].labels == ("fp32",)
    assert space.layers[2].labels == ("fp32", "int8_dynamic/channel")


def test_a_layer_left_without_any_choice_is_named_with_the_reason() -> None:
    layers = [*synthetic_layers(1), Layer("layer_fc", "Gemm", (4, 4), 0)]
    rules = SpaceRules((LayerRule("layer*", formats=(Format.INT8_DYNAMIC,)),))
    with pytest.raises(SpecError, match=r"'layer0' may be nothing but int8_dynamic.*no dynamic kernel"):
        build_space(rules, layers, [], SyntheticTarget(no_dynamic))


def test_what_a_rule_for_all_layers_cannot_give_a_layer_leaves_it_float() -> None:
    layers = [*synthetic_layers(1), Layer("layer_fc", "Gemm", (4, 4), 0)]
    rules = SpaceRules((LayerRule("*", formats=(Format.INT8_DYNAMIC,)),))
    space = build_space(rules, layers, [], SyntheticTarget(no_dynamic))
    assert [layer.labels for layer in space.layers] == [("fp32",), ("int8_dynamic/channel",)]
    assert [refusal.layers for refusal in space.refusals] == [("layer0",)]


def test_more_than_twelve_labels_are_refused_with_their_number() -> None:
    every = tuple(method for method in Calibration if method is not Calibration.NONE)
    rules = SpaceRules((ALL, LayerRule("layer1", calibrations=every)))
    with pytest.raises(SpecError, match=r"'layer1' has 13 combinations .* at most 12"):
        build_space(rules, synthetic_layers(2), [], SyntheticTarget())


def test_sparsity_ends_before_the_first_value_the_target_refuses() -> None:
    target = SyntheticTarget(lambda layer, choice: "too sparse" if choice.sparsity > 0.3 else "")
    space = build_space(SpaceRules((ALL,)), synthetic_layers(1), [], target)
    assert space.layers[0].sparsities == (0.0, 0.25)


def test_a_sparsity_grid_includes_its_maximum_in_spite_of_rounding() -> None:
    rules = SpaceRules((LayerRule("*", sparsity=SparsityRange(0.3, 0.1)),))
    space = build_space(rules, synthetic_layers(1), [], SyntheticTarget())
    assert space.layers[0].sparsities == (0.0, 0.1, 0.2, 0.3)


@pytest.mark.parametrize("pattern", ["conv*", "Layer0", ""])
def test_a_glob_that_matches_no_layer_is_named_with_layers_that_exist(pattern: str) -> None:
    rules = SpaceRules((ALL, LayerRule(pattern, weight_bits=(4, 8))))
    with pytest.raises(SpecError) as raised:
        build_space(rules, synthetic_layers(8), [], SyntheticTarget())
    assert f"the glob {pattern!r} matches nothing" in str(raised.value)
    assert "layer0, layer1, layer2, layer3, layer4 and 3 more" in str(raised.value)


def test_a_model_without_layers_is_the_models_error() -> None:
    with pytest.raises(ModelError, match="no layer that can be compressed"):
        build_space(SpaceRules((ALL,)), [], [], SyntheticTarget())


def test_a_space_that_leaves_everything_float_is_refused_with_the_targets_reason() -> None:
    rules = SpaceRules((LayerRule("*", formats=(Format.FP32, Format.INT8_DYNAMIC)),))
    with pytest.raises(SpecError, match=r"nothing to search .*no dynamic kernel"):
        build_space(rules, synthetic_layers(2), [], SyntheticTarget(no_dynamic))


BOTH = (Precision.INT8, Precision.FLOAT)


def test_each_op_is_decided_by_the_last_rule_that_matches_it() -> None:
    graph = (GraphRule(OpFamily.ADD, "*", BOTH), GraphRule(OpFamily.ADD, "add1", BOTH[::-1]))
    space = build_space(SpaceRules((ALL,), graph), synthetic_layers(1), synthetic_ops(3), SyntheticTarget())
    assert [(g.name, g.ops) for g in space.graph] == [
        ("graph/add", ("add0", "add2")),
        ("graph/add:add1", ("add1",)),
    ]
    assert [param.name for param in space.params][-2:] == ["graph/add", "graph/add:add1"]


def test_a_refused_family_is_fixed_to_float_and_noted() -> None:
    graph = (GraphRule(OpFamily.SOFTMAX, "*", BOTH), GraphRule(OpFamily.ADD, "*", BOTH))
    target = SyntheticTarget(refused_families=[OpFamily.SOFTMAX])
    space = build_space(SpaceRules((ALL,), graph), synthetic_layers(1), synthetic_ops(), target)
    assert space.graph[0].precisions == (Precision.FLOAT,)
    assert [(r.what, r.layers) for r in space.refusals] == [("softmax in int8", ("softmax",))]
    assert "graph/softmax" not in [param.name for param in space.params]


def test_a_family_that_the_model_lacks_is_passed_over_but_an_explicit_glob_is_not() -> None:
    layers, ops = synthetic_layers(1), synthetic_ops()
    rules = SpaceRules((ALL,), (GraphRule(OpFamily.CONCAT, "*", BOTH),))
    assert build_space(rules, layers, ops, SyntheticTarget()).graph == ()
    rules = SpaceRules((ALL,), (GraphRule(OpFamily.ADD, "sum*", BOTH),))
    with pytest.raises(SpecError, match=r"graph.add: the glob 'sum\*' matches nothing .*add0, add1"):
        build_space(rules, layers, ops, SyntheticTarget())
