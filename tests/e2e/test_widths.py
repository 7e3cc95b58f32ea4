"""Searches over width: narrowed points are measured, shown, exported, and rebuilt from their recipe."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_case import N_CLASSES, NAME, ledger_of, run_autoq, tiny_data, write_spec

from autoq.calibrating import SourceKeys, build_stitcher, load_source
from autoq.core.choices import Criterion, Refit, Rewrites
from autoq.export.recipe import Ingredients, build_recipe, save_recipe
from autoq.exporting import Silent, apply_recipe_file
from autoq.home import Home
from autoq.preparation import prepare, prepare_sources
from autoq.search.records import TrialRecord
from autoq.search.space import FULL_WIDTH, WidthLevel
from autoq.spec.loading import load_spec
from autoq.testing.models import GraphBuilder
from autoq.tracking.run_content import trial_params

_LOST = "is out of reach, or no step of its own"
SPACE: dict[str, Any] = {
    "version": 1,
    "layers": {"*": {"format": ["fp32", "int8"], "calibration": ["minmax", "mse"], "rounding": "gptq"}},
    "graph": {"add": ["int8", "float"]},
    "rewrites": {"widths": {"latency": [0.8, 0.5], "groups": {"head*": "full", "stem": {"min": 0.5}}}},
}


def wide_network() -> onnx.ModelProto:
    net = GraphBuilder(seed=1)
    image = net.input("image", "batch", 3, 16, 16)
    x = net.node("Relu", net.conv(image, "stem", (3, 32), strides=[2, 2]))
    y = net.node("Relu", net.conv(x, "block.conv1", (32, 64)))
    x = net.node("Relu", net.node("Add", net.conv(y, "block.conv2", (64, 32)), x))
    x = net.node("Relu", net.conv(x, "head.conv", (32, 32)))
    return net.build(logits=(net.classify(x, 32, N_CLASSES), ("batch", N_CLASSES)))


def write_wide_case(folder: Path, strategy: str, changes: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = wide_network()
    onnx.save(model, folder / "tiny.onnx")
    np.savez(folder / "data.npz", **tiny_data(model))
    return write_spec(
        folder, {"space": SPACE, "search.strategy": strategy, "search.trials": 14, **(changes or {})}
    )


@dataclass(frozen=True)
class Searched:
    spec: Path
    home: Path
    said: str
    trials: list[TrialRecord]

    @property
    def narrowed(self) -> list[TrialRecord]:
        return [trial for trial in self.trials if trial.candidate.rewrites.widths and trial.measurement]


@pytest.fixture(scope="module", params=[("tpe", Refit.NESTED), ("guided", Refit.SEQUENTIAL)])
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    strategy, refit = request.param
    folder = tmp_path_factory.mktemp(strategy)
    widths = {**SPACE["rewrites"]["widths"], "refit": str(refit)}
    space = {**SPACE, "rewrites": {"widths": widths}}
    spec, home = write_wide_case(folder, strategy, {"space": space}), folder / "home"
    ran = run_autoq("search", spec, "--home", home, "--json")
    assert ran.returncode == 0, ran.stderr
    with ledger_of(home) as ledger:
        return Searched(spec, home, ran.stderr, ledger.load_trials(NAME))


class Hearing(Silent):
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def settled(spec: Path, home: Path) -> tuple[list[WidthLevel], list[str]]:
    """The levels of width that a search would offer, and what is said of them."""
    opened, listener = Home.open(home), Hearing()
    ready = prepare(load_spec(spec), opened, listener)
    prepare_sources(ready, opened, listener)
    return list(ready.space.rewrites.widths), [note for note in listener.notes if note.startswith("widths: ")]


def test_levels_are_decided_once_and_a_damaged_decision_is_made_anew(tmp_path: Path) -> None:
    spec, home = write_wide_case(tmp_path, "tpe"), tmp_path / "home"
    levels, _ = settled(spec, home)
    assert levels[0] == FULL_WIDTH
    assert all(
        1 <= units < {"block.conv1": 64}.get(group, 32) for one in levels[1:] for group, units in one.widths
    )
    (kept,) = (home / "cache" / "widths").glob("*.json")
    # Profiles differ from run to run: what was decided is read, whatever another profile would say.
    kept.write_text(json.dumps([{"share": 0.5, "widths": {"stem": 24}}]))
    again, said = settled(spec, home)
    assert [dict(level.widths) for level in again] == [{}, {"stem": 24}]
    assert said == [
        "widths: reused, 1 narrower models chosen earlier",
        f"widths: 80 % of the latency {_LOST}",
    ]
    kept.write_text("{")
    anew, said = settled(spec, home)
    assert [level.label for level in anew] == [level.label for level in levels]
    assert not any("reused" in note for note in said)


def test_widths_given_by_group_are_levels_of_their_own_on_the_grid(tmp_path: Path) -> None:
    given = {"slim": {"*": 0.8, "stem": 0.5, "head*": 1.0}, "twin": {"stem": 0.6, "block.*": 0.8}}
    space = {**SPACE, "rewrites": {"widths": {"given": {**given, "whole": {"stem": 1.0}}}}}
    levels, said = settled(write_wide_case(tmp_path, "tpe", {"space": space}), tmp_path / "home")
    assert [level.label for level in levels] == ["100 %", "slim"]
    assert dict(levels[1].widths) == {"stem": 16, "block.conv1": 48}  # 51 is between 48 and 64
    assert said == ["widths: twin is what slim is", "widths: whole narrows nothing"]


def test_a_bound_holds_for_widths_that_are_given_too_and_of_two_as_close_the_wider_is_taken(
    tmp_path: Path,
) -> None:
    widths = {"groups": {"block.*": {"min": 0.8}}, "given": {"half": {"block.*": 0.5, "stem": 0.625}}}
    spec = write_wide_case(tmp_path, "tpe", {"space": {**SPACE, "rewrites": {"widths": widths}}})
    levels, said = settled(spec, tmp_path / "home")
    assert [dict(level.widths) for level in levels] == [{}, {"stem": 24}]  # 20 is between 16 and 24
    assert said == []


def test_a_model_without_groups_is_searched_at_full_width_and_that_is_said(tmp_path: Path) -> None:
    net = GraphBuilder(seed=1)
    flat = net.node("Flatten", net.input("image", "batch", 3, 16, 16))
    model = net.build(logits=(net.gemm(flat, "fc", 768, N_CLASSES), ("batch", N_CLASSES)))
    spec = write_wide_case(tmp_path, "tpe")
    onnx.save(model, tmp_path / "tiny.onnx")
    levels, said = settled(spec, tmp_path / "home")
    assert levels == [FULL_WIDTH]
    assert said[0] == "widths: no channel group can get narrower, the search goes on at full width"


def n_weights(path: Path) -> int:
    """Numbers in the tensors of a file: the layers' positions are the same, so fewer are fewer products."""
    return sum(math.prod(one.dims) for one in onnx.load(path).graph.initializer)


