from __future__ import annotations

import pytest

from autoq.core.choices import FLOAT, Calibration, Choice, Format, Granularity, Precision
from autoq.core.errors import SpecError
from autoq.core.layers import Layer, OpFamily
from autoq.search.anchors import Anchor, build_anchors
from autoq.search.space import SearchSpace
from autoq.search.space_building import build_space
from autoq.search.space_rules import AnchorLayerRule, AnchorRule, GraphRule, LayerRule, SpaceRules
from autoq.testing.synthetic import SyntheticTarget, synthetic_layers, synthetic_ops

METHODS = (Calibration.MINMAX, Calibration.PERCENTILE_99_9, Calibration.PERCENTILE_99_99, Calibration.MSE)
LAYERS = (
    LayerRule(
        "*",
        formats=(Format.FP32, Format.INT8, Format.INT8_DYNAMIC),
        calibrations=METHODS,
        weight_bits=(2, 8),
    ),
)
GRAPH = (GraphRule(OpFamily.ADD, "*", (Precision.INT8, Precision.FLOAT)),)
CONV_OR_FC = [*synthetic_layers(2), Layer("fc", "Gemm", (4, 4), 0)]


def refuse(layer: Layer, choice: Choice) -> str:
    dynamic_conv = layer.op == "Conv" and choice.format is Format.INT8_DYNAMIC
    return "Conv has no dynamic kernel" if dynamic_conv else ""


TARGET = SyntheticTarget(refuse, refused_families=[OpFamily.SOFTMAX])


def anchors_of(rules: SpaceRules) -> tuple[SearchSpace, dict[str, Anchor]]:
    space = build_space(rules, CONV_OR_FC, synthetic_ops(), TARGET)
    anchors = build_anchors(space, rules, CONV_OR_FC, TARGET)
    return space, {anchor.name: anchor for anchor in anchors}


def test_float_comes_first_then_one_anchor_per_format_granularity_and_method() -> None:
    _, anchors = anchors_of(SpaceRules(LAYERS, GRAPH))
    assert list(anchors) == [
        "float",
        "int8/channel/minmax",
        "int8/channel/mse",
        "int8/channel/percentile99.99",
        "int8_dynamic/channel",
    ]


def test_the_float_anchor_is_float_all_over() -> None:
    _, anchors = anchors_of(SpaceRules(LAYERS, GRAPH))
    candidate = anchors["float"].candidate
    assert set(candidate.by_layer.values()) == {FLOAT}
    assert set(candidate.by_op.values()) == {Precision.FLOAT}


def test_uniform_anchors_are_full_width_with_the_first_listed_graph_choice() -> None:
    _, anchors = anchors_of(SpaceRules(LAYERS, GRAPH))
    candidate = anchors["int8/channel/minmax"].candidate
    assert set(candidate.by_layer.values()) == {Choice.of("int8")}
    assert candidate.by_op == {"add0": Precision.INT8, "add1": Precision.INT8, "softmax": Precision.FLOAT}


def test_a_layer_that_cannot_have_the_label_gets_the_nearest_it_can() -> None:
    special = (
        LayerRule("layer0", granularities=(Granularity.TENSOR,), calibrations=(Calibration.PERCENTILE_99_9,)),
        LayerRule("layer1", formats=(Format.INT8,), calibrations=(Calibration.MSE,)),
    )
    _, anchors = anchors_of(SpaceRules((*LAYERS, *special), GRAPH))
    percentile = anchors["int8/channel/percentile99.99"].candidate.by_layer
    assert percentile["layer0"] == Choice.of("int8", granularity="tensor", calibration="percentile99.9")
    assert percentile["layer1"] == Choice.of("int8", calibration="mse")
    dynamic = anchors["int8_dynamic/channel"].candidate.by_layer
    assert dynamic["fc"] == Choice.of("int8_dynamic")
    assert dynamic["layer0"] == FLOAT
    assert dynamic["layer1"].format is Format.INT8  # it may not be float


def test_the_widest_percentile_of_each_layer_serves_one_anchor() -> None:
    special = (LayerRule("fc", calibrations=(Calibration.PERCENTILE_99_999,)),)
    _, anchors = anchors_of(SpaceRules((*LAYERS, *special), GRAPH))
    assert [name for name in anchors if "percentile" in name] == ["int8/channel/percentile99.999"]
    methods = [c.calibration for _, c in anchors["int8/channel/percentile99.999"].candidate.choices]
    assert methods == ["percentile99.999", "percentile99.99", "percentile99.99"]


