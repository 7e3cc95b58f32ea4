from __future__ import annotations

import itertools

import pytest

from autoq.search.stopwatch import Stopwatch


def test_parts_of_one_name_add_up_and_the_total_runs_from_the_start() -> None:
    ticks = itertools.count(start=100.0)
    watch = Stopwatch(lambda: next(ticks))
    for name in ("suggest", "store", "suggest"):
        with watch.part(name):
            pass
    assert watch.read() == {"suggest": 2.0, "store": 1.0, "total": 7.0}


def test_a_part_that_raises_is_still_counted() -> None:
    ticks = itertools.count()
    watch = Stopwatch(lambda: float(next(ticks)))
    with pytest.raises(KeyError), watch.part("run"):
        raise KeyError
    assert watch.read()["run"] == 1.0