def test_every_level_has_an_anchor_that_was_measured(searched: Searched) -> None:
    anchors = [one for one in searched.narrowed if " narrowed to " in one.origin]
    assert anchors
    assert all(one.measurement is not None and one.measurement.divergence for one in anchors)


def test_a_group_that_is_to_stay_full_does_and_a_bound_holds(searched: Searched) -> None:
    for trial in searched.narrowed:
        widths = dict(trial.candidate.rewrites.widths)
        assert not any(group.startswith("head") for group in widths)
        assert widths.get("stem", 32) >= 16


def test_a_narrowed_point_is_exported_applied_to_the_same_bytes_and_runs_anywhere(
    searched: Searched, tmp_path: Path
) -> None:
    trial = searched.narrowed[0]
    out, applied = tmp_path / "out", tmp_path / "applied.onnx"
    home = ("--home", searched.home)
    ran = run_autoq("export", NAME, *home, "--select", trial.number, "--out", out)
    assert ran.returncode == 0, ran.stderr
    model = searched.spec.parent / "tiny.onnx"
    ran = run_autoq("apply", out / "recipe.yaml", "--model", model, "--out", applied)
    assert ran.returncode == 0, ran.stderr
    assert applied.read_bytes() == (out / "model.onnx").read_bytes()
    assert n_weights(applied) < 0.9 * n_weights(model)
    session = onnxruntime.InferenceSession(applied)
    assert session.run(None, {"image": np.zeros((1, 3, 16, 16), np.float32)})[0].shape == (1, N_CLASSES)


