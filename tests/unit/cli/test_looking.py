from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from autoq.app import App
from autoq.examining import Doctor
from autoq.search.records import SearchState
from autoq.spec.schema import SearchSpec
from autoq.testing.models import residual_cnn

Autoq = Callable[..., Result]
Stored = Callable[..., Path]


def test_front_prints_the_table_and_exits_with_0_when_something_is_feasible(
    autoq: Autoq, stored: Stored
) -> None:
    result = autoq("front", "demo", "--home", stored())
    assert result.exit_code == 0
    assert "float model" in result.stdout
    assert "best: trial 2" in result.stdout


def test_front_exits_with_3_when_nothing_is_feasible(autoq: Autoq, stored: Stored, spec: SearchSpec) -> None:
    bounds = spec.constraints.model_copy(update={"max_latency_ms": 0.001})
    home = stored(spec.model_copy(update={"constraints": bounds}))
    result = autoq("front", "demo", "--home", home)
    assert result.exit_code == 3
    assert "breaks max_latency_ms: latency 0.250 ms, allowed 0.00100 ms" in result.stdout
    assert json.loads(autoq("front", "demo", "--home", home, "--json").stdout)["nearest"] == {
        "trial": 3,
        "failed_bounds": ["max_accuracy_drop", "max_latency_ms"],
    }


def test_front_json_is_alone_on_stdout(autoq: Autoq, stored: Stored) -> None:
    result = autoq("front", "demo", "--home", stored(), "--json")
    content = json.loads(result.stdout)
    assert content["best"] == 2
    assert [point["trial"] for point in content["front"]] == [3, 2, 1, 0]
    assert "float model" in result.stderr


def test_an_unknown_search_is_one_line_that_names_the_known_ones(autoq: Autoq, stored: Stored) -> None:
    result = autoq("front", "other", "--home", stored())
    assert result.exit_code == 2
    assert result.stderr == "autoq: error: no search named 'other' (known searches: demo)\n"


