"""The page: it needs nothing but itself, says what it shows, and gives nothing away."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects as go
import pytest

from autoq.reporting.html_page import picture_page
from autoq.reporting.layer_facts import LayerFacts
from autoq.reporting.palette import THEMES, painted
from autoq.reporting.pictures import Content, draw_pictures
from autoq.reporting.report_page import write_page
from autoq.search.hindsight import optimism_of
from autoq.search.outcome import Outcome
from autoq.search.records import SearchRecord, SearchState, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeOutcome = Callable[..., Outcome]

FACTS = [
    LayerFacts("conv", "Conv", 10, 0.9, {"int8/channel/minmax w8": 40.0}),
    LayerFacts("fc", "Gemm", 5, 0.1),
]


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        self._inside = attributes.get("id", tag)

    def handle_data(self, data: str) -> None:
        self.texts[self._inside] = self.texts.get(self._inside, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def json(self, name: str) -> Any:
        return json.loads(self.texts[name])


@pytest.fixture
def content(make_outcome: MakeOutcome, trials: list[TrialRecord]) -> Content:
    return Content(make_outcome(holds="yes"), trials, FACTS)


@pytest.fixture
def page(content: Content) -> Page:
    return Page(write_page(content))


def test_nothing_is_loaded_from_anywhere(content: Content) -> None:
    text = write_page(content)
    loading = [
        value
        for _, attributes in Page(text).elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "poster", "action")
    ]
    assert loading == ["data:,"]  # an icon of nothing, so that no server is asked for one
    style = text[text.index("<style>") : text.index("</style>")]
    assert re.search(r"@import|url\(", style) is None


def test_plotly_is_in_the_page_once_and_whole(page: Page) -> None:
    from plotly.offline import get_plotlyjs

    assert [attributes.get("id") for attributes in page.all("script")].count("plotly") == 1
    assert gzip.decompress(base64.b64decode(page.texts["plotly"])).decode() == get_plotlyjs()


def test_every_picture_has_a_title_and_words_for_those_who_cannot_see_it(
    content: Content, page: Page
) -> None:
    charts, missing = draw_pictures(content)
    assert [chart.slug for chart in charts] == [
        "pareto", "pareto-storage", "marginal", "layer-map", "layer-sensitivity", "progress", "time"
    ]  # fmt: skip
    assert [one.title for one in missing] == ["Predicted against measured latency"]
    assert [figure["id"] for figure in page.all("figure")] == [f"picture-{chart.slug}" for chart in charts]
    titles = {attributes["id"] for attributes in page.all("h2") if "id" in attributes}
    assert {figure["aria-labelledby"] for figure in page.all("figure")} <= titles
    plots = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert [plot["aria-label"] for plot in plots] == [chart.alt for chart in charts]
    assert all(len(chart.alt) > 30 for chart in charts)


def test_ids_are_unique(page: Page) -> None:
    counted = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, n in counted.items() if n > 1] == []


@pytest.mark.parametrize("scheme", THEMES)
def test_plotly_takes_every_figure_in_both_schemes(page: Page, scheme: str) -> None:
    for figure in page.json("figures").values():
        ready = painted(figure, scheme)
        assert not re.search(r'"@\w+"', json.dumps(ready))  # every colour has a value
        go.Figure(ready)  # raises on a property or value that plotly does not know


def test_the_dots_in_the_page_are_those_of_the_search(page: Page, outcome: Outcome) -> None:
    traces = page.json("figures")["pareto"]["data"]
    drawn = {x for trace in traces if trace["mode"] == "markers" for x in trace["x"]}
    assert drawn == {point.measurement.latency.latency_ms for point in outcome.points} | {10.0}
    (searched,) = [trace for trace in traces if trace["name"] == "searched"]
    assert searched["error_x"]["array"] == pytest.approx([0.09, 0.12])
    assert searched["error_y"]["arrayminus"] == pytest.approx([0.6, 0.6])


def test_the_page_names_its_data_and_no_path_of_the_machine(content: Content) -> None:
    text = write_page(content)
    for said in ("digits.onnx", "onnxruntime 1.31, 1 thread, batch size 4", "Xeon", "2023-11-14 22:13 UTC",
                 "±1.3%", "500 in the search split, 300 in the test split", "tpe, seed 7",
                 "latency ≤ 5 ms, drop ≤ 0.02"):  # fmt: skip
        assert said in text
    assert "/home" not in text[: text.index('id="plotly"')]


def test_the_table_has_a_row_for_each_member_and_marks_the_best(page: Page, outcome: Outcome) -> None:
    rows = [attributes for attributes in page.all("tr") if "data-trial" in attributes]
    assert [int(row["data-trial"]) for row in rows] == [point.trial.number for point in outcome.front]
    assert [row["data-trial"] for row in rows if row.get("class") == "best"] == ["3"]


@pytest.mark.parametrize(
    ("holds", "said", "warned"),
    [("yes", "It holds on", False), ("no", "does NOT hold", True), ("undecided", "It is undecided", False)],
)
def test_the_page_says_whether_the_best_point_holds_and_how_optimistic_the_search_was(
    make_outcome: MakeOutcome, trials: list[TrialRecord], holds: str, said: str, warned: bool
) -> None:
    page = Page(write_page(Content(make_outcome(holds=holds), trials)))
    assert said in page.texts["holds"]
    assert "+1.90 pt" in page.texts["holds"]  # 2 points on the test split, 0.1 on the search split
    (line,) = [attributes for attributes in page.all("p") if attributes.get("id") == "holds"]
    assert (line.get("class") == "warning") is warned


def test_without_a_test_split_there_is_no_optimism_and_the_page_says_so(
    outcome: Outcome, trials: list[TrialRecord]
) -> None:
    assert outcome.best is not None
    assert optimism_of(outcome.best) is None
    assert "has not been used" in Page(write_page(Content(outcome, trials))).texts["holds"]


def test_names_are_text_wherever_they_stand(make_outcome: MakeOutcome, make_trial: MakeTrial) -> None:
    evil = '</script><script>alert(1)</script><img src="https://x/y">'
    trials = [make_trial(n, origin=evil, drop=0.01 - 0.002 * n, latency_ms=2.0 + n) for n in range(2)]
    page = Page(write_page(Content(make_outcome(trials, message=evil), trials)))
    assert page.all("img") == []
    assert len(page.all("script")) == 4
    assert evil.replace("<", "&lt;").replace(">", "&gt;") in json.dumps(page.json("figures")).replace(
        '\\"', '"'
    )


def test_a_picture_alone_is_a_page_too(content: Content) -> None:
    chart = draw_pictures(content)[0][0]
    page = Page(picture_page(chart, "digits"))
    assert page.texts["title"].strip() == "Accuracy against latency: digits"
    assert list(page.json("figures")) == ["pareto"]


def test_a_search_without_trials_has_a_page_without_pictures(make_outcome: MakeOutcome) -> None:
    page = Page(write_page(Content(make_outcome([], state=SearchState.RUNNING), [])))
    assert page.all("figure") == []
    assert "The search is running" in page.texts["lead"]


def test_nothing_feasible_is_said_first(make_outcome: MakeOutcome, make_trial: MakeTrial) -> None:
    trials = [make_trial(0, latency_ms=7.0)]
    page = Page(write_page(Content(make_outcome(trials), trials)))
    assert "Nothing keeps every bound" in page.texts["lead"]


def test_a_search_of_another_metric_is_written_in_its_own_unit(
    make_outcome: MakeOutcome, record: SearchRecord, trials: list[TrialRecord]
) -> None:
    spec = {**record.spec, "metric": {"python": "metrics.py:f1", "scope": "set"}}
    page = Page(write_page(Content(make_outcome(spec=spec), trials)))
    assert "0.0010 worse in f1" in page.texts["lead"]


def test_a_nearest_point_whose_scoring_was_stopped_is_called_an_estimate(
    make_outcome: MakeOutcome, trials: list[TrialRecord]
) -> None:
    found = next(trial for trial in trials if trial.measurement is not None)
    assert found.measurement is not None
    accuracy = replace(found.measurement.accuracy, is_estimate=True, n_examples=128)
    raced = replace(found, measurement=replace(found.measurement, accuracy=accuracy))
    outcome = make_outcome([raced])
    assert outcome.nearest is not None
    page = write_page(Content(outcome, [raced], FACTS))
    assert "an estimate, scoring stopped after 128 examples of the search split" in page
