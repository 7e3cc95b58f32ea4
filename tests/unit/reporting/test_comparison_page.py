from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autoq.reporting.charts import Plot
from autoq.reporting.comparison import compare
from autoq.reporting.comparison_page import comparison_chart, write_comparison
from autoq.search.outcome import Outcome

MakeOutcome = Callable[..., Outcome]


def test_the_picture_has_a_front_of_each_search_in_a_look_of_its_own(make_outcome: MakeOutcome) -> None:
    body = comparison_chart(compare([make_outcome(name="a"), make_outcome(name="b")])).body
    assert isinstance(body, Plot)
    assert [dots.label for dots in body.dots] == ["a", "b"]
    assert len({dots.role for dots in body.dots}) == 2
    assert [(round(dot.x, 6), round(dot.y, 6)) for dot in body.dots[0].dots] == [
        (20.0, 1.0),
        (30.0, 0.4),
        (40.0, 0.1),
    ]
    assert body.dots[0].dots[0].x_interval == pytest.approx((100 / 5.15, 100 / 4.85))


def test_page_and_picture_are_written_and_the_page_has_a_row_for_each_member(
    make_outcome: MakeOutcome, tmp_path: Path
) -> None:
    comparison = compare([make_outcome(name="a"), make_outcome(name="b")])
    files = write_comparison(comparison, tmp_path / "out")
    assert set(files) == {"compare.html", "compare.png"}
    page = files["compare.html"].read_text()
    assert page.count('<tr><th scope="row"') == len(comparison.members) == 6
    assert files["compare.png"].read_bytes().startswith(b"\x89PNG")
