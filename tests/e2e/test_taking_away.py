"""What is exported works without autoq, is what was measured, and tells nothing of this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_case import NAME, environment, run_autoq

FILES = {"model.onnx", "recipe.yaml", "recipe.safetensors", "card.md", "manifest.json", "run.py"}


@pytest.fixture(scope="module")
def exported(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a point that is quantised: trial 1 is the first int8 anchor."""
    out = tmp_path_factory.mktemp("exported") / "out"
    ran = run_autoq("export", NAME, "--select", "1", "--out", out, "--home", finished.home)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"trial 1 of {NAME}")
    return out


def test_the_folder_is_complete_and_nothing_is_left_beside_it(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    assert list(exported.parent.iterdir()) == [exported]


def test_the_exported_model_runs_where_there_is_no_autoq(exported: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", image=np.ones((1, 3, 16, 16), np.float32))
    moved = shutil.copytree(exported, tmp_path / "moved")
    script = (
        "import runpy, sys; sys.modules['autoq'] = None; sys.argv = ['run.py', 'inputs.npz'];"
        "runpy.run_path('moved/run.py', run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert "logits (1, 4)" in ran.stdout
    assert moved.is_dir()


def test_apply_rebuilds_the_exported_model_byte_for_byte(
    finished: Any, exported: Path, tmp_path: Path
) -> None:
    model, out = finished.spec.parent / "tiny.onnx", tmp_path / "again.onnx"
    ran = run_autoq("apply", exported / "recipe.yaml", "--model", model, "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert out.read_bytes() == (exported / "model.onnx").read_bytes()


def test_the_exported_model_is_the_measured_one(finished: Any, exported: Path) -> None:
    (point,) = [point for point in _all_trials(finished.home) if point["trial"] == 1]
    assert (exported / "model.onnx").stat().st_size == point["size_bytes"]


def test_no_exported_file_tells_where_it_was_made(finished: Any, exported: Path) -> None:
    told = [str(Path.home()), str(finished.spec.parent), str(exported.parent), sys.prefix]
    for path in exported.iterdir():
        content = path.read_bytes()
        assert not [place for place in told if len(place) > 5 and place.encode() in content], path.name


@pytest.mark.parametrize("select", ["best", "knee", "fastest", "smallest"])
def test_a_taken_folder_is_refused_and_left_alone(finished: Any, tmp_path: Path, select: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ran = _export(finished, tmp_path, select)
    assert ran == (2, f"autoq: error: {tmp_path}: already exists (give --out a new or empty folder)")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("bundle_format", ["native", "hdf5", "safetensors"])
def test_a_bundle_gives_the_exported_model_back_and_it_runs(
    finished: Any, exported: Path, tmp_path: Path, bundle_format: str
) -> None:
    out, again = tmp_path / "out", tmp_path / "again.onnx"
    flags = ["--bundle"] if bundle_format == "native" else ["--bundle-format", bundle_format]
    ran = run_autoq("export", NAME, "--select", "1", "--out", out, "--home", finished.home, *flags)
    assert ran.returncode == 0, ran.stderr
    (bundle,) = [path for path in out.iterdir() if path.name not in FILES]
    ran = run_autoq("unbundle", bundle, "--out", again)
    assert ran.returncode == 0, ran.stderr
    assert again.read_bytes() == (exported / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(again, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.ones((2, 3, 16, 16), np.float32)})
    assert logits.shape == (2, 4)
    if bundle_format == "native":
        (point,) = [point for point in _all_trials(finished.home) if point["trial"] == 1]
        assert point["bundle_bytes"] == pytest.approx(bundle.stat().st_size, rel=0.03)


def test_an_unknown_trial_is_refused_and_nothing_is_written(finished: Any, tmp_path: Path) -> None:
    code, said = _export(finished, tmp_path / "out", "4711")
    assert code == 2
    assert "measured no trial 4711" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["another digest", "other tensors", "no tensors"])
def test_a_recipe_that_was_tampered_with_is_refused(
    finished: Any, exported: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    recipe, tensors = folder / "recipe.yaml", folder / "recipe.safetensors"
    if damage == "another digest":
        recipe.write_text(recipe.read_text().replace("minmax", "entropy"))
    elif damage == "other tensors":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 0xFF
        tensors.write_bytes(content)
    else:
        tensors.unlink()
    model, out = finished.spec.parent / "tiny.onnx", tmp_path / "out.onnx"
    ran = run_autoq("apply", recipe, "--model", model, "--out", out)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith("autoq: error: ")
    assert ran.stderr.count("\n") == 1
    assert not out.exists()


def _export(finished: Any, out: Path, select: str) -> tuple[int, str]:
    ran = run_autoq("export", NAME, "--select", select, "--out", out, "--home", finished.home)
    return ran.returncode, ran.stderr.splitlines()[-1]


def _all_trials(home: Path) -> list[dict[str, Any]]:
    import json

    ran = run_autoq("show", NAME, "--home", home, "--json")
    trials: list[dict[str, Any]] = json.loads(ran.stdout)["all_trials"]
    return trials
