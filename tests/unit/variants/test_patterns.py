from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.variants.patterns import NOfM, Unstructured, keep_largest, keep_pattern, prune_rows

Floats = npt.NDArray[np.float32]

# Few distinct values, so that there are many ties.
tied = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
    elements=st.sampled_from([0.0, 1.0, 2.0, 3.0]),
)
patterns = st.sampled_from([NOfM(2, 4), NOfM(1, 4), NOfM(4, 8), NOfM(1, 2), NOfM(2, 3)])


@settings(deadline=None)
@given(tied, st.floats(0.0, 1.0))
def test_exactly_the_smallest_go_and_of_equal_ones_the_first(scores: Floats, share: float) -> None:
    n_zero = int(share * scores.size)
    kept = keep_largest(scores, n_zero)
    flat = scores.reshape(-1)
    order = sorted(range(flat.size), key=lambda index: (flat[index], index))
    assert sorted(np.flatnonzero(~kept.reshape(-1)).tolist()) == sorted(order[:n_zero])


@settings(deadline=None)
@given(tied, patterns)
def test_every_run_keeps_its_largest(scores: Floats, pattern: NOfM) -> None:
    kept = keep_pattern(scores, pattern)
    for where in np.ndindex(scores.shape[:2]):
        for start in range(0, scores.shape[2], pattern.m):
            run = scores[where][start : start + pattern.m]
            n_kept = math.ceil(len(run) * pattern.n / pattern.m)
            order = sorted(range(len(run)), key=lambda index, run=run: (run[index], index))
            expected = sorted(order[len(run) - n_kept :])
            assert np.flatnonzero(kept[where][start : start + pattern.m]).tolist() == expected


def test_two_of_four_keeps_the_two_largest_magnitudes() -> None:
    rows = np.array([[[1.0, -4.0, 3.0, 2.0, -1.0, 5.0, 0.0, 0.5, 7.0]]], np.float32)
    kept = prune_rows(rows, NOfM(2, 4))[0, 0]
    assert kept.tolist() == [False, True, True, False, True, True, False, False, True]


def test_a_share_is_rounded_to_whole_weights() -> None:
    rows = np.arange(1.0, 11.0, dtype=np.float32).reshape(1, 2, 5)
    assert prune_rows(rows, Unstructured(0.34)).reshape(-1).tolist() == [False] * 3 + [True] * 7
    assert prune_rows(rows, Unstructured(0.0)).all()


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4)])
def test_patterns_that_keep_none_or_all_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="none or all"):
        NOfM(n, m)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_shares_outside_the_range_are_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        Unstructured(sparsity)
