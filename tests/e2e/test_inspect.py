"""What can be seen of a model, and of a spec's model, before any trial."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.image import imread
from tiny_case import draw_images, ledger_of, tiny_network, write_case, write_spec
from typer.testing import CliRunner, Result

from autoq.calibrating import SourceKeys, build_stitcher, load_source
from autoq.cli.main import app
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import AS_IT_IS, Candidate, Choice, Format
from autoq.core.layers import Layer
from autoq.exporting import Silent
from autoq.home import Home
from autoq.inspecting import inspect_search, offered_choices
from autoq.preparation import prepare, prepare_sources, prepare_variants
from autoq.spec.loading import load_spec
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.testing.bench import INT8
from autoq.testing.models import example_feed, tagger

BITS = range(4, INT8.weight_bits + 1)  # of int8 weights, on this CPU
LAYERS = {"stem", "block.conv1", "block.conv2", "fc"}


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOQ_STORAGE", "AUTOQ_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@dataclass(frozen=True)
class Inspected:
    """A spec, the home it was inspected in, and what was said."""

    spec: Path
    home: Path
    result: Result

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.result.stdout)
        return content

    @property
    def choices(self) -> dict[str, list[dict[str, Any]]]:
        choices: dict[str, list[dict[str, Any]]] = self.content["sensitivity"]["layers"]
        return choices


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    folder = tmp_path_factory.mktemp("inspected")
    spec, home = write_case(folder), folder / "home"
    return Inspected(spec, home, inspect(spec, "--sensitivity", "--json", "--home", home))


def assert_one_clear_line(result: Result, said: str) -> None:
    assert result.exit_code == 2, result.stderr
    assert result.stderr.startswith("autoq: error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert result.stdout == ""


def test_every_choice_of_the_space_has_its_error(inspected: Inspected) -> None:
    assert inspected.result.exit_code == 0, inspected.result.stderr
    assert inspected.choices.keys() == LAYERS
    labels = {label for layer in inspected.content["layers"] for label in layer["space"] if label != "fp32"}
    for choices in inspected.choices.values():
        offered = {(one["label"], one["weight_bits"]) for one in choices}
        assert offered == {(label, bits) for label in labels for bits in BITS}
        assert all(one["relative_error"] > 0 for one in choices)


def test_fewer_bits_have_a_larger_error(inspected: Inspected) -> None:
    for choices in inspected.choices.values():
        for label in {one["label"] for one in choices}:
            by_bits = sorted(
                (one["weight_bits"], one["weight_error"]) for one in choices if one["label"] == label
            )
            errors = [error for _, error in by_bits]
            assert errors == sorted(errors, reverse=True)
            assert len(set(errors)) == len(errors)


def test_progress_is_on_stderr_and_says_what_a_search_will_reuse(inspected: Inspected) -> None:
    said = inspected.result.stderr
    for phase in ("model: ", "data: ", "statistics: ", "variants: ", "sensitivity: "):
        assert phase in said
    assert f"kept in {inspected.home}: a search reuses them" in said


def test_the_plot_lies_among_the_artifacts_and_is_a_png_of_sane_size(inspected: Inspected) -> None:
    plot = inspected.home / "artifacts" / "tiny" / "sensitivity.png"
    assert inspected.content["sensitivity"]["plot"] == str(plot)
    picture = imread(plot)
    assert 300 < picture.shape[0] < 600
    assert 1000 < picture.shape[1] < 2000


def test_a_second_time_reuses_everything_and_prints_the_table(inspected: Inspected) -> None:
    plot = inspected.home / "mine.svg"
    result = inspect(inspected.spec, "--sensitivity", "--home", inspected.home, "--plot", plot)
    assert result.exit_code == 0, result.stderr
    assert "statistics: reused, 16 examples" in result.stderr
    assert "reused, 0 built" in result.stderr
    assert "SQNR in dB" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    order = [row[0] for row in rows if row and row[0] in LAYERS]
    assert order == inspected.content["sensitivity"]["most_sensitive_first"]
    assert f"plot: {plot}" in result.stdout.splitlines()
    assert plot.read_text().startswith("<?xml")


def test_no_search_is_stored(inspected: Inspected) -> None:
    with ledger_of(inspected.home) as ledger:
        assert ledger.list_searches() == []


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def test_a_search_builds_nothing_again(inspected: Inspected) -> None:
    home, heard = Home.open(inspected.home), Notes()
    ready = prepare(load_spec(inspected.spec), home, heard)
    prepare_variants(ready, prepare_sources(ready, home, heard), home, heard)
    assert any(note.startswith("statistics: reused") for note in heard.notes)
    assert any(note.endswith(" reused, 0 built") for note in heard.notes)


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_the_estimate_is_the_noise_that_the_compressed_layer_makes(tmp_path: Path, bits: int) -> None:
    """The classifier is the last layer, so its noise is the difference of the models' outputs."""
    home, spec = Home.open(tmp_path / "home"), load_spec(write_case(tmp_path))
    images = draw_images(512, np.random.default_rng(0))
    with np.load(tmp_path / "data.npz") as data:
        np.savez(tmp_path / "data.npz", **{**data, "calib_x": images})
    ready = prepare(spec, home, Silent())
    source = prepare_sources(ready, home, Silent())[AS_IT_IS]
    kept = (*load_source(home, SourceKeys.of(source)), source.statistics_key)
    stitcher = build_stitcher(home, kept, ready.target)
    choice = Choice.of(Format.INT8, weight_bits=bits)
    compressed = stitcher.assemble(Candidate.of({"fc": choice})).artifact
    change = outputs_of(compressed, images) - outputs_of(stitcher.float_model(), images)
    noise = np.square(change, dtype=np.float64).sum(axis=1).mean()
    error = stitcher.local_error("fc", choice)
    assert error.weight + error.activation == pytest.approx(noise, rel=0.1)


