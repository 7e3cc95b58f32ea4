from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.variants.sparsity import prune_by_magnitude

Floats = npt.NDArray[np.float32]

sparsities = st.floats(0.0, 0.99)
# Few distinct values, so that there are many ties.
tied = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=6),
    elements=st.sampled_from([-2.0, -1.0, 1.0, 2.0, 3.0]),
)


@settings(deadline=None)
@given(tied, sparsities)
def test_exactly_the_asked_share_becomes_zero_even_with_ties(weight: Floats, sparsity: float) -> None:
    pruned = prune_by_magnitude(weight, sparsity)
    assert int((pruned == 0.0).sum()) == round(sparsity * weight.size)
    assert pruned.shape == weight.shape


@settings(deadline=None)
@given(tied, sparsities)
def test_what_is_kept_is_unchanged_and_no_smaller_than_what_is_gone(weight: Floats, sparsity: float) -> None:
    pruned = prune_by_magnitude(weight, sparsity)
    gone = pruned == 0.0
    np.testing.assert_array_equal(pruned[~gone], weight[~gone])
    if gone.any() and not gone.all():
        assert np.abs(weight[~gone]).min() >= np.abs(weight[gone]).max()


def test_of_equal_magnitudes_the_first_go() -> None:
    weight = np.array([[1.0, -1.0], [1.0, 2.0]], np.float32)
    assert prune_by_magnitude(weight, 0.5).tolist() == [[0.0, 0.0], [1.0, 2.0]]


def test_the_given_weights_are_left_alone() -> None:
    weight = np.arange(1.0, 9.0, dtype=np.float32)
    before = weight.copy()
    prune_by_magnitude(weight, 0.5)
    np.testing.assert_array_equal(weight, before)


def test_zeros_that_are_there_already_count() -> None:
    weight = np.array([0.0, 0.0, 3.0, 4.0], np.float32)
    np.testing.assert_array_equal(prune_by_magnitude(weight, 0.5), weight)
