"""A model whose outputs change from run to run: said, or refused where no drop can be told."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import helper
from tiny_case import run_autoq, write_case

# With its own outputs as reference a model that draws random numbers scores below one for certain.
FIDELITY = {"metric": "fidelity"}


def with_noise(folder: Path, **changes: object) -> Path:
    spec = write_case(folder, FIDELITY | changes)
    network = onnx.load(folder / "tiny.onnx")
    last = next(node for node in network.graph.node if "logits" in node.output)
    last.output[0] = "clean"
    network.graph.node.extend(
        [
            helper.make_node("RandomNormalLike", ["clean"], ["drawn"], scale=0.2),
            helper.make_node("Add", ["clean", "drawn"], ["logits"]),
        ]
    )
    onnx.checker.check_model(network)
    onnx.save(network, folder / "tiny.onnx")
    return spec


def test_it_is_refused_where_two_runs_differ_by_more_than_the_allowed_drop(tmp_path: Path) -> None:
    spec = with_noise(tmp_path, constraints={"max_accuracy_drop": 0.0})
    ran = run_autoq("search", spec, "--home", tmp_path / "home")
    assert ran.returncode == 2, ran.stderr
    assert "two runs of the float model on the same data give different outputs; the metric" in ran.stderr
    assert "more than the allowed drop of 0" in ran.stderr
    assert json.loads(run_autoq("list", "--home", tmp_path / "home", "--json").stdout)["searches"] == []


def test_otherwise_the_search_goes_on_and_says_so(tmp_path: Path) -> None:
    spec = with_noise(tmp_path, **{"search.trials": 1})
    ran = run_autoq("search", spec, "--home", tmp_path / "home", "--json")
    assert "warning: two runs of the float model on the same data" in ran.stderr, ran.stderr
    assert "candidates are not raced" in ran.stderr
    assert json.loads(ran.stdout)["trials"] == 1
