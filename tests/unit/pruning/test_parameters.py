from __future__ import annotations

import numpy as np
import pytest

from autoq.core.data import Array
from autoq.core.layers import Layer
from autoq.pruning.parameters import match_parameters

LINEAR = Layer("linear", "MatMul", (4, 6), 1)  # (in, out)
CONV = Layer("conv", "Conv", (6, 4, 3, 3), 0)
NONE_EQUAL = "no parameter of the module equals"


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def why_none(layers: list[Layer], weights: dict[str, Array], parameters: dict[str, Array]) -> dict[str, str]:
    matched, missing = match_parameters(layers, weights, parameters)
    assert matched.keys() | missing.keys() == {layer.name for layer in layers}
    assert not matched.keys() & missing.keys()
    return missing


@pytest.mark.parametrize(
    ("layer", "shape", "is_transposed"),
    [
        (LINEAR, (6, 4), True),
        (LINEAR, (4, 6), False),
        (LINEAR, (6, 4, 1), True),  # a convolution over single positions that became a product
        (Layer("linear", "Gemm", (6, 4), 0), (6, 4), False),
        (Layer("linear", "MatMul", (5, 5), 1), (5, 5), True),
        (CONV, (6, 4, 3, 3), False),
        (Layer("conv", "Conv", (6, 2, 3, 3), 0, group=2), (6, 2, 3, 3), False),
        (Layer("conv", "Conv", (6, 1, 3, 3), 0, group=6), (6, 1, 3, 3), False),
        (Layer("up", "ConvTranspose", (4, 6, 2, 2), 1), (4, 6, 2, 2), False),
    ],
)
def test_a_weight_is_found_by_its_content_and_laid_out_as_the_layers(
    layer: Layer, shape: tuple[int, ...], is_transposed: bool
) -> None:
    values = draw(*shape)
    weight = (values.squeeze().T if is_transposed else values).reshape(layer.weight_shape)
    others = {"other": draw(*shape, seed=1), "bias": draw(6, seed=2)}
    matched, missing = match_parameters([layer], {layer.name: weight}, {"mine": values, **others})
    assert missing == {}
    assert matched[layer.name].parameter == "mine"
    np.testing.assert_array_equal(matched[layer.name].to_weight(values, layer), weight)


def test_rows_that_a_batch_norm_scaled_are_found_whatever_the_sign_and_where_some_are_zero() -> None:
    values = draw(6, 4, 3, 3)
    scales = np.array([2.0, -0.5, 0.0, 1e-3, 7.0, -1.0], np.float32).reshape(-1, 1, 1, 1)
    parameters = {"mine": values, "other": draw(6, 4, 3, 3, seed=1)}
    matched, _ = match_parameters([CONV], {"conv": values * scales}, parameters)
    assert matched["conv"].parameter == "mine"
    one_row_off = values * scales
    one_row_off[4, 0, 0, 0] += 0.5
    assert NONE_EQUAL in why_none([CONV], {"conv": one_row_off}, parameters)["conv"]
    assert NONE_EQUAL in why_none([CONV], {"conv": 0 * values}, parameters)["conv"]


def test_a_row_of_the_module_that_is_zero_is_no_multiple() -> None:
    values = draw(6, 4, 3, 3)
    emptied = values.copy()
    emptied[2] = 0.0
    assert NONE_EQUAL in why_none([CONV], {"conv": values}, {"mine": emptied})["conv"]


def test_rows_of_a_single_number_are_multiples_of_anything_and_have_to_be_equal() -> None:
    layer = Layer("scale", "Conv", (6, 1, 1, 1), 0, group=6)
    weight = draw(6, 1, 1, 1)
    assert NONE_EQUAL in why_none([layer], {"scale": 2 * weight}, {"mine": weight})["scale"]
    assert why_none([layer], {"scale": weight}, {"mine": weight}) == {}


def test_columns_that_were_scaled_are_another_weight() -> None:
    """A norm before a layer adds too, and what is masked is then no longer its output."""
    weight = draw(4, 6)
    scaled = weight * np.arange(1, 5, dtype=np.float32)[:, None]
    assert NONE_EQUAL in why_none([LINEAR], {"linear": scaled}, {"mine": weight.T})["linear"]


def test_a_weight_of_two_layers_and_one_of_two_parameters_are_nobodys() -> None:
    weight = draw(4, 6)
    twin = Layer("twin", "Gather", (6, 4), 0)
    both = why_none([LINEAR, twin], {"linear": weight, "twin": weight.T}, {"mine": weight.T})
    assert set(both) == {"linear", "twin"}
    assert all("shared by several layers" in reason for reason in both.values())
    copies = {"mine": weight.T, "copy": weight.T.copy()}
    assert "several parameters" in why_none([LINEAR], {"linear": weight}, copies)["linear"]


def test_a_weight_that_two_batch_norms_scaled_is_shared() -> None:
    values, other = draw(6, 4, 3, 3), Layer("other", "Conv", (6, 4, 3, 3), 0)
    found = why_none([CONV, other], {"conv": values, "other": 2 * values}, {"mine": values})
    assert set(found) == {"conv", "other"}


def test_a_symmetric_weight_does_not_tell_rows_from_columns() -> None:
    layer, weight = Layer("linear", "MatMul", (5, 5), 1), draw(5, 5)
    assert why_none([layer], {"linear": weight + weight.T}, {"mine": weight + weight.T}).keys() == {"linear"}


def test_a_recurrence_has_no_parameter_of_its_own() -> None:
    layer = Layer("lstm", "LSTM", (1, 8, 5), 1)
    weight = draw(1, 8, 5)
    assert why_none([layer], {"lstm": weight}, {"mine": weight}) == {"lstm": "a recurrence reads it"}
