from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoq.spec.problems import validate
from autoq.spec.schema import SearchSpec

DataSpecMaker = Callable[..., SearchSpec]


@pytest.fixture
def spec_with_data(tmp_path: Path) -> DataSpecMaker:
    """Build a spec whose relative paths refer to `tmp_path`; data is given, the rest is fixed."""

    def make(metric: Any = "fidelity", **data: Any) -> SearchSpec:
        content = {
            "version": 1,
            "name": "demo",
            "model": {"path": "m.onnx"},
            "space": {"version": 1, "layers": {"*": {"format": "int8"}}},
            "metric": metric,
            "data": data,
        }
        return validate(SearchSpec, content, "spec.yaml", base=tmp_path)

    return make


@pytest.fixture
def images() -> dict[str, Any]:
    """Arrays a model with input x (n, 3, 4) float32 takes, all rows different."""
    rng = np.random.default_rng(0)
    values = {name: rng.random((n, 3, 4), dtype=np.float32) for name, n in (("a", 4), ("b", 10), ("c", 6))}
    labels = {f"{name}_y": np.arange(len(array)) for name, array in values.items()}
    return {**values, **labels}
