"""What is exported works without autoq, is what was measured, and tells nothing of this machine."""

from __future__ import annotations

import getpass
import json
import runpy
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_case import NAME, command, environment, run_autoq, write_case

from autoq.core.digests import digest_file

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
    assert "logits\n(1, 4)\n" in ran.stdout
    assert moved.is_dir()


def test_run_py_needs_nothing_but_onnxruntime_and_numpy(exported: Path, tmp_path: Path) -> None:
    """In an environment of its own, with the very versions of this one."""
    np.savez(tmp_path / "inputs.npz", image=np.full((2, 3, 16, 16), 0.5, np.float32))
    bare, needs = tmp_path / "bare", [f"{name}=={version(name)}" for name in ("onnxruntime", "numpy")]
    subprocess.run([sys.executable, "-m", "venv", bare], check=True, timeout=120)
    install = [bare / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *needs]
    subprocess.run(install, check=True, timeout=300)
    moved = shutil.copytree(exported, tmp_path / "moved")
    isolated = [bare / "bin" / "python", "-I", moved / "run.py", tmp_path / "inputs.npz"]
    ran = subprocess.run(isolated, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("logits\n(2, 4)\n")
    absent = [bare / "bin" / "python", "-I", "-c", "import autoq"]
    assert subprocess.run(absent, capture_output=True, timeout=60).returncode == 1


def test_run_py_does_to_raw_input_what_the_search_did(tmp_path: Path) -> None:
    data = {"data.transform": {"image": {"scale": 0.5, "offset": -1.0}}, "search.trials": 1}
    spec, home, out = write_case(tmp_path, data), tmp_path / "home", tmp_path / "out"
    assert run_autoq("search", spec, "--home", home).returncode in (0, 3)
    ran = run_autoq("export", NAME, "--select", "0", "--out", out, "--home", home)
    assert ran.returncode == 0, ran.stderr
    script = runpy.run_path(str(out / "run.py"))
    raw = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(1, 3, 16, 16)
    (logits,) = script["run"](script["load"](), {"image": raw}).values()
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (expected,) = session.run(None, {"image": raw.astype(np.float32) * np.float32(0.5) - np.float32(1.0)})
    np.testing.assert_array_equal(logits, expected)


def test_run_py_takes_other_types_as_the_search_did_and_leaves_other_arrays_alone(exported: Path) -> None:
    script = runpy.run_path(str(exported / "run.py"))
    image = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    (logits,) = script["run"](script["load"](), {"image": image, "labels": np.zeros(2)}).values()
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    (expected,) = session.run(None, {"image": image.astype(np.float32)})
    np.testing.assert_array_equal(logits, expected)


def test_an_empty_folder_is_exported_into_and_stays_the_same_folder(finished: Any, tmp_path: Path) -> None:
    """It may be a mounted volume, or where the command was started."""
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    arguments = command("export", NAME, "--select", "1", "--out", ".", "--home", finished.home)
    ran = subprocess.run(arguments, cwd=out, env=environment(), capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert (out.stat().st_ino, {path.name for path in out.iterdir()}) == (before, FILES)
    assert list(tmp_path.iterdir()) == [out]


def test_the_manifest_names_every_file_and_what_reloading_showed(finished: Any, exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["files"].keys() == FILES - {"manifest.json"}
    assert all(digest_file(exported / name) == digest for name, digest in manifest["files"].items())
    assert manifest["seed"] == 0
    assert manifest["versions"].keys() >= {"autoq", "onnxruntime"}
    (point,) = [point for point in _all_trials(finished.home) if point["trial"] == 1]
    verified = manifest["verified"]
    assert (verified["accuracy"], verified["n_examples"]) == (pytest.approx(point["accuracy"], abs=1e-9), 96)
    assert verified["speedup"] > 0


def test_the_card_tells_what_a_person_who_deploys_has_to_know(exported: Path) -> None:
    card = (exported / "card.md").read_text()
    for part in ("instruction sets: ", "holds on the test split", "noise floor", "| native |", "95 %"):
        assert part in card
    assert "autoq does not know the licence of the float model" in card


def test_without_the_data_an_export_says_that_it_was_not_scored_again(tmp_path: Path) -> None:
    spec, home, out = write_case(tmp_path, {"search.trials": 1}), tmp_path / "home", tmp_path / "out"
    assert run_autoq("search", spec, "--home", home).returncode == 0
    (tmp_path / "data.npz").unlink()
    ran = run_autoq("export", NAME, "--select", "0", "--out", out, "--home", home)
    assert ran.returncode == 0, ran.stderr
    assert "warning: not scored or timed again: the search's data have gone or changed" in ran.stderr
    verified = json.loads((out / "manifest.json").read_text())["verified"]
    assert verified["accuracy"] is None
    assert len(verified["warnings"]) == 1


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
    places = [str(Path.home()), str(finished.spec.parent), str(exported.parent), sys.prefix, str(Path.cwd())]
    traces = [
        "Traceback",
        'File "',
        ", line ",
        "site-packages",
        f"/{getpass.getuser()}/",
        socket.gethostname(),
    ]
    told = [text.encode() for text in (*places, *traces) if len(text) > 4]
    for path in exported.iterdir():
        content = path.read_bytes()
        assert not [text for text in told if text in content], path.name


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
        # Of a bundle of three kilobytes the head is more than 3 %, and it is only guessed at.
        assert point["bundle_bytes"] == pytest.approx(bundle.stat().st_size, rel=0.03, abs=256)


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
    ran = run_autoq("show", NAME, "--home", home, "--json")
    trials: list[dict[str, Any]] = json.loads(ran.stdout)["all_trials"]
    return trials
