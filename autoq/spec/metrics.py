"""The metric of a spec, ready to be used in any process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from autoq.spec.python_objects import load_function
from autoq.spec.schema import PythonMetricSpec, Scope

# Every value of a built-in metric lies in these bounds.
_BUILTIN_BOUNDS = {"top1": (0.0, 1.0), "top5": (0.0, 1.0), "fidelity": (-1.0, 1.0)}


@dataclass(frozen=True, slots=True)
class LoadedMetric:
    """A metric by name or by reference, so that it pickles and a child process can load it again."""

    name: str  # top1, or the function's name
    reference: str | None  # of the user's function; None for a built-in metric
    scope: Scope  # `example`: the metric is the mean of the values
    maximize: bool
    bounds: tuple[float, float] | None  # of the values

    def load_function(self) -> Callable[..., Any] | None:
        """Import the user's function(outputs, reference, labels); None for a built-in metric.

        Raises:
            SpecError: The function cannot be imported.
        """
        return None if self.reference is None else load_function(self.reference, where="metric.python")


def load_metric(spec: Literal["top1", "top5", "fidelity"] | PythonMetricSpec) -> LoadedMetric:
    """Turn the spec's metric into one that can be used; a function of the user's is imported to check it.

    Raises:
        SpecError: The user's function cannot be imported.
    """
    if isinstance(spec, str):
        return LoadedMetric(spec, None, "example", True, _BUILTIN_BOUNDS[spec])
    name = spec.python.rpartition(":")[2]
    metric = LoadedMetric(name, spec.python, spec.scope, spec.direction == "maximize", spec.bounds)
    metric.load_function()
    return metric
