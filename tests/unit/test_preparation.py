from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoq.evaluation.racing import RacingSettings
from autoq.preparation import racing_settings
from autoq.spec.loading import load_spec
from autoq.spec.schema import SearchSpec

CONTENT: dict[str, Any] = {
    "version": 1,
    "name": "bench",
    "model": {"path": "m.onnx"},
    "data": {
        "calibration": {"npz": "d.npz", "inputs": {"x": "a"}},
        "search": {"npz": "d.npz", "inputs": {"x": "b"}, "labels": "y"},
    },
    "space": "cnn",
}


def spec_with(folder: Path, **changes: Any) -> SearchSpec:
    (folder / "spec.yaml").write_text(yaml.safe_dump(CONTENT | changes))
    return load_spec(folder / "spec.yaml")


def test_races_are_about_what_the_spec_bounds_and_seeded_as_the_search(tmp_path: Path) -> None:
    bounds = {"max_accuracy_drop": 0.01, "max_latency_ratio": 0.5}
    spec = spec_with(tmp_path, constraints=bounds, search={"seed": 7})
    assert racing_settings(spec) == RacingSettings(0.01, None, 0.5, seed=7, axes=("latency",))


def test_racing_can_be_turned_off(tmp_path: Path) -> None:
    assert racing_settings(spec_with(tmp_path, search={"racing": False})) is None


@pytest.mark.parametrize(
    ("changes", "axes"),
    [
        ({}, ("latency",)),
        ({"objectives": ["accuracy", "storage"]}, ("storage",)),
        ({"objectives": ["accuracy", "latency", "size"]}, ("latency", "size")),
        ({"objectives": ["accuracy", "size"], "constraints": {"max_latency_ms": 1.0}}, ("latency", "size")),
        ({"constraints": {"max_size_bytes": 9, "max_bundle_bytes": 9}}, ("latency", "size", "storage")),
    ],
)
def test_an_opponent_costs_no_more_on_whatever_is_an_objective_or_bounded(
    tmp_path: Path, changes: dict[str, Any], axes: tuple[str, ...]
) -> None:
    settings = racing_settings(spec_with(tmp_path, **changes))
    assert settings is not None
    assert settings.axes == axes
