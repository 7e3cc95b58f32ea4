from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from autoq.app import App
from autoq.cli.searching import SearchFlags, SearchRequest
from autoq.core.errors import SpecError, StoreUnavailable
from autoq.search.records import SearchState
from autoq.spec.loading import load_spec

Autoq = Callable[..., Result]
Stored = Callable[..., Path]


def test_flags_become_the_keys_they_stand_for_in_the_specs_units() -> None:
    flags = SearchFlags(
        latency_budget="800us",
        max_drop="1%",
        max_size="3MB",
        max_bundle="1KiB",
        trials=7,
        time_budget="10m",
        patience=3,
        strategy="gp",
        seed=0,
    )
    assert flags.overrides() == pytest.approx(
        {
            "constraints.max_latency_ms": 0.8,
            "constraints.max_latency_ratio": None,
            "constraints.max_accuracy_drop": 0.01,
            "constraints.max_size_bytes": 3_000_000,
            "constraints.max_bundle_bytes": 1024,
            "search.trials": 7,
            "search.time_budget_s": 600.0,
            "search.patience": 3,
            "search.strategy": "gp",
            "search.seed": 0,
        }
    )


def test_flags_that_are_not_given_leave_the_spec_alone() -> None:
    assert SearchFlags().overrides() == {}


def test_a_latency_share_replaces_a_latency_of_the_spec(spec_file: Path) -> None:
    spec_file.write_text(spec_file.read_text().replace("{max_acc", "{max_latency_ms: 0.8, max_acc"))
    spec = load_spec(spec_file, SearchFlags(latency_budget="50%").overrides())
    assert spec.constraints.max_latency_ms is None
    assert spec.constraints.max_latency_ratio == 0.5


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"latency_budget": "0.8"}, "--latency-budget"),
        ({"max_drop": "2ms"}, "--max-drop"),
        ({"max_size": "3"}, "--max-size"),
        ({"time_budget": "10"}, "--time-budget"),
    ],
)
def test_a_value_without_its_unit_is_blamed_on_its_flag(flags: dict[str, Any], name: str) -> None:
    with pytest.raises(SpecError, match=name):
        SearchFlags(**flags).overrides()


def test_the_command_to_go_on_has_the_flags_the_search_was_started_with() -> None:
    flags = SearchFlags(latency_budget="50%", time_budget="10m", seed=3)
    request = SearchRequest(Path("my spec.yaml"), flags, Path("elsewhere"))
    assert request.resume_command == (
        "autoq search 'my spec.yaml' --latency-budget 50% --time-budget 10m"
        " --seed 3 --home elsewhere --resume"
    )
    assert "--home" not in SearchRequest(Path("s.yaml"), flags, Path("autoq-home")).resume_command


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("colour: red", "colour"),
        ("metric: 7", "metric"),
    ],
)
def test_a_bad_spec_is_one_line_exit_code_2_and_nothing_written(
    autoq: Autoq, spec_file: Path, tmp_path: Path, change: str, said: str
) -> None:
    spec_file.write_text(spec_file.read_text() + change + "\n")
    result = autoq("search", spec_file, "--home", tmp_path / "new")
    assert result.exit_code == 2
    assert result.stderr.startswith("autoq: error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "new").exists()


def test_a_missing_spec_is_one_line(autoq: Autoq, tmp_path: Path) -> None:
    result = autoq("search", tmp_path / "none.yaml", "--home", tmp_path / "new")
    assert result.exit_code == 2
    assert "none.yaml" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("extra", [(), ("--dry-run",), ("--json",)])
def test_a_missing_model_is_the_users_error_and_leaves_no_search(
    autoq: Autoq, spec_file: Path, home: Path, extra: tuple[str, ...]
) -> None:
    result = autoq("search", spec_file, "--home", home, *extra)
    assert result.exit_code == 2
    assert "m.onnx" in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert json.loads(autoq("list", "--home", home, "--json").stdout) == {"searches": []}


def test_a_flag_the_schema_refuses_is_blamed_on_the_command_line(
    autoq: Autoq, spec_file: Path, home: Path
) -> None:
    result = autoq("search", spec_file, "--home", home, "--strategy", "psychic")
    assert result.exit_code == 2
    assert "command line: search.strategy" in result.stderr


def test_a_name_taken_by_another_spec_is_refused(autoq: Autoq, spec_file: Path, stored: Stored) -> None:
    result = autoq("search", spec_file, "--home", stored(), "--max-drop", "9%")
    assert result.exit_code == 2
    assert "exists with another spec" in result.stderr


def test_an_interrupted_search_is_not_started_over(autoq: Autoq, spec_file: Path, stored: Stored) -> None:
    result = autoq("search", spec_file, "--home", stored(state=SearchState.INTERRUPTED))
    assert result.exit_code == 2
    assert "--resume" in result.stderr


def test_errors_go_to_the_log_without_causes_that_may_carry_passwords(
    autoq: Autoq, spec_file: Path, home: Path
) -> None:
    autoq("search", spec_file, "--home", home)
    log = (home / "autoq.log").read_text()
    assert "Traceback" not in log
    assert "ModelError" in log
    assert "model: loading" in log


# What a search of arithmetic cannot show: the store goes away, or Ctrl-C comes, at a given moment.


def ending(error: BaseException, phase: str) -> Callable[..., Any]:
    def search(self: App, spec: Any, listener: Any, **rest: Any) -> Any:
        listener.on_phase(phase, "")
        raise error

    return search


@pytest.mark.parametrize(
    ("error", "phase", "code"),
    [
        (StoreUnavailable("the database went away"), "data", 2),
        (StoreUnavailable("the database went away"), "trials", 4),
        (StoreUnavailable("the database went away"), "final round", 4),
        (KeyboardInterrupt(), "data", 130),
        (KeyboardInterrupt(), "trials", 130),
    ],
)
def test_what_is_lost_in_mid_search_says_how_to_go_on(
    autoq: Autoq,
    spec_file: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    phase: str,
    code: int,
) -> None:
    monkeypatch.setattr(App, "search", ending(error, phase))
    result = autoq("search", spec_file, "--home", home, "--json")
    assert result.exit_code == code
    assert result.stdout == ""
    resumable = phase != "data"
    assert (f"--home {home} --resume" in result.stderr) is resumable


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        (SearchState.INTERRUPTED, 130, "interrupted after 5 trials; go on with: autoq search"),
        (SearchState.FAILED, 1, "error: all 5 trials failed: no memory"),
        (SearchState.FINISHED, 0, ""),
    ],
)
def test_the_state_a_search_ends_in_decides_the_exit_code(
    autoq: Autoq,
    spec_file: Path,
    stored: Stored,
    monkeypatch: pytest.MonkeyPatch,
    state: SearchState,
    code: int,
    said: str,
) -> None:
    home = stored(state=state, message="all 5 trials failed: no memory")
    monkeypatch.setattr(App, "search", lambda self, spec, listener, **rest: self.outcome(spec.name))
    result = autoq("search", spec_file, "--home", home, "--json")
    assert result.exit_code == code
    assert said in result.stderr
    assert json.loads(result.stdout)["state"] == state
