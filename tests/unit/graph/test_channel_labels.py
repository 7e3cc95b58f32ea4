from __future__ import annotations

import numpy as np
import pytest

from autoq.graph.channel_labels import Dims, Units, along, reshaped, varying

NO_REASON = ""


def test_joined_labels_are_one_set_whatever_the_order() -> None:
    units = Units()
    first, second, third = units.make(3), units.make(3), units.make(3)
    units.join(third, second, NO_REASON)
    units.join(second, first, NO_REASON)
    assert (units.find(third) == units.find(first)).all()
    assert len(np.unique(units.find(first))) == 3


def test_what_is_joined_with_a_kept_label_stays_and_tells_the_reason() -> None:
    units = Units()
    first, second = units.make(2), units.make(2)
    units.keep(first[:1], "an output")
    units.join(second, first, NO_REASON)
    assert units.find(second).tolist()[0] == 0
    assert units.find(second).tolist()[1] != 0
    assert units.reasons(second) == ["an output"]


def test_what_meets_something_unlabelled_stays() -> None:
    units = Units()
    made = units.make(2)
    units.join(made, np.zeros(2, np.int64), "a constant")
    assert not units.find(made).any()
    assert units.reasons(made) == ["a constant"]


@pytest.mark.parametrize(
    ("dims", "axis", "target"),
    [
        (("batch", 3, 2, 2), 1, ("batch", 12)),  # flattened maps
        (("batch", "length", 12), 2, ("batch", "length", 3, 4)),  # heads
        (("batch", "length", 3, 4), 2, ("batch", "length", 12)),
        (("batch", 6, "height", "width"), 1, ("batch", 6, None)),
        (("batch", 6, "height", "width"), 1, ("batch", 2, 3, "height", "width")),  # a shuffle
        (("batch", 6, 1, 1), 1, ("batch", 6)),
        (("batch", 6), 1, ("batch", 6, 1, 1)),
        ((None, 6), 1, (None, 1, 6)),
    ],
)
def test_labels_follow_a_reshape_as_the_elements_do(dims: Dims, axis: int, target: Dims) -> None:
    size = dims[axis]
    assert isinstance(size, int)
    labels = along(np.arange(1, size + 1), axis=axis, rank=len(dims))
    followed = reshaped(labels, dims, target)
    assert followed is not None
    lengths = {"batch": 2, "length": 5, "height": 3, "width": 4}
    full = [one if isinstance(one, int) else lengths.get(str(one), 2) for one in dims]
    elements = np.broadcast_to(labels, full)
    wanted = [one if isinstance(one, int) else lengths.get(str(one), -1) for one in target]
    expected = elements.reshape(wanted)
    np.testing.assert_array_equal(np.broadcast_to(followed, expected.shape), expected)
    assert varying(followed)


def test_labels_on_an_axis_that_is_mixed_with_one_of_unknown_length_cannot_be_followed() -> None:
    labels = along(np.arange(1, 5), axis=1, rank=3)
    assert reshaped(labels, ("batch", 4, 8), (None, 8)) is None