def test_a_space_without_minmax_and_percentiles_still_has_an_anchor() -> None:
    rules = SpaceRules((*LAYERS, LayerRule("*", calibrations=(Calibration.MSE, Calibration.ENTROPY))))
    _, anchors = anchors_of(rules)
    assert list(anchors) == ["float", "int8/channel/mse", "int8_dynamic/channel"]


def test_all_but_the_float_anchor_lie_inside_a_space_without_float() -> None:
    space, anchors = anchors_of(SpaceRules((LayerRule("*", formats=(Format.INT8,), weight_bits=(2, 6)),)))
    assert space.encode(anchors["float"].candidate) is None
    assert space.encode(anchors["int8/channel/minmax"].candidate) == {
        f"{layer.name}/bits": 6 for layer in CONV_OR_FC
    }


def user_anchor(*layers: AnchorLayerRule, graph: dict[OpFamily, Precision] | None = None) -> SpaceRules:
    return SpaceRules(LAYERS, GRAPH, (AnchorRule("mine", layers, graph or {}),))


def test_the_users_anchor_follows_its_rules_in_order_and_leaves_the_rest_float() -> None:
    rules = user_anchor(
        AnchorLayerRule("layer*", Format.INT8, weight_bits=5),
        AnchorLayerRule("layer1", Format.INT8_S8, sparsity=0.5),
        graph={OpFamily.ADD: Precision.FLOAT},
    )
    _, anchors = anchors_of(rules)
    assert list(anchors)[-1] == "mine"
    assert anchors["mine"].candidate.by_layer == {
        "fc": FLOAT,
        "layer0": Choice.of("int8", weight_bits=5),
        "layer1": Choice.of("int8_s8", sparsity=0.5),
    }
    assert set(anchors["mine"].candidate.by_op.values()) == {Precision.FLOAT}


def test_under_the_star_a_layer_that_the_target_refuses_stays_float() -> None:
    rules = user_anchor(AnchorLayerRule("*", Format.INT8_DYNAMIC, granularity=Granularity.TENSOR))
    _, anchors = anchors_of(rules)
    choices = anchors["mine"].candidate.by_layer
    assert choices == {
        "fc": Choice.of("int8_dynamic", granularity="tensor"),
        "layer0": FLOAT,
        "layer1": FLOAT,
    }


def test_a_star_that_the_target_refuses_everywhere_is_the_users_error() -> None:
    rules = user_anchor(AnchorLayerRule("*", Format.INT8_DYNAMIC), AnchorLayerRule("fc", Format.INT8))
    with pytest.raises(SpecError, match=r"'layer0' .*no dynamic kernel"):
        anchors_of(rules)


def test_an_anchor_may_name_a_family_that_the_model_lacks() -> None:
    target = SyntheticTarget(refused_families=[OpFamily.CONCAT])
    rules = user_anchor(AnchorLayerRule("fc", Format.INT8), graph={OpFamily.CONCAT: Precision.INT8})
    space = build_space(rules, CONV_OR_FC, synthetic_ops(), target)
    assert build_anchors(space, rules, CONV_OR_FC, target)[-1].name == "mine"


def test_an_anchor_equal_to_an_earlier_one_is_dropped() -> None:
    _, anchors = anchors_of(user_anchor(AnchorLayerRule("*", Format.INT8)))
    assert "mine" not in anchors
    assert next(iter(anchors)) == "float"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (user_anchor(AnchorLayerRule("conv*", Format.INT8)), r"anchors.mine: the glob 'conv\*' matches"),
        (user_anchor(AnchorLayerRule("l*", Format.INT8_DYNAMIC)), r"'layer0' .*no dynamic kernel"),
        (
            user_anchor(AnchorLayerRule("*", Format.INT8, granularity=Granularity.BLOCK32)),
            "int8 cannot have granularity block32",
        ),
        (user_anchor(graph={OpFamily.SOFTMAX: Precision.INT8}), "softmax in int8 .*no int8 kernel"),
    ],
)
def test_an_anchor_that_cannot_be_is_the_users_error(rules: SpaceRules, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        anchors_of(rules)
