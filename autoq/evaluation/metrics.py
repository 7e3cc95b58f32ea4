"""Metrics: what the score of an example, or of a whole set, is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autoq.core.data import Array
from autoq.core.errors import AutoqError, DataError, ModelError, TrialError, UserError
from autoq.core.python_objects import describe_error, load_object
from autoq.evaluation.statistics import Values

Outputs = Mapping[str, Array]  # output name -> (n, ...)
Scope = Literal["example", "set"]
# function(outputs, reference, labels) -> (n,) values, or one number; the reference is the float model's
MetricFunction = Callable[[Outputs, Outputs, Array | None], Any]

_ROUNDING = 1e-6  # a float32 mean of ones may exceed 1 by so much


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric by name or by reference, so that it pickles and any process can load it."""

    name: str  # top1, or the function's name
    reference: str | None = None  # of the user's function, `/folder/file.py:name`; None if built in
    scope: Scope = "example"  # `example`: the metric is the mean of the values
    maximize: bool = True
    bounds: tuple[float, float] | None = None  # of the values

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot be computed without labels; a user's function may do without."""
        return self.reference is None and self.name in ("top1", "top5")

    @property
    def needs_reference(self) -> bool:
        """Whether the float model's outputs have to be kept."""
        return not self.needs_labels

    @property
    def span(self) -> float | None:
        """Largest difference two values can have, or None without bounds."""
        return None if self.bounds is None else self.bounds[1] - self.bounds[0]

    @property
    def sign(self) -> float:
        """1 if larger values are better, -1 if smaller ones are."""
        return 1.0 if self.maximize else -1.0

    def load(self, output: str | None = None) -> MetricFunction:
        """Return the function; a user's is imported.

        Args:
            output: The output that a built-in metric looks at; the only one by default.

        Raises:
            UserError: The user's function cannot be imported or called.
        """
        if self.reference is None:
            return partial(_BUILTIN[self.name], output=output)
        function = load_object(self.reference)
        if not callable(function):
            raise UserError(f"metric {self.reference}: expected a function, got {function!r:.60}")
        loaded: MetricFunction = function
        return loaded


def builtin_metric(name: str) -> MetricSpec:
    """Return `top1`, `top5` or `fidelity`.

    Raises:
        KeyError: There is no such metric.
    """
    return MetricSpec(name, bounds=_BUILTIN_BOUNDS[name])


def top1(outputs: Outputs, reference: Outputs, labels: Array | None, *, output: str | None = None) -> Values:
    """Say for each example whether the largest score is at its label.

    The last axis of the output, (n, ..., classes), runs over classes; of equal scores the first
    counts. Where an example has several labels, (n, ...), its value is their mean.
    """
    return _top_k(outputs, labels, output, k=1)


def top5(outputs: Outputs, reference: Outputs, labels: Array | None, *, output: str | None = None) -> Values:
    """Say for each example whether its label is among the five largest scores; see `top1`."""
    return _top_k(outputs, labels, output, k=5)


def fidelity(
    outputs: Outputs, reference: Outputs, labels: Array | None, *, output: str | None = None
) -> Values:
    """Cosine similarity of each example's output to the float model's.

    Two outputs that are zero everywhere are alike (1); one alone is like nothing (0).
    """
    found, wanted = pick_output(outputs, output), pick_output(reference, output)
    if found.shape != wanted.shape:
        raise TrialError(f"an output has shape {found.shape} where the float model's has {wanted.shape}")
    a = found.reshape(len(found), -1).astype(np.float64)
    b = wanted.reshape(len(wanted), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosine = np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1.0)
    return np.where(both_zero, 1.0, np.clip(cosine, -1.0, 1.0))


def pick_output(outputs: Outputs, name: str | None) -> Array:
    """Return the named output, or the only one.

    Raises:
        ModelError: There are several and none is named.
    """
    if name is None and len(outputs) > 1:
        names = ", ".join(sorted(outputs))
        raise ModelError(
            f"the model has several outputs ({names})", hint="model.output names the one to score"
        )
    return outputs[next(iter(outputs)) if name is None else name]


