import importlib.resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoq.core.choices import Calibration, Choice, Criterion, Format, Granularity, Precision, Refit
from autoq.core.errors import SpecError
from autoq.core.layers import OpFamily
from autoq.search.space_rules import (
    AnchorLayerRule,
    AnchorRule,
    GraphRule,
    LayerRule,
    SpaceRules,
    SparsityRange,
    WidthRule,
)
from autoq.spec.spaces import load_space, ready_spaces

READY = ["cnn", "storage", "transformer", "weights-only"]
FAMILIES_SEARCHED = {
    "cnn": {"add", "mul", "concat", "pool", "activation", "softmax"},
    "storage": {"add", "mul", "concat", "pool", "activation", "softmax"},
    "transformer": set(OpFamily),
    "weights-only": set(OpFamily),
}


def labels(rule: LayerRule) -> set[str]:
    """Every legal combination of format, granularity and calibration, the obvious way."""
    found = set()
    for fmt in rule.formats or ():
        for granularity in rule.granularities or ():
            for calibration in rule.calibrations or (Calibration.MINMAX,):
                try:
                    found.add(Choice.of(fmt, granularity=granularity, calibration=calibration).label)
                except ValueError:
                    continue
    return found


def test_the_ready_spaces_are_the_documented_ones() -> None:
    assert ready_spaces() == READY


@pytest.mark.parametrize("name", READY)
def test_a_ready_space_stays_within_a_dozen_labels_and_uses_every_format(name: str, tmp_path: Path) -> None:
    rules = load_space(name, tmp_path).rules()
    (everything,) = rules.layers
    found = labels(everything)
    assert everything.pattern == "*"
    assert len(found) <= 12
    assert {label.partition("/")[0] for label in found} == set(everything.formats or ())


@pytest.mark.parametrize("name", READY)
def test_a_ready_space_documents_every_format_and_family_in_comments(name: str, tmp_path: Path) -> None:
    text = (importlib.resources.files("autoq.search_spaces") / f"{name}.yaml").read_text()
    comments = " ".join(line.partition("#")[2] for line in text.splitlines())
    rules = load_space(name, tmp_path).rules()
    assert {rule.family for rule in rules.graph} == FAMILIES_SEARCHED[name]
    for fmt in rules.layers[0].formats or ():
        assert fmt in comments
    for rule in rules.graph:
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{rule.family}:"))
        assert "#" in line, f"{rule.family} has no comment"


def test_cnn_measures_signed_activations_by_an_anchor_only(tmp_path: Path) -> None:
    rules = load_space("cnn", tmp_path).rules()
    assert Format.INT8_S8 not in (rules.layers[0].formats or ())
    assert {layer.format for anchor in rules.anchors for layer in anchor.layers} == {Format.INT8_S8}
    assert rules.layers[0].weight_bits == (4, 8)
    assert rules.layers[0].sparsity == SparsityRange(0.0, 0.1)


def test_transformers_keep_residual_adds_float_unless_the_search_says_otherwise(tmp_path: Path) -> None:
    by_family = {rule.family: rule.precisions for rule in load_space("transformer", tmp_path).rules().graph}
    for family in (OpFamily.ADD, OpFamily.MUL, OpFamily.MATMUL, OpFamily.SOFTMAX):
        assert by_family[family] == (Precision.FLOAT, Precision.INT8)


