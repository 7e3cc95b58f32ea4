"""Searches over width: narrowed points are measured, shown, exported, and rebuilt from their recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_case import N_CLASSES, NAME, run_autoq, tiny_data, write_spec

from autoq.testing.models import GraphBuilder

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
    report: dict[str, Any]
    points: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["tpe", "guided"])
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp(request.param)
    spec, home = write_wide_case(folder, request.param), folder / "home"
    ran = run_autoq("search", spec, "--home", home, "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    shown = run_autoq("show", NAME, "--home", home, "--json")
    assert shown.returncode == 0, shown.stderr
    return Searched(spec, home, ran.stderr, report, json.loads(shown.stdout)["trials"])


def narrowest(searched: Searched) -> dict[str, Any]:
    narrowed = [point for point in searched.points if point.get("widths")]
    assert narrowed, "no narrowed point was measured"
    return min(narrowed, key=lambda point: sum(point["widths"].values()))


def test_every_level_has_an_anchor(searched: Searched) -> None:
    anchors = [point["origin"] for point in searched.points if "narrowed to" in point["origin"]]
    assert [origin.rpartition(" narrowed to ")[2] for origin in anchors] == ["80 %", "50 %"]