def test_without_its_caches_a_narrowed_point_is_rebuilt_to_the_same_bytes(
    searched: Searched, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(searched.home, home)
    trial, written = searched.narrowed[0], []
    for name in ("kept", "anew"):
        ran = run_autoq("export", NAME, "--home", home, "--select", trial.number, "--out", tmp_path / name)
        assert ran.returncode == 0, ran.stderr
        written.append((tmp_path / name / "model.onnx").read_bytes())
        shutil.rmtree(home / "cache")
    assert written[0] == written[1]


def test_widths_are_shown(searched: Searched) -> None:
    trial = searched.narrowed[0]
    ran = run_autoq("show", NAME, trial.number, "--home", searched.home, "--json")
    assert json.loads(ran.stdout)["widths"] == dict(trial.candidate.rewrites.widths)
    assert json.loads(ran.stdout)["refit"] == trial.candidate.rewrites.refit
    assert json.loads(ran.stdout)["criterion"] == "obs"
    assert (
        trial_params(trial.candidate).items()
        >= {f"width/{group}": str(units) for group, units in trial.candidate.rewrites.widths}.items()
    )


def test_a_glob_that_means_no_group_is_one_line(tmp_path: Path) -> None:
    bounds = {"latency": [0.8], "groups": {"nothing*": "full"}}
    space = {**SPACE, "rewrites": {"widths": bounds}}
    spec = write_wide_case(tmp_path, "tpe", {"space": space})
    ran = run_autoq("search", spec, "--home", tmp_path / "home")
    assert ran.returncode == 2
    assert "space.rewrites.widths.groups: the glob 'nothing*' matches nothing" in ran.stderr
    assert "Traceback" not in ran.stderr


FISHER_SPACE = {
    "version": 1,
    "layers": {"*": {"format": ["fp32", "int8"]}},
    "rewrites": {"widths": {"given": {"slim": {"*": 0.5}}, "criterion": "fisher"}},
}


def write_fisher_case(folder: Path) -> Path:
    rng, splits = np.random.default_rng(0), {"calibration": 16, "search": 24}
    np.savez(folder / "data.npz", **{name: rng.integers(0, 32, (n, 8)) for name, n in splits.items()})
    model = {
        "torch": "autoq.testing.sequence_families:gpt2",
        "example": {"tokens": {"shape": ["batch", 8], "dtype": "int64"}},
    }
    sources = {name: {"npz": "data.npz", "inputs": {"tokens": name}} for name in splits}
    changes = {"model": model, "data": sources, "space": FISHER_SPACE, "metric": "fidelity"}
    return write_spec(folder, {**changes, "constraints": {}, "search.trials": 3})


def test_a_torch_transformer_is_narrowed_by_fisher_scores_and_its_recipe_gives_the_same_bytes(
    tmp_path: Path,
) -> None:
    spec, home, listener = write_fisher_case(tmp_path), Home.open(tmp_path / "home"), Hearing()
    ready = prepare(load_spec(spec), home, listener)
    sources = prepare_sources(ready, home, listener)
    assert not any("OBS" in note for note in listener.notes)
    candidate = next(one.candidate for one in ready.anchors if one.candidate.rewrites.widths)
    widths = (("h.0.c_attn heads", 2), ("h.0.c_fc", 32), ("h.1.c_attn heads", 2), ("h.1.c_fc", 32))
    rewrites = Rewrites(widths=widths, criterion=Criterion.FISHER, loss="projection of linear")
    assert candidate.rewrites == rewrites
    source = sources[rewrites]
    read = load_source(home, SourceKeys.of(source))
    stitcher = build_stitcher(home, (*read, source.statistics_key), ready.target)
    artifact = stitcher.assemble(candidate).artifact
    ingredients = Ingredients(stitcher.plan(candidate), stitcher.variants(candidate), source.vectors)
    save_recipe(build_recipe(ready.model, ingredients, artifact), tmp_path)
    ready.model.artifact.save(tmp_path / "float.onnx")
    apply_recipe_file(tmp_path / "recipe.yaml", tmp_path / "float.onnx", tmp_path / "applied.onnx")
    assert (tmp_path / "applied.onnx").read_bytes() == artifact.content