def write(folder: Path, content: dict[str, Any]) -> str:
    (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "mine.yaml"


def test_every_key_becomes_a_rule(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        {
            "version": 1,
            "layers": {
                "*": {
                    "format": ["fp32", "int8"],
                    "granularity": "channel",
                    "calibration": ["percentile99.999"],
                    "weight_bits": [2, 8],
                    "sparsity": {"max": 0.5, "step": 0.25},
                },
                "fc": {"weight_bits": 8, "sparsity": 0.3},
            },
            "graph": {"add": ["int8", "float"], "add:layer1.*": "float"},
            "anchors": [
                {
                    "name": "all-mse",
                    "layers": {"*": {"format": "int8", "calibration": "mse"}},
                    "graph": {"add": "int8"},
                }
            ],
        },
    )
    assert load_space(source, tmp_path).rules() == SpaceRules(
        layers=(
            LayerRule(
                "*",
                (Format.FP32, Format.INT8),
                (Granularity.CHANNEL,),
                (Calibration.PERCENTILE_99_999,),
                (2, 8),
                SparsityRange(0.5, 0.25),
            ),
            LayerRule("fc", None, None, None, (8, 8), SparsityRange(0.3, 0.1)),
        ),
        graph=(
            GraphRule(OpFamily.ADD, "*", (Precision.INT8, Precision.FLOAT)),
            GraphRule(OpFamily.ADD, "layer1.*", (Precision.FLOAT,)),
        ),
        anchors=(
            AnchorRule(
                "all-mse",
                (AnchorLayerRule("*", Format.INT8, calibration=Calibration.MSE),),
                {OpFamily.ADD: Precision.INT8},
            ),
        ),
    )


FORMATS = "fp32, fp16, int8, int8_s8, int8_outlier, int8_dynamic, int8_weight, int4_weight"
BAD = [
    ({"layers": {}}, "layers: expected at least 1 entries, got a mapping with no keys"),
    ({"layers": None}, "layers: expected a mapping, got nothing"),
    ({"layers": {"*": {"format": "int9"}}}, f"layers.*.format[0]: expected one of {FORMATS}, got 'int9'"),
    ({"layers": {"*": {"format": []}}}, "layers.*.format: expected at least 1 entries, got []"),
    (
        {"layers": {"*": {"format": ["int8", "int8"]}}},
        "layers.*.format: expected no entry twice, but 'int8' is, got ['int8', 'int8']",
    ),
    (
        {"layers": {"*": {"granularity": "none"}}},
        "layers.*.granularity[0]: expected one of tensor, channel, block32, block64, block128, got 'none'",
    ),
    (
        {"layers": {"*": {"weight_bits": 1}}},
        "layers.*.weight_bits: expected bits from 2 to 8, or [low, high], got 1",
    ),
    (
        {"layers": {"*": {"weight_bits": [1, 8]}}},
        "layers.*.weight_bits[0]: expected a number of at least 2, got 1",
    ),
    (
        {"layers": {"*": {"weight_bits": [8, 2]}}},
        "layers.*.weight_bits: expected [low, high] with low <= high, got [8, 2]",
    ),
    ({"layers": {"*": {"sparsity": 1}}}, "layers.*.sparsity.max: expected a number less than 1, got 1"),
    (
        {"layers": {"*": {"sparsity": 0.25}}},
        "layers.*.sparsity: max 0.25 is not a whole number of steps of 0.1",
    ),
    ({"graph": {"ad": "int8"}}, "graph.ad: no family 'ad', did you mean 'add'?"),
    ({"graph": {"add": "fp32"}}, "graph.add[0]: expected one of int8, float, got 'fp32'"),
    (
        {"anchors": [{"name": "a", "layers": {"*": {"format": "int8", "granularity": "block32"}}}]},
        "anchors[0].layers.*: format int8 cannot have granularity block32",
    ),
    ({"anchors": [{"name": "a", "layers": {"*": {}}}]}, "anchors[0].layers.*.format: missing, but required"),
    (
        {"anchors": [{"name": "a", "layers": {"*": {"format": "fp32"}}}] * 2},
        "anchors: two anchors are named 'a'",
    ),
    ({"graphs": {}}, "graphs: unknown key, did you mean 'graph'?"),
]


@pytest.mark.parametrize(("change", "expected"), BAD, ids=[expected for _, expected in BAD])
def test_a_bad_space_is_one_line_with_its_file_and_key(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    source = write(tmp_path, {"version": 1, "layers": {"*": {"format": "int8"}}, **change})
    with pytest.raises(SpecError) as caught:
        load_space(source, tmp_path)
    assert str(caught.value) == f"{tmp_path / source}: {expected}"


def test_a_missing_space_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_space("no.yaml", tmp_path)
    assert str(caught.value) == f"{tmp_path / 'no.yaml'}: no such file"


def space_with(widths: object, tmp_path: Path) -> SpaceRules:
    content = {"version": 1, "layers": {"*": {"format": "fp32"}}, "rewrites": {"widths": widths}}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_space(str(path), tmp_path).rules()


@pytest.mark.parametrize(
    ("widths", "rule"),
    [
        ("off", WidthRule()),
        (False, WidthRule()),
        ([0.5, 1.0, 0.8], WidthRule((0.8, 0.5))),
        (
            {"latency": [0.65], "groups": {"*": {"min": 0.25}, "layer1.*": "full"}},
            WidthRule((0.65,), (("*", 0.25), ("layer1.*", 1.0))),
        ),
        (
            {"given": {"slim": {"*": 0.5, "layer4.*": 0.25}}, "refit": "sequential"},
            WidthRule(given=(("slim", (("*", 0.5), ("layer4.*", 0.25))),), refit=Refit.SEQUENTIAL),
        ),
        (
            {"latency": [0.5], "criterion": "magnitude"},
            WidthRule((0.5,), criterion=Criterion.MAGNITUDE),
        ),
    ],
)
def test_widths_are_off_a_list_or_a_list_with_bounds(widths: object, rule: WidthRule, tmp_path: Path) -> None:
    assert space_with(widths, tmp_path).rewrites.widths == rule


@pytest.mark.parametrize(
    ("widths", "where", "expected"),
    [
        (0.5, "widths.latency", "a list"),
        ([0.0], r"widths.latency\[0\]", "a share above 0"),
        ([1.5], r"widths.latency\[0\]", "up to 1"),
        ([0.5, 0.5], "widths.latency", "no entry twice"),
        ({"latency": [0.5], "groups": {"*": {"min": 0}}}, r"groups.\*.min", "nothing may be narrowed"),
        ({"latency": [0.5], "groups": {"*": "half"}}, r"groups.\*", "'full', or min: SHARE"),
        ({"shares": [0.5]}, "widths.shares", "unknown key"),
        ({"given": {"two words": {"*": 0.5}}}, "widths.given", "two words"),
        ({"given": {"slim": {}}}, "widths.given.slim", "at least 1"),
        ({"latency": [0.5], "given": {f"w{n}": {"*": 0.5} for n in range(8)}}, "widths", "at most 8 widths"),
        ({"given": {"slim": {"*": 0}}}, r"widths.given.slim.\*", "a share above 0"),
        ({"given": [0.5]}, "widths.given", "a mapping"),
        ({"latency": [0.5], "refit": "twice"}, "widths.refit", "nested.*sequential"),
        ({"latency": [0.5], "criterion": "taste"}, "widths.criterion", "obs.*magnitude.*fisher"),
        ([0.1 * one for one in range(1, 10)], "widths.latency", "at most 8 shares"),
    ],
)
def test_a_mistake_in_the_widths_is_one_line(
    widths: object, where: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=f"rewrites.*{where}.*{expected}"):
        space_with(widths, tmp_path)


@pytest.mark.parametrize("name", READY)
def test_ready_spaces_search_no_widths_until_they_are_switched_on(name: str, tmp_path: Path) -> None:
    assert load_space(name, tmp_path).rules().rewrites.widths == WidthRule()
