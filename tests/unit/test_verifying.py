from __future__ import annotations

from dataclasses import replace

import pytest

from autoq.core.errors import UnfaithfulModel
from autoq.core.measurements import Accuracy, Latency, Measurement, Size
from autoq.verifying import MAX_GAP, check_score, speed_gap


def timed(speedup: float, half_width: float = 0.02) -> Latency:
    interval = (speedup * (1 - half_width), speedup * (1 + half_width))
    return Latency(10.0 / speedup, (9.0, 11.0), 12.0, speedup, interval, 24)


MEASURED = Measurement(Accuracy(0.9, 0.01, (0.0, 0.02), 500), timed(2.0), Size(1000, 500))


def test_speed_ups_whose_intervals_touch_do_not_differ() -> None:
    assert speed_gap(timed(2.0), timed(2.0), 0.0) == 0.0
    assert speed_gap(timed(2.0), timed(2.07), 0.0) == 0.0
    assert speed_gap(timed(2.2), timed(2.0), 0.05) == 0.0  # by what the machine differs by for no reason


@pytest.mark.parametrize(("again", "before"), [(1.0, 2.0), (2.0, 1.0)])
def test_a_gap_is_counted_from_interval_to_interval_whichever_is_faster(again: float, before: float) -> None:
    assert speed_gap(timed(again), timed(before), 0.0) == pytest.approx(2 * 0.98 / 1.02 - 1)


def test_a_busy_machine_is_warned_of_and_another_model_refused() -> None:
    assert 0.0 < speed_gap(timed(1.7), timed(2.0), 0.01) <= MAX_GAP
    assert speed_gap(timed(1.3), timed(2.0), 0.01) > MAX_GAP


@pytest.mark.parametrize("value", [0.898, float("nan")])
def test_another_score_on_the_same_examples_is_another_model(value: float) -> None:
    with pytest.raises(UnfaithfulModel, match=r"scores .* on 500 examples, measured was 0\.9"):
        check_score(replace(MEASURED, accuracy=replace(MEASURED.accuracy, value=value)), MEASURED)


def test_scores_of_other_examples_are_not_held_against_each_other() -> None:
    raced = replace(MEASURED, accuracy=replace(MEASURED.accuracy, value=0.5, n_examples=128))
    check_score(raced, MEASURED)


def test_an_estimate_is_not_held_against_a_score_of_as_many_examples() -> None:
    """The first look of a race and the first impression of what is too slow see as many, and differ."""
    estimate = replace(MEASURED, accuracy=replace(MEASURED.accuracy, value=0.5, is_estimate=True))
    check_score(MEASURED, estimate)
