from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from autoq.core.errors import UserError
from autoq.reporting.layer_facts import LayerFacts
from autoq.reporting.pictures import Content, draw_pictures
from autoq.reporting.static_figures import draw_static
from autoq.reporting.writing import write_report
from autoq.search.outcome import Outcome
from autoq.search.records import TrialRecord

FACTS = [LayerFacts("conv", "Conv", 10, 0.9, {"int8/channel/minmax w8": 40.0})]


def test_the_report_and_every_picture_twice_are_written(
    outcome: Outcome, trials: list[TrialRecord], tmp_path: Path
) -> None:
    content = Content(outcome, trials, FACTS)
    files = write_report(content, tmp_path / "a" / "b")
    slugs = [chart.slug for chart in draw_pictures(content)[0]]
    expected = {"report.html", "pareto.svg", *(f"{s}.html" for s in slugs), *(f"{s}.png" for s in slugs)}
    assert set(files) == expected == {path.name for path in (tmp_path / "a" / "b").iterdir()}
    for path in files.values():
        if path.suffix == ".png":
            image = imread(path)
            assert min(image.shape[:2]) > 200
            assert 0.001 < np.mean(image[..., :3].min(axis=2) < 0.9) < 0.9  # neither blank nor black


def test_a_folder_that_cannot_be_written_is_one_clear_line(
    outcome: Outcome, trials: list[TrialRecord], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(Content(outcome, trials), tmp_path / "file")


def test_a_static_picture_shows_the_same_points_and_bars_as_the_page(
    outcome: Outcome, trials: list[TrialRecord]
) -> None:
    (axes,) = draw_static(draw_pictures(Content(outcome, trials))[0][0], "digits").axes
    marks = {c.get_label(): np.round(np.asarray(c.get_offsets()), 3).tolist() for c in axes.collections}
    assert marks["anchor"] == [[2.0, 89.0], [2.4, 88.8]]
    assert marks["infeasible"] == [[6.0, 89.8]]
    assert axes.get_xlabel() == "latency (ms)"
    assert axes.get_ylabel() == "top1 (%)"


def test_a_static_grid_writes_every_cell(outcome: Outcome, trials: list[TrialRecord]) -> None:
    charts = {chart.slug: chart for chart in draw_pictures(Content(outcome, trials, FACTS))[0]}
    (axes,) = draw_static(charts["layer-map"], "digits").axes
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("8") == len(outcome.front)
    assert texts.count("f") == len(outcome.front)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv", "fc"]
