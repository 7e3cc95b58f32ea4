from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Autoq = Callable[..., Result]


Stored = Callable[..., Path]


def test_delete_refuses_without_a_terminal_and_without_yes(autoq: Autoq, stored: Stored) -> None:
    home = stored()
    result = autoq("delete", "demo", "--home", home)
    assert result.exit_code == 2
    assert "use --yes" in result.stderr
    assert autoq("front", "demo", "--home", home).exit_code == 0


def test_delete_with_yes_deletes(autoq: Autoq, stored: Stored) -> None:
    home = stored()
    assert autoq("delete", "demo", "--home", home, "--yes").exit_code == 0
    assert json.loads(autoq("list", "--home", home, "--json").stdout) == {"searches": []}


def test_delete_of_an_unknown_search_is_refused(autoq: Autoq, home: Path) -> None:
    result = autoq("delete", "demo", "--home", home, "--yes")
    assert result.exit_code == 2
    assert "no search named 'demo'" in result.stderr


def test_export_needs_a_folder_to_write_to(autoq: Autoq, stored: Stored) -> None:
    assert autoq("export", "demo", "--home", stored()).exit_code == 2


def test_export_of_a_point_that_is_not_there_writes_nothing(
    autoq: Autoq, stored: Stored, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = autoq("export", "demo", "--home", stored(), "--out", out, "--select", "cheapest")
    assert result.exit_code == 2
    assert "expected best, knee, fastest, smallest or a trial number" in result.stderr
    assert not out.exists()


def test_apply_of_a_missing_recipe_is_one_line(autoq: Autoq, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = autoq("apply", tmp_path / "recipe.yaml", "--model", tmp_path / "m.onnx", "--out", out)
    assert result.exit_code == 2
    assert "recipe.yaml" in result.stderr
    assert not out.exists()


def test_an_unknown_bundle_format_is_refused_before_anything_is_written(
    autoq: Autoq, stored: Stored, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = autoq("export", "demo", "--home", stored(), "--out", out, "--bundle-format", "zip")
    assert result.exit_code == 2
    assert "known formats: native, hdf5, safetensors" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100), b"\x93AUTOQ\r\n", b"AUTOQH5\n"])
def test_unbundle_of_something_else_is_one_line(autoq: Autoq, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.autoq").write_bytes(content)
    result = autoq("unbundle", tmp_path / "model.autoq", "--out", tmp_path / "model.onnx")
    assert result.exit_code == 2
    assert "model.autoq: not a bundle that autoq wrote" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.autoq"]


def test_ui_over_a_tracking_server_points_there(autoq: Autoq, home: Path) -> None:
    result = autoq("ui", "--home", home, env={"MLFLOW_TRACKING_URI": "http://tracking:5000"})
    assert result.exit_code == 2
    assert "http://tracking:5000" in result.stderr
