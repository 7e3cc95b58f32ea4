"""Which parameter of a torch module is the weight of which layer, told by their contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.data import Array
from autoq.core.layers import Layer
from autoq.variants.rows import to_rows

_TOLERANCE = 1e-4  # of the direction of a row that was scaled
_N_SAMPLED = 4  # rows that are compared before all are


@dataclass(frozen=True, slots=True)
class Match:
    """The parameter that a layer's weight was made of."""

    parameter: str
    is_transposed: bool

    def to_weight(self, values: Array, layer: Layer) -> Array:
        """Lay out what has the parameter's shape as the layer's weight."""
        return (values.squeeze().T if self.is_transposed else values).reshape(layer.weight_shape)


def match_parameters(
    layers: Sequence[Layer], weights: Mapping[str, Array], parameters: Mapping[str, Array]
) -> tuple[dict[str, Match], dict[str, str]]:
    """Find the parameter of each layer: the one of equal content, or whose rows are multiples of the layer's.

    Names do not tell: exporters fold transposes into weights, and those get new names. A batch norm that
    was folded multiplies each row by a number, which does not change what a column's mask does.

    Args:
        layers: All layers of the model, also those whose parameter nobody asks for: they show that a
            parameter is shared.
        weights: Their weights.
        parameters: The module's, by name.

    Returns:
        Matches by layer, and for every other layer the reason why it has none.
    """
    found = {layer.name: _matches(layer, weights[layer.name], parameters) for layer in layers}
    claims = Counter(name for one in found.values() for name in {match.parameter for match in one})
    missing = {layer.name: _why_none(layer, found[layer.name], claims) for layer in layers}
    matched = {name: one[0] for name, one in found.items() if not missing[name]}
    return matched, {name: reason for name, reason in missing.items() if reason}


def _why_none(layer: Layer, matches: Sequence[Match], claims: Counter[str]) -> str:
    if layer.is_recurrent:
        return "a recurrence reads it"
    if not matches:
        return "no parameter of the module equals a weight that reads it"
    if len(matches) > 1:
        return "a weight that reads it equals several parameters of the module"
    if claims[matches[0].parameter] > 1:
        return "a weight that reads it is shared by several layers"
    return ""


def _matches(layer: Layer, weight: Array, parameters: Mapping[str, Array]) -> list[Match]:
    if layer.is_recurrent:
        return []
    candidates = [
        (match, match.to_weight(values, layer))
        for name, values in parameters.items()
        for match in _layouts(name, values.shape, layer.weight_shape)
    ]
    if equal := [match for match, values in candidates if _is_equal(values, weight)]:
        return equal
    rows = _flat_rows(weight, layer)
    return [match for match, values in candidates if _is_scaled(rows, _flat_rows(values, layer))]


def _is_equal(values: Array, weight: Array) -> bool:
    """Compare a first part before the whole: most parameters are another layer's."""
    return np.array_equal(values[:1], weight[:1]) and np.array_equal(values, weight)


def _layouts(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[Match]:
    """Axes of length one may come and go: a product may have become a convolution."""
    long, wanted_long = ([size for size in one if size > 1] for one in (shape, wanted))
    if long == wanted_long:
        yield Match(name, is_transposed=False)
    if len(long) == 2 and long[::-1] == wanted_long:
        yield Match(name, is_transposed=True)


def _flat_rows(weight: Array, layer: Layer) -> Array:
    rows = to_rows(weight, layer)
    return rows.reshape(-1, rows.shape[2])


def _is_scaled(rows: Array, others: Array) -> bool:
    """Whether each row is a multiple of the other's, some not by zero; a single number always would be."""
    if rows.shape[1] < 2:
        return False
    alive = np.flatnonzero(rows.any(axis=1))
    few = alive[:: max(1, len(alive) // _N_SAMPLED)]
    return len(alive) > 0 and all(_have_one_direction(rows[at], others[at]) for at in (few, alive))


def _have_one_direction(rows: Array, others: Array) -> bool:
    one, other = (_unit(half) for half in (rows, others))
    along = np.einsum("ij,ij->i", one, other)[:, None]
    return bool((np.abs(one - along * other) <= _TOLERANCE).all())


def _unit(rows: Array) -> Array:
    """Rows of length one; a row of zeros stays one, and is no multiple of any other."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0.0, lengths, 1.0))
