from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from autoq.variants.local_error import (
    bias_correction,
    corrected_error,
    lookup_energy,
    through_moments,
    weight_error,
)

Doubles = npt.NDArray[np.float64]
GROUPS, ROWS, WIDTHS, N_VECTORS = 3, 4, (5, 2), 40


def case() -> tuple[Doubles, Doubles, Doubles]:
    """Weights, what they became, and inputs of shape (groups, vectors, columns)."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((GROUPS, ROWS, sum(WIDTHS)))
    inputs = rng.standard_normal((GROUPS, N_VECTORS, sum(WIDTHS))) + 0.7
    return rows, rows + 0.1 * rng.standard_normal(rows.shape), inputs


def second_moments(inputs: Doubles) -> Doubles:
    return inputs.swapaxes(1, 2) @ inputs / inputs.shape[1]


def two_blocks(inputs: Doubles) -> list[Doubles]:
    return [second_moments(inputs[..., : WIDTHS[0]]), second_moments(inputs[..., WIDTHS[0] :])]


def test_the_error_is_the_mean_squared_change_of_the_output() -> None:
    rows, restored, inputs = case()
    expected = 0.0
    for group in range(GROUPS):
        for x in inputs[group]:
            expected += float((((restored - rows)[group] @ x) ** 2).sum()) / N_VECTORS
    assert weight_error(rows, restored, [second_moments(inputs)]) == pytest.approx(expected)


def test_several_blocks_count_as_independent() -> None:
    rows, restored, inputs = case()
    first, second = two_blocks(inputs)
    whole = np.zeros((GROUPS, sum(WIDTHS), sum(WIDTHS)))
    whole[:, : WIDTHS[0], : WIDTHS[0]] = first
    whole[:, WIDTHS[0] :, WIDTHS[0] :] = second
    assert weight_error(rows, restored, [first, second]) == pytest.approx(
        weight_error(rows, restored, [whole])
    )
    np.testing.assert_allclose(through_moments(rows, [first, second]), rows @ whole)


def test_a_layer_that_is_always_zero_has_no_error() -> None:
    rows, restored, _ = case()
    blind = [np.zeros((GROUPS, sum(WIDTHS), sum(WIDTHS)))]
    assert weight_error(rows, restored, blind) == 0.0


def test_bias_correction_takes_the_mean_error_away() -> None:
    rows, restored, inputs = case()
    correction = bias_correction(rows, restored, inputs.mean(axis=1))
    changes = (restored - rows) @ inputs.swapaxes(1, 2)
    assert correction.shape == (GROUPS * ROWS,)
    np.testing.assert_allclose(correction, -changes.mean(axis=2).reshape(-1), rtol=1e-5, atol=1e-6)


def test_what_is_left_after_bias_correction_is_the_variance_of_the_change() -> None:
    rows, restored, inputs = case()
    changes = (restored - rows) @ inputs.swapaxes(1, 2)
    left = corrected_error(rows, restored, [second_moments(inputs)], inputs.mean(axis=1))
    assert left == pytest.approx(changes.var(axis=2).sum())
    both = corrected_error(rows, restored, two_blocks(inputs), inputs.mean(axis=1))
    parts = [slice(0, WIDTHS[0]), slice(WIDTHS[0], None)]
    expected = sum(
        ((restored - rows)[..., part] @ inputs[..., part].swapaxes(1, 2)).var(axis=2).sum() for part in parts
    )
    assert both == pytest.approx(expected)


def test_a_constant_input_leaves_nothing_after_bias_correction() -> None:
    rows, restored, _ = case()
    inputs = np.full((GROUPS, 10, sum(WIDTHS)), 3.0)
    left = corrected_error(rows, restored, [second_moments(inputs)], inputs.mean(axis=1))
    assert 0.0 <= left < 1e-9


def test_single_precision_is_enough() -> None:
    rows, restored, inputs = case()
    exact = weight_error(rows, restored, [second_moments(inputs)])
    single = weight_error(
        rows.astype(np.float32), restored.astype(np.float32), [second_moments(inputs).astype(np.float32)]
    )
    assert single == pytest.approx(exact, rel=1e-4)


def test_moments_that_do_not_cover_the_columns_are_refused() -> None:
    rows, restored, inputs = case()
    with pytest.raises(ValueError, match="do not fit"):
        weight_error(rows, restored, two_blocks(inputs)[:1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_energy_of_lookups_is_the_mean_square_of_the_rows_read(
    dtype: type[np.float32] | type[np.float64],
) -> None:
    table: npt.NDArray[np.floating] = np.random.default_rng(0).standard_normal((6, 3)).astype(dtype)
    read = [0, 5, 5, 2, 0, 5]
    shares = np.bincount(read, minlength=6) / len(read)
    expected = sum(float(table[row, column]) ** 2 for row in read for column in range(3)) / len(read)
    assert lookup_energy(table, shares) == pytest.approx(expected, rel=1e-6)
    # The same as moments that hold the shares on their diagonal, one group a row.
    whole = weight_error(np.zeros((6, 3, 1)), table[..., None].astype(np.float64), [shares[:, None, None]])
    assert lookup_energy(table, shares) == pytest.approx(whole, rel=1e-6)