def outputs_of(model: ModelArtifact, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = OnnxRuntimeTarget().open(model)
    logits: np.ndarray[Any, Any] = session.run({"image": images})["logits"]
    session.close()
    return logits


def test_a_spec_without_sensitivity_tells_what_its_space_offers(tmp_path: Path) -> None:
    space = {"version": 1, "layers": {"*": {"format": ["fp32", "int8"]}, "fc": {"format": "int8_weight"}}}
    spec = write_case(tmp_path, {"space": space})
    result = inspect(spec, "--home", tmp_path / "home")
    assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.split()}
    assert rows["fc"][-1] == "int8_weight"
    assert rows["stem"][-2:] == ["fp32", "int8"]
    assert not (tmp_path / "home" / "artifacts").exists()
    content = json.loads(inspect(spec, "--home", tmp_path / "home", "--json").stdout)
    assert "sensitivity" not in content


def test_embeddings_and_recurrent_layers_are_in_the_table(tmp_path: Path) -> None:
    spec = write_tagger(tmp_path)
    result = inspect(spec, "--sensitivity", "--json", "--home", tmp_path / "home")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    offered = {layer["name"] for layer in content["layers"] if layer["op"] in ("LSTM", "Gather")}
    assert offered
    errors = content["sensitivity"]["layers"]
    assert offered <= errors.keys()
    assert all(errors[name] for name in offered)
    shown = inspect(spec, "--sensitivity", "--home", tmp_path / "home").stdout
    assert all(any(line.startswith(f"{name} ") for line in shown.splitlines()) for name in offered)


def write_tagger(folder: Path) -> Path:
    """A spec of a network with two embeddings and an LSTM."""
    model = tagger()
    onnx.save(model, folder / "tiny.onnx")
    feed = example_feed(model, n_examples=48)
    splits = {"calib": slice(16), "search": slice(16, None)}
    arrays: dict[str, Any] = {
        f"{split}_{name}": values[part] for split, part in splits.items() for name, values in feed.items()
    }
    np.savez(folder / "data.npz", **arrays)
    data = {
        section: {"npz": "data.npz", "inputs": {name: f"{split}_{name}" for name in feed}}
        for section, split in (("calibration", "calib"), ("search", "search"))
    }
    formats = ["fp32", "int8_dynamic", "int8_weight", "int4_weight"]
    space = {"version": 1, "layers": {"*": {"format": formats}}}
    return write_spec(folder, {"data": data, "metric": "fidelity", "space": space})


def test_offered_choices_are_distinct_and_leave_the_float_layer_out(tmp_path: Path) -> None:
    spec = write_case(tmp_path)
    ready = prepare(load_spec(spec), Home.open(tmp_path / "home"), Silent())
    for layer in ready.space.layers:
        choices = list(offered_choices(layer))
        assert len(choices) == len(set(choices)) == 10 * len(BITS)
        assert Choice.of(Format.FP32) not in choices
    layers: tuple[Layer, ...] = inspect_search(ready).summary.layers
    assert {layer.name for layer in layers} == LAYERS


def test_an_onnx_file_has_no_sensitivity_without_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny_network(), path)
    said = "--sensitivity needs calibration data: give the search spec, not the model"
    assert_one_clear_line(inspect(path, "--sensitivity", "--home", tmp_path / "home"), said)
    assert not (tmp_path / "home").exists()


def test_a_spec_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for flags in ((), ("--sensitivity",)):
        assert_one_clear_line(
            inspect(tmp_path / "none.yaml", *flags, "--home", tmp_path / "home"), "no such file"
        )
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("plot", "said"),
    [("map.jpg", "'map.jpg' (expected a name ending in .png or .svg)"), ("none/map.png", "does not exist")],
)
def test_a_plot_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, plot: str, said: str
) -> None:
    spec = write_case(tmp_path)
    result = inspect(spec, "--sensitivity", "--plot", tmp_path / plot, "--home", tmp_path / "home")
    assert_one_clear_line(result, said)
    assert not (tmp_path / "home").exists()


def test_a_plot_over_a_folder_is_the_users_error(inspected: Inspected) -> None:
    plot = inspected.home / "folder.png"
    plot.mkdir()
    result = inspect(inspected.spec, "--sensitivity", "--plot", plot, "--home", inspected.home)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("autoq: error: ")
    assert "folder.png: cannot write the plot" in result.stderr


def test_a_plot_without_sensitivity_is_refused(tmp_path: Path) -> None:
    result = inspect(write_case(tmp_path), "--plot", tmp_path / "map.png")
    assert_one_clear_line(result, "--plot draws local errors: give --sensitivity as well")


def test_data_that_do_not_fit_are_the_users_error(tmp_path: Path) -> None:
    spec = write_case(tmp_path)
    images = draw_images(16, np.random.default_rng(0))
    np.savez(tmp_path / "data.npz", calib_x=images[:, :2], search_x=images, search_y=np.zeros(16, np.int64))
    result = inspect(spec, "--sensitivity", "--home", tmp_path / "home")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("autoq: error: ")