def evaluate_metric(
    spec: MetricSpec,
    function: MetricFunction,
    outputs: Outputs,
    reference: Outputs,
    labels: Array | None,
    *,
    positions: npt.NDArray[np.int64] | None = None,
) -> Values | float:
    """Call a metric and check what it returns.

    Args:
        spec: What the metric promises.
        function: The loaded metric.
        outputs: The candidate's, each (n, ...).
        reference: The float model's.
        labels: (n, ...) or None.
        positions: (n,) of the rows in the split, for messages; 0 to n - 1 by default.

    Returns:
        (n,) values, or one number where the scope is a set.

    Raises:
        TrialError: The outputs are not finite and the metric cannot cope with that.
        UserError: The function raised, or returned something else than it promises.
    """
    n = len(next(iter(outputs.values())))
    if positions is None:
        positions = np.arange(n)
    place = f"metric {spec.name}, {_described(positions)}"
    try:
        returned = _call(function, outputs, reference, labels, place)
        return _checked(returned, spec, place, positions)
    except UserError:
        _blame_infinities(outputs)
        raise


def _call(
    function: MetricFunction, outputs: Outputs, reference: Outputs, labels: Array | None, place: str
) -> Any:
    try:
        return function(outputs, reference, labels)
    except AutoqError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"{place}: the function raised {describe_error(error)}") from error


def _described(positions: npt.NDArray[np.int64]) -> str:
    first, last = int(positions.min()), int(positions.max())
    if last - first == len(positions) - 1:
        return f"examples {first} to {last}"
    return f"{len(positions)} examples between {first} and {last}"


def _checked(returned: Any, spec: MetricSpec, place: str, positions: npt.NDArray[np.int64]) -> Values | float:
    n = len(positions)
    try:
        values = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: the function returned {returned!r:.60}, expected numbers") from error
    is_number = values.ndim == 0 and spec.scope == "set"
    if values.shape != (n,) and not is_number:
        expected = f"({n},)" + (" or one number" if spec.scope == "set" else "")
        raise UserError(f"{place}: the function returned shape {values.shape}, expected {expected}")
    low, high = spec.bounds or (-np.inf, np.inf)
    bad = ~np.isfinite(values) | (values < low - _ROUNDING) | (values > high + _ROUNDING)
    if bad.any():
        row = int(np.argmax(bad))
        which = "the set" if is_number else f"example {positions[row]}"
        expected = "a finite value" if spec.bounds is None else f"a value in [{low:g}, {high:g}]"
        raise UserError(f"{place}: {float(values.reshape(-1)[row])!r} for {which}, expected {expected}")
    return float(values) if is_number else values


def _blame_infinities(outputs: Outputs) -> None:
    """A metric that fails on infinities is not to blame: the candidate is."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TrialError(f"output {name!r} has infinite values")


def _top_k(outputs: Outputs, labels: Array | None, output: str | None, *, k: int) -> Values:
    scores = pick_output(outputs, output)
    if labels is None:
        raise DataError("the metric needs labels and the split has none")
    if scores.ndim < 2:
        raise ModelError(f"the output has shape {scores.shape}, expected classes along a last axis")
    wanted = labels.reshape(scores.shape[:-1]) if labels.size == scores[..., 0].size else labels
    n_classes = scores.shape[-1]
    if wanted.shape != scores.shape[:-1]:
        raise DataError(f"labels have shape {labels.shape}, expected {scores.shape[:-1]} as the output has")
    if wanted.dtype.kind not in "iub":
        raise DataError(f"labels hold {labels.dtype}, expected integer classes")
    index = wanted.astype(np.int64)[..., None]
    if index.size and not 0 <= index.min() <= index.max() < n_classes:
        raise DataError(f"labels run from {index.min()} to {index.max()}, expected 0 to {n_classes - 1}")
    own = np.take_along_axis(scores, index, axis=-1)
    # Ties go to the lower class, as argmax does: a model whose scores are all alike knows nothing.
    ahead = (scores > own) | ((scores == own) & (np.arange(n_classes) < index))
    hits = (ahead.sum(axis=-1) < k).astype(np.float64)
    values: Values = hits.reshape(len(hits), -1).mean(axis=1)
    return values


_BUILTIN: dict[str, Callable[..., Values]] = {"top1": top1, "top5": top5, "fidelity": fidelity}
_BUILTIN_BOUNDS = {"top1": (0.0, 1.0), "top5": (0.0, 1.0), "fidelity": (-1.0, 1.0)}
