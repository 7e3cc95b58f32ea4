from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from autoq.core.errors import UserError
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.outcome import Outcome, build_outcome
from autoq.search.records import SearchRecord, TrialRecord
from autoq.tracking.plots import draw_pareto, plot_pareto

MakeTrial = Callable[..., TrialRecord]


@pytest.fixture
def trials(make_trial: MakeTrial) -> list[TrialRecord]:
    """Two anchors and three searched points; 0, 2 and 3 are the front, 4 breaks the budget."""
    return [
        make_trial(0, drop=0.010, latency_ms=2.0, origin="anchor int8/channel/minmax"),
        make_trial(1, drop=0.012, latency_ms=2.4, origin="anchor int8/channel/entropy"),
        make_trial(2, drop=0.004, latency_ms=3.0),
        make_trial(3, drop=0.001, latency_ms=4.0),
        make_trial(4, drop=0.002, latency_ms=6.0),
    ]


@pytest.fixture
def outcome(record: SearchRecord, goals: Goals, trials: list[TrialRecord]) -> Outcome:
    return build_outcome(record, goals, trials)


def marks(axes: Axes, label: str) -> list[tuple[float, float]]:
    """Places of the points of one kind, rounded; empty when the kind is not drawn."""
    found = [c for c in axes.collections if isinstance(c, PathCollection) and c.get_label() == label]
    return [(round(float(x), 3), round(float(y), 3)) for c in found for x, y in np.asarray(c.get_offsets())]


def segments(axes: Axes) -> list[np.ndarray]:
    """Every interval that is drawn, as its two ends."""
    return [ends for c in axes.collections if isinstance(c, LineCollection) for ends in c.get_segments()]


def lines(axes: Axes, label: str) -> list[Sequence[tuple[float, float]]]:
    return [
        [(x, y) for x, y in np.asarray(line.get_xydata())] for line in axes.lines if line.get_label() == label
    ]


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_point_is_drawn_once_as_what_it_is(outcome: Outcome) -> None:
    (axes,) = draw_pareto(outcome).axes
    assert marks(axes, "anchor") == [(2.0, 89.0), (2.4, 88.8)]
    assert marks(axes, "searched") == [(3.0, 89.6), (4.0, 89.9)]
    assert marks(axes, "infeasible") == [(6.0, 89.8)]
    assert marks(axes, "float baseline") == [(10.0, 90.0)]
    assert marks(axes, "best") == [(4.0, 89.9)]


def test_the_front_line_goes_through_the_front_and_nothing_else(outcome: Outcome) -> None:
    (axes,) = draw_pareto(outcome).axes
    (front,) = lines(axes, "front")
    assert np.allclose(front, [(2.0, 89.0), (3.0, 89.6), (4.0, 89.9)])
    (line,) = [line for line in axes.lines if line.get_label() == "front"]
    assert line.get_drawstyle() == "steps-post"  # between two points only the worse is known to exist


def test_front_members_have_a_dark_edge_and_the_infeasible_are_hollow(outcome: Outcome) -> None:
    (axes,) = draw_pareto(outcome).axes
    groups = {c.get_label(): c for c in axes.collections if isinstance(c, PathCollection)}
    assert [to_hex(edge) for edge in groups["anchor"].get_edgecolor()] == ["#222222", "#ffffff"]
    assert to_hex(groups["infeasible"].get_facecolor()[0]) == "#ffffff"
    assert to_hex(groups["anchor"].get_facecolor()[0]) != to_hex(groups["searched"].get_facecolor()[0])


def test_the_axes_say_what_they_show_and_in_which_unit(outcome: Outcome) -> None:
    (axes,) = draw_pareto(outcome).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("latency (ms)", "top1 (%)")
    assert axes.get_title(loc="left") == "digits: 5 trials, 4 feasible, 3 on the front"


def test_each_interval_of_a_front_member_is_a_line_as_long_as_it_is(outcome: Outcome) -> None:
    (axes,) = draw_pareto(outcome).axes
    drawn = [
        segment for c in axes.collections if isinstance(c, LineCollection) for segment in c.get_segments()
    ]
    upright = [segment for segment in drawn if np.allclose(segment[:, 0], 3.0)]
    assert len(drawn) == 2 * 3  # two of the five points are not on the front
    assert np.allclose(upright, [[(3.0, 89.0), (3.0, 90.0)]])