def test_show_tells_every_trial_with_its_state_and_reason(autoq: Autoq, stored: Stored) -> None:
    result = autoq("show", "demo", "--home", stored(), env={"COLUMNS": "220"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any("TrialTimeout: ran for 120 s" in line and "failed" in line for line in lines)
    assert any("repeats trial 1" in line for line in lines)
    assert any(line.rstrip().endswith("best") for line in lines)
    for fact in ("m.onnx", "max_accuracy_drop 0.05", "avx2", "statistics 2.500 s", "noise floor ±1.00%"):
        assert fact in result.stdout


def test_show_json_has_spec_and_all_trials(autoq: Autoq, stored: Stored) -> None:
    content = json.loads(autoq("show", "demo", "--home", stored(), "--json").stdout)
    states = [trial["state"] for trial in content["all_trials"]]
    assert states == ["complete"] * 4 + ["repeated", "failed"]
    assert content["all_trials"][4]["repeats"] == 1
    assert content["spec"]["name"] == "demo"
    assert content["preparation_s"] == {"statistics": 2.5}


def test_show_of_a_trial_tells_each_layers_choice_and_the_parts_of_its_time(
    autoq: Autoq, stored: Stored
) -> None:
    home = stored()
    result = autoq("show", "demo", 2, "--home", home)
    assert "build 0.250 s, total 1.500 s" in result.stdout
    layers = [line.split()[:2] for line in result.stdout.splitlines() if re.match(" *layer[0-9]", line)]
    assert layers == [
        ["layer0", "int8/channel/minmax"],
        ["layer1", "int8/channel/minmax"],
        ["layer2", "fp32"],
    ]
    content = json.loads(autoq("show", "demo", 2, "--home", home, "--json").stdout)
    assert content["choices"]["layer2"]["format"] == "fp32"
    assert content["seconds"] == {"build": 0.25, "total": 1.5}


def test_show_of_a_failed_trial_tells_why(autoq: Autoq, stored: Stored) -> None:
    result = autoq("show", "demo", 5, "--home", stored())
    assert result.exit_code == 0
    assert "TrialTimeout: ran for 120 s" in result.stdout


def test_show_of_a_trial_that_is_not_there_tells_which_are(autoq: Autoq, stored: Stored) -> None:
    result = autoq("show", "demo", 9, "--home", stored())
    assert result.exit_code == 2
    assert "no trial 9 (it has trials 0 to 5)" in result.stderr


def test_list_shows_searches_and_an_empty_home_none(autoq: Autoq, stored: Stored, tmp_path: Path) -> None:
    home = stored(state=SearchState.INTERRUPTED)
    assert "interrupted" in autoq("list", "--home", home).stdout
    (search,) = json.loads(autoq("list", "--home", home, "--json").stdout)["searches"]
    assert (search["search"], search["trials"], search["strategy"]) == ("demo", 6, "guided")
    assert json.loads(autoq("list", "--home", tmp_path / "new", "--json").stdout) == {"searches": []}


def test_the_home_is_taken_from_the_environment(autoq: Autoq, stored: Stored) -> None:
    assert "demo" in autoq("list", env={"AUTOQ_HOME": str(stored())}).stdout


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("postgresql://nobody@127.0.0.1:1/none", "127.0.0.1"),
        ("mysql://x/y", "mysql"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line_and_exit_code_2(
    autoq: Autoq, home: Path, url: str, word: str
) -> None:
    result = autoq("list", "--home", home, env={"AUTOQ_STORAGE": url})
    assert result.exit_code == 2
    assert result.stderr.startswith("autoq: error: ")
    assert word in result.stderr


def test_cache_tells_what_is_there_and_prunes_it(autoq: Autoq, home: Path) -> None:
    variants = home / "cache" / "variants"
    variants.mkdir(parents=True)
    for number in range(4):
        (variants / f"{number}.npz").write_bytes(b"x" * 1000)
    unfinished = [variants / name for name in ("5.npz.tmp", ".tmpXy12Zw")]  # a search is running
    for path in unfinished:
        path.write_bytes(b"x" * 1000)
    listed = autoq("cache", "--home", home).stdout.splitlines()
    assert any(line.split() == ["variants", "4", "4.00", "kB"] for line in listed)
    content = json.loads(autoq("cache", "--home", home, "--prune", "2kB", "--json").stdout)
    assert content["freed_bytes"] == 2000
    assert content["caches"] == [{"name": "variants", "n_files": 2, "n_bytes": 2000}]
    assert all(path.exists() for path in unfinished)


def test_a_prune_size_without_a_unit_is_the_users_error(autoq: Autoq, home: Path) -> None:
    result = autoq("cache", "--home", home, "--prune", "5")
    assert result.exit_code == 2
    assert "--prune" in result.stderr


def test_inspect_of_what_is_no_model_is_one_line(autoq: Autoq, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"hello")
    result = autoq("inspect", path)
    assert result.exit_code == 2
    assert result.stderr.startswith("autoq: error: ")
    assert result.stderr.count("\n") == 1
    assert "m.onnx" in result.stderr


def test_inspect_tells_layers_formats_and_what_is_refused_and_why(autoq: Autoq, tmp_path: Path) -> None:
    path = tmp_path / "cnn.onnx"
    path.write_bytes(residual_cnn().SerializeToString())
    content = json.loads(autoq("inspect", path, "--json").stdout)
    conv = next(layer for layer in content["layers"] if layer["op"] == "Conv")
    assert conv["formats"]["fp32"]["legal"]
    assert not conv["formats"]["int8_dynamic"]["legal"]
    shown = autoq("inspect", path).stdout
    row = next(line.split() for line in shown.splitlines() if line.startswith(f"{conv['name']} "))
    assert row[1] == "Conv"
    assert f"{conv['parameters']:,}" in row
    assert "refused: int8_dynamic on " in shown
    assert conv["formats"]["int8_dynamic"]["reason"] in shown


def test_inspect_groups_tells_what_goes_together_and_what_is_left_alone_and_why(
    autoq: Autoq, tmp_path: Path
) -> None:
    path = tmp_path / "cnn.onnx"
    path.write_bytes(residual_cnn().SerializeToString())
    content = json.loads(autoq("inspect", path, "--groups", "--json").stdout)
    stem = next(group for group in content["groups"] if group["name"] == "stem")
    assert (stem["kind"], stem["size"]) == ("channels", 8)
    assert stem["members"][2] == {
        "layer": "block1.conv2",
        "role": "writes",
        "channels": [[unit] for unit in range(8)],
    }
    assert content["left_alone"] == [{"layer": "fc", "reason": "they reach the output 'logits'"}]
    shown = autoq("inspect", path, "--groups").stdout
    assert "channel groups of" in shown
    assert "left alone: fc: they reach the output 'logits'" in shown


def test_groups_and_sensitivity_are_asked_for_one_at_a_time(autoq: Autoq, tmp_path: Path) -> None:
    result = autoq("inspect", tmp_path / "spec.yaml", "--groups", "--sensitivity")
    assert result.exit_code == 2
    assert "one at a time" in result.stderr


def test_doctor_tells_versions_strategies_noise_and_warnings(
    autoq: Autoq, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real one measures for seconds.
    found = Doctor({"cpu": {"model": "Abacus"}}, {"torch": "2.13"}, 0.0123, ("u8 x s8 saturates",))
    monkeypatch.setattr(App, "doctor", lambda self: found)
    shown = autoq("doctor", "--home", home).stdout
    for fact in ("Abacus", "2.13", "tpe, nsga2, gp, random", "±1.23%", "warning: u8 x s8 saturates"):
        assert fact in shown
    content = json.loads(autoq("doctor", "--home", home, "--json").stdout)
    assert content["noise_floor"] == 0.0123
    assert content["warnings"] == ["u8 x s8 saturates"]
