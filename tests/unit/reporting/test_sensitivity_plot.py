"""The heat map; its module lies in tracking, where plots are at home."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from autoq.core.errors import UserError
from autoq.reporting.sensitivity_plot import (
    SensitivityMap,
    check_plot_path,
    draw_sensitivity,
    plot_sensitivity,
)


def some_map(n_layers: int = 4, n_columns: int = 3) -> SensitivityMap:
    rng = np.random.default_rng(0)
    ratios = rng.uniform(0.0, 60.0, (n_layers, n_columns))
    ratios[0, 0], ratios[-1, -1] = np.nan, np.inf
    shares = rng.dirichlet(np.ones(n_layers))
    shares[-1] = np.nan
    return SensitivityMap(
        title="demo: local error of each layer's choices",
        subtitle="from statistics of 16 calibration examples",
        layers=[f"encoder.layer.{index}.attention.output" for index in range(n_layers)],
        columns=[f"int8\ndynamic\nchannel\nminmax\n{8 - column} bits" for column in range(n_columns)],
        sqnr_db=ratios,
        offered=np.ones((n_layers, n_columns), np.bool_),
        latency_share=shares,
    )


def hatched(axes: Axes) -> list[tuple[float, float]]:
    return [one.get_xy() for one in axes.patches if isinstance(one, Rectangle) and one.get_hatch()]


def test_every_cell_has_its_colour_and_figure_in_the_order_given() -> None:
    content = some_map()
    heat, shares, _ = draw_sensitivity(content).axes
    (mesh,) = [one for one in heat.collections if isinstance(one, QuadMesh)]
    drawn: np.ndarray[Any, Any] = np.ma.asarray(mesh.get_array()).data.reshape(4, 3)
    known = np.isfinite(content.sqnr_db)
    assert np.array_equal(drawn[known], content.sqnr_db[known])
    figures = {text.get_position(): text.get_text() for text in heat.texts}
    assert figures[1, 2] == f"{content.sqnr_db[2, 1]:.0f}"
    assert figures[2, 3] == "exact"
    assert (0, 0) not in figures
    assert heat.get_ylim() == (3.5, -0.5)  # the first layer is at the top
    assert [label.get_text() for label in heat.get_yticklabels()] == content.layers
    bars = [one.get_width() for one in shares.patches if isinstance(one, Rectangle)]
    assert bars == pytest.approx([*(100 * content.latency_share[:-1]), 0.0])
    assert shares.texts[-1].get_text() == "not known"


def test_only_what_is_offered_without_an_estimate_is_hatched() -> None:
    content = some_map()
    heat = draw_sensitivity(content).axes[0]
    assert hatched(heat) == [(-0.5, -0.5)]
    content.offered[0, 0] = False
    heat = draw_sensitivity(content).axes[0]
    assert hatched(heat) == []


def test_title_and_scale_tell_what_is_shown_and_its_unit() -> None:
    figure = draw_sensitivity(some_map())
    assert figure.texts[0].get_text().startswith("demo: ")
    assert "dB" in figure.axes[2].get_xlabel()


@pytest.mark.parametrize("n_layers", [1, 100])
def test_names_and_headings_lie_within_the_figure_and_cover_nothing(n_layers: int) -> None:
    figure = draw_sensitivity(some_map(n_layers, 12))
    figure.draw_without_rendering()
    heat, shares, scale = figure.axes
    for label in (*heat.get_yticklabels(), *heat.get_xticklabels(), shares.title):
        box = label.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.texts[1].get_window_extent().y0
    boxes = [label.get_window_extent() for label in heat.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))
    headings = [label.get_window_extent() for label in heat.get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(headings))
    assert scale.get_window_extent().y1 < heat.get_window_extent().y0


def test_a_thousand_layers_still_make_a_figure_of_bounded_height() -> None:
    figure = draw_sensitivity(some_map(1000, 2))
    assert figure.get_size_inches()[1] < 65
    assert not figure.axes[0].texts
    assert 100 < len(figure.axes[0].get_yticklabels()) < 1000


def test_a_png_is_a_picture_of_sane_size_and_not_blank(tmp_path: Path) -> None:
    plot_sensitivity(some_map(), tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    picture = imread(tmp_path / "map.png")
    assert 300 < picture.shape[0] < 600
    assert 1000 < picture.shape[1] < 1500
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50


def test_an_svg_is_well_formed(tmp_path: Path) -> None:
    plot_sensitivity(some_map(), tmp_path / "map.svg")
    assert ElementTree.parse(tmp_path / "map.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_space_without_choices_is_drawn_without_cells(tmp_path: Path) -> None:
    plot_sensitivity(some_map(2, 1), tmp_path / "one.png")
    empty = SensitivityMap(
        "demo", "", ["fc"], [], np.zeros((1, 0)), np.zeros((1, 0), np.bool_), np.array([np.nan])
    )
    plot_sensitivity(empty, tmp_path / "none.png")


@pytest.mark.parametrize("name", ["map.jpg", "map"])
def test_a_file_name_that_is_no_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"expected a name ending in \.png or \.svg"):
        check_plot_path(tmp_path / name)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its folder does not exist"):
        plot_sensitivity(some_map(), tmp_path / "none" / "map.png")