def test_a_metric_without_intervals_gets_none_for_the_accuracy(
    record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    spec = {**record.spec, "metric": {"python": "metrics.py:f1", "scope": "set"}}
    outcome = build_outcome(record.but(spec=spec), goals, [make_trial(0, interval=False)])
    (axes,) = draw_pareto(outcome).axes
    (latency,) = segments(axes)
    assert np.allclose(latency[:, 1], 0.897)  # and a user's metric is drawn in its own unit
    assert axes.get_ylabel() == "f1"


def test_the_bounds_stand_where_the_feasible_points_end(outcome: Outcome) -> None:
    (axes,) = draw_pareto(outcome).axes
    upright, level = lines(axes, "bound")
    assert [x for x, _ in upright] == [5.0, 5.0]
    assert [y for _, y in level] == pytest.approx([88.0, 88.0])
    assert {text.get_text() for text in axes.texts} == {
        "≤ 5 ms",
        "drop ≤ 2 pt",
        "best: trial 3\n−0.1 pt, 2.5x",
    }


def test_a_relative_budget_is_drawn_in_milliseconds_and_the_tighter_one_counts(
    record: SearchRecord, goals: Goals, trials: list[TrialRecord]
) -> None:
    bounds = Constraints(max_latency_ms=5.0, max_latency_ratio=0.35)
    outcome = build_outcome(record, replace(goals, constraints=bounds), trials)
    (axes,) = draw_pareto(outcome).axes
    (upright,) = lines(axes, "bound")
    assert upright[0][0] == pytest.approx(3.5)


def test_latencies_that_differ_more_than_tenfold_get_a_logarithmic_axis(
    record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    for latency_ms, scale in ((1.1, "linear"), (0.9, "log")):  # the baseline takes 10 ms
        outcome = build_outcome(record, goals, [make_trial(0, latency_ms=latency_ms)])
        assert draw_pareto(outcome).axes[0].get_xscale() == scale


def test_a_collapsed_candidate_is_drawn_on_the_edge_and_does_not_flatten_the_rest(
    record: SearchRecord, goals: Goals, trials: list[TrialRecord], make_trial: MakeTrial
) -> None:
    collapsed = make_trial(5, drop=0.8, latency_ms=1.9)
    (axes,) = draw_pareto(build_outcome(record, goals, [*trials, collapsed])).axes
    ((x, _),) = marks(axes, "off the scale")
    assert x == 1.9
    assert axes.get_ylim()[0] > 80.0


def test_without_a_feasible_point_the_nearest_is_named(
    record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    far, near = make_trial(0, latency_ms=9.0), make_trial(1, drop=0.03, latency_ms=5.1)
    (axes,) = draw_pareto(build_outcome(record, goals, [far, near])).axes
    assert marks(axes, "nearest to feasible") == [(5.1, 87.0)]
    assert marks(axes, "best") == marks(axes, "searched") == []
    assert len(marks(axes, "infeasible")) == 2


def test_bytes_as_an_objective_get_a_panel_of_their_own(
    record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    bounds = Constraints(max_bundle_bytes=600_000)
    three = Goals((Objective.ACCURACY, Objective.LATENCY, Objective.STORAGE), bounds)
    trials = [make_trial(0, size_bytes=1_000_000), make_trial(1, size_bytes=3_000_000)]
    _, panel = draw_pareto(build_outcome(record, three, trials)).axes
    assert panel.get_xlabel() == "bundle (MB)"
    assert marks(panel, "searched") == [(0.5, 89.7)]
    assert marks(panel, "infeasible") == [(1.5, 89.7)]
    assert [x for x, _ in lines(panel, "bound")[0]] == [0.6, 0.6]


def test_where_lower_is_better_intervals_bounds_and_collapses_turn_round(
    record: SearchRecord, goals: Goals, make_trial: MakeTrial
) -> None:
    down = replace(goals, maximize=False)
    trial = make_trial(0, drop=0.01)
    assert trial.measurement is not None
    accuracy = replace(trial.measurement.accuracy, value=0.91)  # the baseline's 0.9 and a drop of 0.01
    trial = replace(trial, measurement=replace(trial.measurement, accuracy=accuracy))
    spec = {**record.spec, "metric": {"python": "metrics.py:loss"}}
    (axes,) = draw_pareto(build_outcome(record.but(spec=spec), down, [trial])).axes
    assert any(np.allclose(sorted(ends[:, 1]), [0.906, 0.916]) for ends in segments(axes))
    assert lines(axes, "bound")[1][0][1] == pytest.approx(0.92)
    assert axes.get_ylabel() == "loss, lower is better"


def test_the_legend_lies_below_the_panels_and_names_only_what_is_drawn(outcome: Outcome) -> None:
    figure = draw_pareto(outcome)
    figure.draw_without_rendering()
    assert set(legend_labels(figure)) == {
        "searched",
        "anchor",
        "infeasible",
        "front",
        "float baseline",
        "best",
        "bound",
    }
    panel, legend = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert legend.y1 < panel.y0


def test_the_text_at_the_best_point_covers_no_point(outcome: Outcome) -> None:
    figure = draw_pareto(outcome)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    (text,) = [text for text in axes.texts if text.get_text().startswith("best")]
    box = text.get_window_extent()
    places = [
        axes.transData.transform(place) for kind in ("searched", "anchor") for place in marks(axes, kind)
    ]
    assert not [place for place in places if box.contains(*place)]


def test_a_png_is_a_picture_wide_enough_for_a_readme_and_not_blank(outcome: Outcome, tmp_path: Path) -> None:
    plot_pareto(outcome, tmp_path / "pareto.png")
    picture = imread(tmp_path / "pareto.png")
    assert picture.shape[:2] == (750, 1200)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50


def test_an_svg_is_well_formed(outcome: Outcome, tmp_path: Path) -> None:
    plot_pareto(outcome, tmp_path / "pareto.svg")
    root = ElementTree.parse(tmp_path / "pareto.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_search_without_a_measured_trial_still_shows_its_baseline(
    record: SearchRecord, goals: Goals
) -> None:
    figure = draw_pareto(build_outcome(record, goals, []))
    assert marks(figure.axes[0], "float baseline") == [(10.0, 90.0)]
    assert "front" not in legend_labels(figure)


def test_a_file_name_that_is_no_picture_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'pareto\.jpg' \(expected a name ending in \.png or \.svg\)"):
        plot_pareto(outcome, tmp_path / "pareto.jpg")


def test_a_search_without_a_baseline_is_refused(record: SearchRecord, goals: Goals, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'digits' has no baseline"):
        plot_pareto(build_outcome(record.but(baseline=None), goals, []), tmp_path / "pareto.png")
