from __future__ import annotations

import pytest

from autoq.cli.wording import duration, flat, megabytes, milliseconds, size


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")]
)
def test_durations_carry_over_when_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.23 kB"), (97_800_000, "97.8 MB"), (5e9, "5.00 GB")],
)
def test_sizes_take_the_unit_that_reads_best(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


def test_large_and_small_megabytes_are_written_without_exponents() -> None:
    assert megabytes(1_234_000_000) == "1234"
    assert megabytes(2_345) == "0.00234"


def test_an_interval_has_the_decimals_of_its_value() -> None:
    assert milliseconds(0.35249, (0.3, 0.36)) == "0.352 [0.300, 0.360]"
    assert milliseconds(12.345) == "12.3"


def test_nested_mappings_become_dotted_rows() -> None:
    assert flat({"cpu": {"sets": ["a", "b"], "more": []}, "threads": None}) == {
        "cpu.sets": "a, b",
        "cpu.more": "none",
        "threads": "unknown",
    }
