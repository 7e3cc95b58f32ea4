from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autoq.core.choices import Choice, Rewrites
from autoq.reporting.charts import Chart, Grid, Missing
from autoq.reporting.layer_charts import layer_map, sensitivity_chart
from autoq.reporting.layer_facts import LayerFacts, load_layer_facts, save_layer_facts
from autoq.reporting.plotly_figures import to_plotly
from autoq.search.outcome import Outcome
from autoq.search.records import TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeOutcome = Callable[..., Outcome]

FACTS = [
    LayerFacts("stem", "Conv", 100, 0.75, {"int8/channel/minmax w8": 45.0, "int8/channel/minmax w4": 19.9}),
    LayerFacts("head", "Gemm", 50, None, {"int8/channel/minmax w8": 30.0, "int8/channel/minmax w4": 9.0}),
    LayerFacts("odd", "Gather", 9, 0.25, {"int8/channel/minmax w8": None}),
]


def grid_of(chart: Chart | Missing) -> Grid:
    assert isinstance(chart, Chart)
    assert isinstance(chart.body, Grid)
    return chart.body


def mixed_outcome(make_outcome: MakeOutcome, make_trial: MakeTrial) -> Outcome:
    kinds = {"stem": Choice.of("int8", weight_bits=4), "head": Choice.of("fp32")}
    other = {"stem": Choice.of("int8_dynamic"), "head": Choice.of("int8")}
    return make_outcome(
        [
            make_trial(0, drop=0.005, latency_ms=2.0, choices=kinds),
            make_trial(1, drop=0.001, latency_ms=4.0, choices=other),
        ]
    )


def test_each_cell_has_the_bits_of_a_layer_in_a_front_member(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    grid = grid_of(layer_map(mixed_outcome(make_outcome, make_trial), FACTS))
    assert grid.rows == ("stem", "head")
    assert [[cell and cell.text for cell in row] for row in grid.cells] == [["4", "8d"], ["f", "8"]]
    meanings = [[grid.key[cell.shade].meaning for cell in row if cell] for row in grid.cells]
    assert meanings == [["4 bits", "8 bits"], ["float", "8 bits"]]
    assert grid.columns == ("0\n5.00x", "★ 1\n2.50x")


def test_the_same_bits_have_the_same_colour_in_every_search(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    few = grid_of(layer_map(make_outcome([make_trial(0)]), []))
    many = grid_of(layer_map(mixed_outcome(make_outcome, make_trial), []))
    assert {shade.meaning: shade.color for shade in few.key}.items() <= {
        shade.meaning: shade.color for shade in many.key
    }.items()


def test_shares_of_the_latency_stand_beside_the_layers_where_they_are_known(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    outcome = mixed_outcome(make_outcome, make_trial)
    assert grid_of(layer_map(outcome, FACTS)).row_notes == ("75.0%", "")
    unknown = layer_map(outcome, [])
    assert grid_of(unknown).row_notes == ()
    assert grid_of(unknown).rows == ("head", "stem")  # by name: nobody knows the order of the graph
    assert isinstance(unknown, Chart)
    assert "not known" in unknown.subtitle


def test_a_narrowed_layer_shows_the_share_of_its_outputs_that_is_left(
    make_outcome: MakeOutcome, make_trial: MakeTrial
) -> None:
    full, narrow = make_trial(0, latency_ms=4.0, drop=0.001), make_trial(1, latency_ms=2.0)
    narrow = replace(narrow, candidate=replace(narrow.candidate, rewrites=Rewrites(widths=(("conv", 24),))))
    facts = [
        LayerFacts("conv", "Conv", 100, 0.5, group_sizes={"conv": 32, "fc": 32}),  # its outputs are split
        LayerFacts("fc", "Gemm", 100, 0.5, group_sizes={"fc": 32}),
    ]
    chart = layer_map(make_outcome([full, narrow]), facts)
    (conv_narrow, conv_full), (fc_narrow, _) = grid_of(chart).cells
    assert conv_narrow is not None
    assert (conv_narrow.text, conv_narrow.fill) == ("8 88%", 0.875)
    assert "87.5% of its outputs" in conv_narrow.hover
    assert conv_full is not None
    assert (conv_full.text, conv_full.fill) == ("8", 1.0)
    assert fc_narrow is not None
    assert fc_narrow.fill == 1.0
    assert isinstance(chart, Chart)
    assert "share of the layer's outputs" in chart.subtitle
    cuts = to_plotly(chart).layout["shapes"]
    assert [(cut["x0"], cut["x1"], cut["y0"] > -0.5) for cut in cuts] == [(0.375, 0.5, True)]


def test_a_layer_whose_bits_only_save_bytes_says_so(make_outcome: MakeOutcome, make_trial: MakeTrial) -> None:
    grid = grid_of(layer_map(make_outcome([make_trial(0)]), []))
    (conv,), (fc,) = grid.cells
    assert conv is not None
    assert fc is not None
    assert "storage only" in conv.hover
    assert "native" in fc.hover


def test_the_most_sensitive_layer_comes_first_and_the_unknown_is_left_out() -> None:
    grid = grid_of(sensitivity_chart(FACTS))
    assert grid.rows == ("head", "stem")
    assert grid.columns == ("int8\nchannel\nminmax\n8 bits", "int8\nchannel\nminmax\n4 bits")


def test_a_shade_holds_the_ratios_it_says_it_holds() -> None:
    grid = grid_of(sensitivity_chart(FACTS))
    meanings = {cell.text: grid.key[cell.shade].meaning for row in grid.cells for cell in row if cell}
    assert meanings == {
        "45": "40 to 50 dB",
        "20": "10 to 20 dB",  # 19.9
        "30": "30 to 40 dB",
        "9": "below 10 dB",
    }


def test_without_errors_the_sensitivity_is_left_out_with_its_reason() -> None:
    missing = sensitivity_chart([LayerFacts("stem", "Conv", 1, 0.5)])
    assert isinstance(missing, Missing)
    assert "not kept" in missing.reason


def test_facts_come_back_as_they_were_and_no_file_is_no_facts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "layers.json"
    assert load_layer_facts(path) == []
    save_layer_facts(FACTS, path)
    assert load_layer_facts(path) == FACTS
    path.write_text(path.read_text()[:-100])  # cut off, as on a full disk
    assert load_layer_facts(path) == []
