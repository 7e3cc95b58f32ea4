"""The report of a search that really ran: what the search leaves at its end, and what commands write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_case import NAME, run_autoq

from autoq.testing.bench import INT8

LAYERS = ["stem", "block.conv1", "block.conv2", "fc"]


def test_the_end_of_a_search_leaves_the_report_and_what_is_known_of_the_layers(finished: Any) -> None:
    folder = finished.home / "artifacts" / NAME
    assert {"report.html", "pareto.html", "layer-map.png", "layer-sensitivity.png"} <= {
        path.name for path in folder.iterdir()
    }
    layers = json.loads((folder / "layers.json").read_text())["layers"]
    assert len(layers) == len(LAYERS)
    assert sum(layer["latency_share"] or 0.0 for layer in layers) == pytest.approx(0.7, abs=0.3)
    for layer in layers:
        by_bits = [layer["sqnr_db"][f"int8/channel/minmax w{bits}"] for bits in (4, INT8.weight_bits)]
        assert by_bits[0] < by_bits[1]  # fewer bits, more noise


def test_the_report_is_written_where_it_is_asked_for_and_tells_what_front_tells(
    finished: Any, tmp_path: Path
) -> None:
    ran = run_autoq("report", NAME, "--home", finished.home, "--out", tmp_path / "out", "--json")
    assert ran.returncode == 0, ran.stderr
    files = json.loads(ran.stdout)["files"]
    page = Path(files["report.html"]).read_text()
    for point in finished.report["front"]:
        assert f'data-trial="{point["trial"]}"' in page
    assert f"Best point: trial {finished.report['best']}" in page
    assert str(finished.home.parent) not in page  # no path of the machine


def test_comparing_a_search_with_itself_is_refused(finished: Any) -> None:
    ran = run_autoq("compare", NAME, NAME, "--home", finished.home)
    assert ran.returncode == 2
    assert "named twice" in ran.stderr
