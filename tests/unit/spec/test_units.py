import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.errors import SpecError
from autoq.spec.units import parse_bytes, parse_drop, parse_duration, parse_latency_budget

numbers = st.floats(min_value=1e-6, max_value=1e9)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("90s", 90), ("10m", 600), ("1.5 h", 5400), (" 2min ", 120)]
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("3MB", 3_000_000), ("512KiB", 524_288), ("5GB", 5_000_000_000), ("0.5kb", 500), ("7 b", 7)],
)
def test_a_size_is_read_in_bytes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


def test_a_latency_budget_is_absolute_or_a_share() -> None:
    assert parse_latency_budget("0.8ms") == (pytest.approx(0.8), None)
    assert parse_latency_budget("300us") == (pytest.approx(0.3), None)
    assert parse_latency_budget("50%") == (None, pytest.approx(0.5))
    assert parse_latency_budget("100%") == (None, 1.0)


def test_a_drop_is_read_in_the_metrics_unit_or_in_percent() -> None:
    assert parse_drop("2.5") == 2.5
    assert parse_drop("1%") == pytest.approx(0.01)
    assert parse_drop("0.01") == 0.01
    assert parse_drop("0") == 0.0


@given(value=numbers, unit=st.sampled_from([("ms", 1e-3), ("s", 1), ("m", 60), ("h", 3600)]))
def test_every_formatted_duration_is_read_back(value: float, unit: tuple[str, float]) -> None:
    assert parse_duration(f"{value}{unit[0]}") == pytest.approx(value * unit[1])


@given(value=numbers)
def test_every_formatted_latency_is_read_back(value: float) -> None:
    assert parse_latency_budget(f"{value}ms") == (value, None)


@given(fraction=st.floats(min_value=0.0, max_value=1.0))
def test_every_formatted_drop_is_read_back(fraction: float) -> None:
    assert parse_drop(str(fraction)) == fraction
    assert parse_drop(f"{fraction * 100}%") == pytest.approx(fraction, rel=1e-12, abs=1e-300)


@given(
    value=st.integers(1, 2**32), unit=st.sampled_from([("B", 1), ("KB", 1000), ("KiB", 1024), ("MB", 10**6)])
)
def test_every_formatted_size_is_read_back(value: int, unit: tuple[str, int]) -> None:
    assert parse_bytes(f"{value}{unit[0]}") == value * unit[1]


@pytest.mark.parametrize("text", ["", "10", "-5s", "0s", "0ms", "5 parsecs", "s", "1e999s", "nan s", "10%"])
def test_a_duration_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_duration(text, where="--time-budget")
    assert str(caught.value) == (
        "--time-budget: expected a duration above 0 with its unit, "
        f"such as 500ms, 90s, 10m or 1h, got {text!r}"
    )


@pytest.mark.parametrize("text", ["", "0.8", "0ms", "-1ms", "150%", "0%", "ms", "1m", "inf ms"])
def test_a_latency_budget_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_latency_budget(text, where="--latency-budget")
    assert str(caught.value) == (
        "--latency-budget: expected a latency such as 0.8ms, "
        f"or a share of the float model's in (0%, 100%], got {text!r}"
    )


@pytest.mark.parametrize("text", ["", "-2", "150%", "-1%", "1ms", "nan", "one"])
def test_a_drop_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_drop(text, where="--max-drop")
    assert str(caught.value) == (
        f"--max-drop: expected a drop of at least 0, such as 0.01, or of at most 100%, got {text!r}"
    )


@pytest.mark.parametrize("text", ["", "3000000", "0MB", "0.2B", "-3MB", "3XB", "MB", "3 M B"])
def test_a_size_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_bytes(text, where="--max-size")
    assert str(caught.value) == (
        "--max-size: expected a size of at least 1 byte with its unit, "
        f"such as 3MB, 512KiB or 5GB, got {text!r}"
    )
