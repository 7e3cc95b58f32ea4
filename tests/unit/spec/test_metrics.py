import pickle
from pathlib import Path

import pytest

from autoq.core.errors import SpecError
from autoq.evaluation.metrics import MetricSpec
from autoq.spec.metrics import load_metric
from autoq.spec.schema import PythonMetricSpec


def spec(path: Path, function: str) -> PythonMetricSpec:
    return PythonMetricSpec(python=f"{path}:{function}", scope="example", direction="minimize")


def test_built_in_metrics_are_means_of_bounded_values() -> None:
    assert load_metric("top1") == MetricSpec("top1", None, "example", True, (0.0, 1.0))
    assert load_metric("fidelity").bounds == (-1.0, 1.0)


def test_a_metric_of_the_users_survives_pickling(tmp_path: Path) -> None:
    path = tmp_path / "metrics.py"
    path.write_text("def half(outputs, reference, labels):\n    return 0.5\n")
    metric = pickle.loads(pickle.dumps(load_metric(spec(path, "half"))))
    assert (metric.name, metric.scope, metric.maximize) == ("half", "example", False)
    assert metric.load()({}, {}, None) == 0.5


def test_a_metric_that_cannot_be_loaded_is_refused_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "metrics.py"
    path.write_text("number = 3\n")
    for function, expected in [
        ("number", f"metric.python: expected {path}:number to be a function, got 3"),
        ("nothing", f"metric.python: {path}:nothing: {path} has no 'nothing'"),
    ]:
        with pytest.raises(SpecError) as caught:
            load_metric(spec(path, function))
        assert str(caught.value) == expected
    with pytest.raises(SpecError, match=r"^metric\.python: .*no\.py: no such file$"):
        load_metric(spec(tmp_path / "no.py", "f"))
