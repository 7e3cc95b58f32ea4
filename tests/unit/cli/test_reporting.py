from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from autoq.spec.schema import SearchSpec

Autoq = Callable[..., Result]
Stored = Callable[..., Path]


def test_report_writes_beside_the_artifacts_of_the_search_and_prints_where(
    autoq: Autoq, stored: Stored
) -> None:
    home = stored()
    result = autoq("report", "demo", "--home", home)
    assert result.exit_code == 0
    page = home / "artifacts" / "demo" / "report.html"
    assert result.stdout == f"{page}\n"
    assert page.exists()
    assert autoq("front", "demo", "--home", home).stdout.count("report.html") == 1


def test_report_json_lists_the_files_it_wrote(autoq: Autoq, stored: Stored, tmp_path: Path) -> None:
    result = autoq("report", "demo", "--home", stored(), "--out", tmp_path / "out", "--json")
    files = json.loads(result.stdout)["files"]
    assert set(files) == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "pareto.html", "pareto.png"} <= set(files)


def test_compare_prints_who_beats_whom_and_writes_only_if_told_to(
    autoq: Autoq, stored: Stored, spec: SearchSpec, tmp_path: Path
) -> None:
    stored()
    home = stored(spec.model_copy(update={"name": "again"}))
    printed = autoq("compare", "demo", "again", "--home", home)
    assert printed.exit_code == 0
    assert "beaten by" in printed.stdout
    result = autoq("compare", "demo", "again", "--home", home, "--out", tmp_path / "out", "--json")
    content = json.loads(result.stdout)
    assert content["searches"] == ["demo", "again"]
    assert content["dominated"]["demo"]["again"] == 0  # the same trials: nobody beats anybody
    assert set(content["files"]) == {"compare.html", "compare.png"}


def test_nonsense_is_refused_in_one_line(autoq: Autoq, stored: Stored) -> None:
    home = stored()
    twice = autoq("compare", "demo", "demo", "--home", home)
    assert twice.exit_code == 2
    assert twice.stderr == (
        "autoq: error: search 'demo' is named twice (a search does not differ from itself)\n"
    )
    assert autoq("compare", "demo", "--home", home).exit_code == 2
    assert "no search named 'other'" in autoq("report", "other", "--home", home).stderr
