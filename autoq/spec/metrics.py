"""The metric of a spec, ready to be used in any process."""

from __future__ import annotations

from typing import Literal

from autoq.evaluation.metrics import MetricSpec, builtin_metric
from autoq.spec.python_objects import load_function
from autoq.spec.schema import PythonMetricSpec


def load_metric(spec: Literal["top1", "top5", "fidelity"] | PythonMetricSpec) -> MetricSpec:
    """Turn the spec's metric into one that can be used; a function of the user's is imported to check it.

    Raises:
        SpecError: The user's function cannot be imported.
    """
    if isinstance(spec, str):
        return builtin_metric(spec)
    load_function(spec.python, where="metric.python")
    name = spec.python.rpartition(":")[2]
    return MetricSpec(name, spec.python, spec.scope, spec.direction == "maximize", spec.bounds)
