"""The specs under experiments/ stay valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoq.spec.loading import load_spec

SPECS = sorted((Path(__file__).parents[2] / "experiments").glob("*/spec.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.parent.name)
def test_the_spec_loads_and_is_named_after_its_folder(path: Path) -> None:
    assert load_spec(path).name == path.parent.name
