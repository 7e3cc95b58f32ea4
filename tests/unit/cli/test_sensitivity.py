from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from autoq.assembly.local_errors import LocalError
from autoq.cli import sensitivity as shown
from autoq.cli.views import inspection_json, sensitivity_json
from autoq.core.choices import AS_IT_IS, Choice, Rewrites
from autoq.core.layers import Layer, ModelSummary
from autoq.inspecting import ChoiceError, Column, Inspection, Sensitivity

LAYERS = (
    Layer("embed", "Gather", (10, 4), 0),
    Layer("conv", "Conv", (8, 3, 3, 3), 0),
    Layer("fc", "Gemm", (4, 8), 0),
    Layer("gru", "GRU", (1, 12, 8), 1),
)
MINMAX, MSE, WEIGHT = "int8/channel/minmax", "int8/channel/mse", "int8_weight/block32"


def noise(label: str, bits: int, relative: float | None, rounding: str = "nearest") -> ChoiceError:
    """A choice whose error is a share of an energy of 4; half of it the activation's."""
    energy = 0.0 if relative is None else 4.0
    half = 2.0 * (relative or 0.0)
    choice = Choice.from_label(label, weight_bits=bits, rounding=rounding)
    return ChoiceError(choice, LocalError(half, half, energy))


def made(rewrites: Rewrites = AS_IT_IS) -> Sensitivity:
    """Two static labels on the convolution and the classifier, one of weights on the embedding."""
    return Sensitivity(
        "demo",
        16,
        rewrites,
        {
            "embed": (noise(WEIGHT, 8, None),),
            "conv": (
                noise(MINMAX, 8, 1e-3),
                noise(MINMAX, 4, 0.2),
                noise(MSE, 8, 1e-4),
                noise(MSE, 4, 0.1),
                noise(MSE, 4, 0.05, rounding="gptq"),
            ),
            "fc": (noise(MINMAX, 8, 0.1), noise(MSE, 8, 1e-2), noise(MSE, 4, 0.5)),
            "gru": (),
        },
    )


@pytest.fixture
def inspection() -> Inspection:
    summary = ModelSummary("d1", (), (), LAYERS, (), 1234)
    return Inspection(summary, {"conv": 0.75, "fc": 0.05}, {layer.name: {} for layer in LAYERS})


