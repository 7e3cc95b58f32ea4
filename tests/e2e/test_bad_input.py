"""Every mistake of the user's is one clear line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import optuna
import pytest
from tiny_case import NAME, ledger_of, tiny_data, tiny_network, write_case, write_spec
from typer.testing import CliRunner

from autoq.cli.main import app
from autoq.testing.models import GraphBuilder

Mistake = Callable[[Path], Sequence[str]]
ANY_SPACE = {"version": 1, "layers": {"*": {"format": ["fp32", "int8"]}}}


def spec(**changes: object) -> Mistake:
    """Set keys of the spec; `__` stands for the dot of a path."""

    def make(folder: Path) -> Sequence[str]:
        write_spec(folder, {key.replace("__", "."): value for key, value in changes.items()})
        return ()

    return make


def flags(*words: str) -> Mistake:
    return lambda folder: words


def data(**arrays: Any) -> Mistake:
    """Replace arrays of the npz file; a function is given the array it replaces, None drops it."""

    def make(folder: Path) -> Sequence[str]:
        content = tiny_data(tiny_network())
        for name, value in arrays.items():
            content[name] = value(content[name]) if callable(value) else value
        np.savez(folder / "data.npz", **{name: value for name, value in content.items() if value is not None})
        return ()

    return make


def model(change: Callable[[Path], object]) -> Mistake:
    def make(folder: Path) -> Sequence[str]:
        change(folder / "tiny.onnx")
        return ()

    return make


def metric(code: str, function: str = "score") -> Mistake:
    def make(folder: Path) -> Sequence[str]:
        (folder / "metric.py").write_text(code)
        write_spec(folder, {"metric": {"python": f"metric.py:{function}"}})
        return ()

    return make


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def lose_external_data(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


def lead_outside(path: Path) -> None:
    (path.parent.parent / "weights.bin").write_bytes(bytes(1_000_000))
    network = onnx.load(path)
    onnx.external_data_helper.set_external_data(network.graph.initializer[0], location="../weights.bin")
    network.graph.initializer[0].ClearField("raw_data")
    network.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    path.write_bytes(network.SerializeToString())


def without_layers(path: Path) -> None:
    net = GraphBuilder()
    image = net.input("image", "batch", 3, 16, 16)
    pooled = net.node("Flatten", net.node("GlobalAveragePool", net.node("Relu", image)))
    onnx.save(net.build(logits=(pooled, ("batch", 3))), path)


def with_nan(images: Any) -> Any:
    images[3, 1, 2, 2] = np.nan
    return images


SPACE = {"version": 1, "layers": {"*": {"format": ["fp32", "int8"]}}}
SAME = {"npz": "data.npz", "inputs": {"image": "search_x"}, "labels": "search_y"}

MISTAKES: dict[str, tuple[Mistake, str]] = {
    "unknown key": (spec(search__trails=3), "search.trails"),
    "wrong type": (spec(search__trials="many"), "search.trials"),
    "unknown strategy": (spec(search__strategy="psychic"), "search.strategy"),
    "unknown key of a section": (spec(target={"gpus": 1}), "target.gpus"),
    "unknown runtime": (spec(target={"runtime": "abacus"}), "'abacus'"),
    "unknown space": (spec(space="cnm"), "cnm"),
    "space that is no mapping": (spec(space=7), "space"),
    "glob without a layer": (spec(space=SPACE | {"layers": {"*": {}, "layer9.*": {}}}), "layer9.*"),
    "missing model": (spec(model={"path": "none.onnx"}), "none.onnx"),
    "folder as model": (spec(model={"path": "."}), ""),
    "text as model": (model(lambda path: path.write_text("hello, I am a model\n")), "tiny.onnx"),
    "empty model": (model(lambda path: path.write_bytes(b"")), "tiny.onnx"),
    "truncated model": (model(truncate), "tiny.onnx"),
    "missing external data": (model(lose_external_data), "weights.bin"),
    "external data outside": (model(lead_outside), "tiny.onnx"),
    "no compressible layer": (model(without_layers), "tiny.onnx"),
    "unknown output": (spec(model={"path": "tiny.onnx", "output": "boxes"}), "boxes"),
    "missing npz": (spec(data__search={**SAME, "npz": "none.npz"}), "none.npz"),
    "text as npz": (spec(data__search={**SAME, "npz": "spec.yaml"}), "spec.yaml"),
    "missing array": (data(search_x=None), "'search_x'"),
    "unknown input": (spec(data__search={**SAME, "inputs": {"picture": "search_x"}}), "picture"),
    "wrong shape": (data(search_x=lambda x: x[:, :, :8]), "16"),
    "wrong dtype": (data(search_x=lambda x: x.astype(str)), "search_x"),
    "labels of another length": (data(search_y=lambda y: y[:-1]), "95"),
    "labels that are no classes": (data(search_y=lambda y: y + 0.5), "labels"),
    "labels beyond the classes": (data(search_y=lambda y: y + 4), "labels"),
    "no labels": (spec(data__search={"npz": "data.npz", "inputs": {"image": "search_x"}}), "labels"),
    "pickled array": (data(search_y=lambda y: y.astype(object)), "search_y"),
    "NaN": (data(search_x=with_nan), "NaN"),
    "empty array": (data(search_x=lambda x: x[:0]), "empty"),
    "one array as two splits": (spec(data__test=SAME), "data.test"),
    "missing metric": (metric("", "score"), "score"),
    "missing metric file": (spec(metric={"python": "none.py:score"}), "none.py"),
    "metric that does not parse": (metric("def score(:"), "metric.py"),
    "metric that raises": (metric("def score(*args): raise KeyError('oh')"), "KeyError"),
    "metric of another shape": (metric("def score(*args): return [[1.0, 2.0]]"), "shape"),
    "metric that is no number": (metric("def score(*args): return 'good'"), "good"),
    "too little memory for the float model": (spec(search__trial_memory_mb=20), "trial_memory_mb"),
    "Fisher scores of an ONNX file": (
        spec(space={**ANY_SPACE, "rewrites": {"widths": {"latency": [0.5], "criterion": "fisher"}}}),
        "space.rewrites.widths.criterion: fisher needs gradients, which an ONNX file does not have, "
        "expected a torch factory as model.torch",
    ),
    "no time": (flags("--latency-budget", "0ms"), "--latency-budget"),
    "less than no time": (flags("--latency-budget=-5"), "--latency-budget"),
    "no latency at all": (flags("--latency-budget", "abc"), "--latency-budget"),
    "a drop above 1": (
        flags("--max-drop", "2"),
        "command line: constraints.max_accuracy_drop: expected at most 1",
    ),
    "no trials": (flags("--trials", "0"), "search.trials"),
}


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOQ_STORAGE", "AUTOQ_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def assert_one_clear_line(result: Any, said: str) -> None:
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("autoq: error: ")]
    assert result.exit_code == 2, result.stderr
    assert errors == lines[-1:]
    assert said in errors[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    mistake, said = MISTAKES[name]
    folder, home = tmp_path / "case", tmp_path / "home"
    folder.mkdir()
    write_case(folder)
    arguments = mistake(folder)
    before = {path.name for path in folder.iterdir()} | {"__pycache__"}
    result = invoke("search", folder / "spec.yaml", "--home", home, *arguments)
    assert_one_clear_line(result, said)
    assert {path.name for path in folder.iterdir()} <= before
    if home.exists():
        left = [path for path in home.rglob("*") if path.suffix in (".tmp", ".partial")]
        assert left == []
        with ledger_of(home) as ledger:
            assert ledger.list_searches() == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://localhost:1/autoq", "localhost:1/autoq"),
        ("oracle://localhost/autoq", "oracle"),
        ("sqlite:////none/autoq.db", "/none/autoq.db"),
        ("autoq.db", "autoq.db"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    spec_file = write_case(tmp_path)
    monkeypatch.setenv("AUTOQ_STORAGE", url)
    assert_one_clear_line(invoke("search", spec_file, "--home", tmp_path / "home"), said)


def test_a_home_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    spec_file = write_case(tmp_path)
    (tmp_path / "home").write_text("mine")
    assert_one_clear_line(invoke("search", spec_file, "--home", tmp_path / "home"), "home")
    assert_one_clear_line(invoke("search", spec_file, "--home", tmp_path / "home" / "below"), "home")
    assert (tmp_path / "home").read_text() == "mine"


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    spec_file, home = write_case(tmp_path), tmp_path / "home"
    home.mkdir()
    (home / "autoq.db").write_text("not a database, but somebody's text\n" * 50)
    assert_one_clear_line(invoke("search", spec_file, "--home", home), "autoq.db")
    assert (home / "autoq.db").read_text().startswith("not a database")


def test_a_study_of_somebody_else_is_told_before_the_first_trial(tmp_path: Path) -> None:
    spec_file, home = write_case(tmp_path), tmp_path / "home"
    home.mkdir()
    storage = optuna.storages.RDBStorage(f"sqlite:///{home / 'autoq.db'}")
    optuna.create_study(study_name=NAME, storage=storage).add_trial(optuna.create_trial(value=1.0))
    storage.remove_session()
    storage.engine.dispose()
    assert_one_clear_line(invoke("search", spec_file, "--home", home), f"Optuna study named '{NAME}'")
    with ledger_of(home) as ledger:
        assert ledger.load_trials(NAME) == []