def printed(inspection: Inspection, sensitivity: Sensitivity, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    shown.print_uncut(console, shown.sensitivity_table(inspection, sensitivity))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def row_of(lines: list[str], layer: str) -> list[str]:
    return next(line.split() for line in lines if line.startswith(f"{layer} "))


@pytest.mark.parametrize(("relative", "ratio_db"), [(0.1, 10.0), (0.01, 20.0), (1.0, 0.0), (2.0, -3.0103)])
def test_the_ratio_is_ten_times_the_logarithm_of_energy_over_noise(relative: float, ratio_db: float) -> None:
    assert noise(MINMAX, 8, relative).sqnr_db == pytest.approx(ratio_db, abs=1e-4)


def test_no_error_is_an_infinite_ratio_and_unknown_inputs_are_none() -> None:
    assert noise(MINMAX, 8, 0.0).sqnr_db == math.inf
    assert noise(MINMAX, 8, None).sqnr_db is None


def test_every_label_has_a_column_and_only_the_best_one_has_its_narrower_bits() -> None:
    assert made().columns == (
        Column(WEIGHT, 8),
        Column(MINMAX, 8),
        Column(MSE, 8),
        Column(MSE, 4, is_widest=False),
    )


def test_a_cell_is_the_best_rounding_and_grid() -> None:
    assert made().sqnr_db("conv", Column(MSE, 4, is_widest=False)) == pytest.approx(-10 * math.log10(0.05))


def test_widest_means_the_widest_that_a_layer_has_and_narrower_bits_are_exactly_those() -> None:
    uneven = Sensitivity(
        "demo",
        1,
        AS_IT_IS,
        {
            "conv": (noise(MSE, 8, 1e-3), noise(MSE, 6, 1e-2)),
            "fc": (noise(MSE, 6, 0.1), noise(MSE, 4, 0.5)),
        },
    )
    widest, six, four = uneven.columns
    assert (widest.bits, six.bits, four.bits) == (8, 6, 4)
    assert uneven.sqnr_db("fc", widest) == pytest.approx(10.0)
    assert uneven.sqnr_db("fc", six) == pytest.approx(10.0)
    assert not uneven.offers("conv", four)


def test_the_most_sensitive_layer_is_first_and_those_without_an_estimate_are_last() -> None:
    assert made().most_sensitive_first() == ["fc", "conv", "embed", "gru"]


def test_layers_are_compared_within_columns_so_that_few_bits_make_no_layer_sensitive() -> None:
    uneven = Sensitivity(
        "demo",
        1,
        AS_IT_IS,
        {
            "robust, only 4 bits": (noise("int4_weight/block32", 4, 0.02),),
            "fragile, only 8 bits": (noise(MSE, 8, 0.01),),
            "both": (noise(MSE, 8, 0.001), noise("int4_weight/block32", 4, 0.05)),
        },
    )
    assert uneven.most_sensitive_first() == ["fragile, only 8 bits", "both", "robust, only 4 bits"]


def test_noise_that_no_model_minds_does_not_order_layers() -> None:
    halves = Sensitivity(
        "demo",
        1,
        AS_IT_IS,
        {
            "conv": (noise("fp16", 16, 1e-8), noise(MSE, 8, 1e-4)),
            "fc": (noise("fp16", 16, 0.0), noise(MSE, 8, 1e-3)),
        },
    )
    assert halves.most_sensitive_first() == ["fc", "conv"]


def test_the_table_has_parameters_shares_and_ratios_of_every_layer(inspection: Inspection) -> None:
    lines = printed(inspection, made())
    assert row_of(lines, "fc") == ["fc", "Gemm", "32", "5.0%", "10.0", "20.0", "3.0"]
    assert row_of(lines, "conv") == ["conv", "Conv", "216", "75.0%", "30.0", "40.0", "13.0"]
    assert row_of(lines, "embed") == ["embed", "Gather", "40", "?"]
    assert row_of(lines, "gru") == ["gru", "GRU", "96"]


def test_the_headings_name_each_part_of_a_label_and_the_bits(inspection: Inspection) -> None:
    lines = printed(inspection, made())
    assert lines[0].split() == ["int8"] * 4
    assert lines[1].split() == ["weight", "channel", "channel", "channel"]
    assert lines[3].split()[-8:] == ["8", "bits", "8", "bits", "8", "bits", "4", "bits"]
    assert shown.column_heading(Column("int8/channel/percentile99.99", 8)) == "int8\nchannel\np99.99\n8 bits"


def test_the_table_is_not_cut_on_a_narrow_terminal(inspection: Inspection) -> None:
    assert printed(inspection, made(), width=30) == printed(inspection, made(), width=200)


def test_an_error_of_zero_is_called_exact(inspection: Inspection) -> None:
    exact = Sensitivity("demo", 1, AS_IT_IS, {"fc": (noise(MINMAX, 8, 0.0),)})
    assert row_of(printed(inspection, exact), "fc")[-1] == "exact"


def test_a_space_with_nothing_but_floats_still_gives_a_table(inspection: Inspection) -> None:
    nothing = Sensitivity("demo", 1, AS_IT_IS, {layer.name: () for layer in LAYERS})
    assert row_of(printed(inspection, nothing), "conv") == ["conv", "Conv", "216", "75.0%"]
    assert shown.build_map(inspection, nothing).sqnr_db.shape == (4, 0)


def test_the_heading_explains_the_unit_the_source_and_the_rewrites() -> None:
    text = " ".join(shown.heading_lines(made(Rewrites(equalize=True))))
    for fact in (
        "SQNR in dB",
        "16 calibration examples",
        "(equalize)",
        "20 dB 1 %",
        "most sensitive",
        "?: no",
    ):
        assert fact in text
    assert "rewritten" not in " ".join(shown.heading_lines(made()))


def test_the_json_has_every_choice_and_null_where_nothing_is_known() -> None:
    content = json.loads(json.dumps(sensitivity_json(made()), allow_nan=False))
    assert [len(errors) for errors in content["layers"].values()] == [1, 5, 3, 0]
    assert list(content["layers"]) == ["embed", "conv", "fc", "gru"]
    last = content["layers"]["conv"][-1]
    assert (last["label"], last["weight_bits"], last["rounding"]) == (MSE, 4, "gptq")
    assert (last["relative_error"], last["output_energy"]) == (pytest.approx(0.05), 4.0)
    assert last["weight_error"] == last["activation_error"] == pytest.approx(0.1)
    (unknown,) = content["layers"]["embed"]
    assert unknown["sqnr_db"] is unknown["relative_error"] is unknown["weight_error"] is None


def test_an_error_of_zero_is_no_infinity_in_the_json() -> None:
    exact = Sensitivity("demo", 1, AS_IT_IS, {"fc": (noise(MINMAX, 8, 0.0),)})
    (one,) = json.loads(json.dumps(sensitivity_json(exact), allow_nan=False))["layers"]["fc"]
    assert (one["sqnr_db"], one["relative_error"]) == (None, 0.0)


def test_without_a_spec_the_json_of_a_layer_has_no_space(inspection: Inspection) -> None:
    assert all("space" not in layer for layer in inspection_json(inspection)["layers"])


def test_the_map_keeps_the_order_of_the_graph_and_tells_unknown_from_not_offered(
    inspection: Inspection,
) -> None:
    drawn = shown.build_map(inspection, made())
    assert drawn.layers == ["embed", "conv", "fc", "gru"]
    assert drawn.offered.tolist() == [
        [True, False, False, False],
        [False, True, True, True],
        [False, True, True, True],
        [False] * 4,
    ]
    assert np.isnan(drawn.sqnr_db[0]).all()
    assert drawn.sqnr_db[2, 1:] == pytest.approx([10.0, 20.0, 3.0103], abs=1e-4)
    assert drawn.latency_share[1] == 0.75
    assert np.isnan(drawn.latency_share[0])
