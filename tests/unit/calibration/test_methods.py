from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from autoq.calibration.methods import activation_range
from autoq.calibration.summaries import summarize
from autoq.core.choices import Calibration
from autoq.core.quantization import activation_params, dequantize, quantize

Floats = npt.NDArray[np.float32]
METHODS = tuple(method for method in Calibration if method is not Calibration.NONE)
PERCENTILES = {
    Calibration.PERCENTILE_99_9: 0.999,
    Calibration.PERCENTILE_99_99: 0.9999,
    Calibration.PERCENTILE_99_999: 0.99999,
}


def draw(name: str, n_values: int = 20_000) -> Floats:
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(n_values)
    drawn = {
        "normal": normal,
        "relu": np.maximum(normal, 0.0),
        "uniform": rng.uniform(-1.0, 3.0, n_values),
        "heavy tail": rng.standard_t(3, n_values),
        "positive heavy tail": np.abs(rng.standard_t(3, n_values)),
        "outlier": np.append(normal, 300.0),
        "far from zero": rng.normal(5.0, 0.1, n_values),
        "far below zero": rng.normal(-5.0, 0.1, n_values),
        "few values": rng.choice([-3.0, 0.0, 0.5, 7.0], n_values),
        "tiny": normal * 1e-30,
        "huge": normal * 1e30,
    }
    return drawn[name].astype(np.float32)


DISTRIBUTIONS = (
    "normal", "relu", "uniform", "heavy tail", "positive heavy tail", "outlier", "far from zero",
    "far below zero", "few values", "tiny", "huge",
)  # fmt: skip


def rms_error(raw: Floats, low: float, high: float) -> float:
    """What quantising really costs, on the values themselves."""
    params = activation_params(low, high, signed=False)
    error = dequantize(quantize(raw, params), params).astype(np.float64) - raw
    return float(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_range_lies_inside_the_extremes(name: str, method: Calibration) -> None:
    raw = draw(name)
    low, high = activation_range(summarize(raw), method)
    assert low <= high
    assert min(float(raw.min()), 0.0) <= low
    assert high <= max(float(raw.max()), 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_no_method_clips_away_the_bulk_of_the_values(name: str, method: Calibration) -> None:
    raw = draw(name)
    low, high = activation_range(summarize(raw), method)
    inside = (raw >= min(low, 0.0) - 1e-6 * abs(low)) & (raw <= max(high, 0.0) * (1 + 1e-6))
    assert inside.mean() >= 0.98


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-30, 3e38, -1e-12])
@pytest.mark.parametrize("n_values", [1, 1000])
def test_a_constant_keeps_its_value(value: float, n_values: int, method: Calibration) -> None:
    raw = np.full(n_values, value, np.float32)
    low, high = activation_range(summarize(raw), method)
    params = activation_params(low, high, signed=False)
    # A range of subnormal width is taken for zero.
    assert dequantize(quantize(raw[:1], params), params)[0] == pytest.approx(value, rel=0.01, abs=1e-35)


def test_minmax_is_exact() -> None:
    raw = draw("heavy tail")
    expected = (float(raw.min()), float(raw.max()))
    assert activation_range(summarize(raw), Calibration.MINMAX) == expected


@pytest.mark.parametrize("method", PERCENTILES)
@pytest.mark.parametrize("name", ["normal", "uniform", "heavy tail", "outlier", "far from zero"])
def test_percentiles_are_those_of_the_values_within_a_bin(name: str, method: Calibration) -> None:
    raw = np.sort(draw(name, 200_000))
    n_cut = round((1.0 - PERCENTILES[method]) * 200_000)
    summary = summarize(raw)
    low, high = activation_range(summary, method)
    assert high == pytest.approx(raw[-1 - n_cut], abs=summary.width)
    assert low == (pytest.approx(raw[n_cut], abs=summary.width) if summary.low < 0 else summary.low)


def test_a_higher_percentile_keeps_more() -> None:
    summary = summarize(draw("heavy tail", 200_000))
    ranges = [activation_range(summary, method) for method in PERCENTILES]
    assert ranges[0][0] > ranges[1][0] > ranges[2][0]
    assert ranges[0][1] < ranges[1][1] < ranges[2][1]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_never_worse_than_minmax_on_the_values_themselves(name: str) -> None:
    """The distance to a grid changes by no more than its argument does, and mse sees each value at the
    middle of its bin: half a bin off, for both ranges."""
    raw = draw(name)
    summary = summarize(raw)
    low, high = activation_range(summary, Calibration.MSE)
    minmax = rms_error(raw, summary.low, summary.high)
    assert rms_error(raw, low, high) <= minmax + summary.width


@pytest.mark.parametrize("name", ["normal", "relu", "heavy tail", "positive heavy tail", "uniform"])
def test_mse_comes_close_to_the_best_of_all_pairs(name: str) -> None:
    raw = draw(name, 2_000)
    summary = summarize(raw)
    found = rms_error(raw, *activation_range(summary, Calibration.MSE))
    shares = np.linspace(0.2, 1.0, 33)
    lows = shares * summary.low if summary.low < 0 else [0.0]
    best = min(rms_error(raw, low, high) for low in lows for high in shares * summary.high)
    assert found <= 1.03 * best + summary.width


@pytest.mark.parametrize("name", ["heavy tail", "positive heavy tail", "outlier"])
def test_entropy_clips_a_heavy_tail(name: str) -> None:
    summary = summarize(draw(name))
    _, high = activation_range(summary, Calibration.ENTROPY)
    assert high < 0.9 * summary.high


def test_mse_gives_up_a_few_extremes_for_finer_steps() -> None:
    raw = np.concatenate([draw("normal", 1_000_000), np.full(3, 12.0, np.float32)])
    _, high = activation_range(summarize(raw), Calibration.MSE)
    assert high < 10.0


def test_entropy_keeps_a_uniform_range() -> None:
    summary = summarize(draw("uniform"))
    _, high = activation_range(summary, Calibration.ENTROPY)
    assert high > 0.95 * summary.high


def test_the_spike_of_a_relu_does_not_change_what_entropy_finds() -> None:
    """Zero is exact in every grid, so how often it occurs says nothing about the threshold."""
    positive = draw("positive heavy tail")
    spiked = np.concatenate([positive, np.zeros(10 * len(positive), np.float32)])
    _, alone = activation_range(summarize(positive), Calibration.ENTROPY)
    _, with_zeros = activation_range(summarize(spiked), Calibration.ENTROPY)
    assert with_zeros == pytest.approx(alone, rel=0.1)


def test_no_method_means_no_range() -> None:
    with pytest.raises(ValueError, match="none"):
        activation_range(summarize(np.ones(3, np.float32)), Calibration.NONE)


def relu6_outputs(*, on_background: float) -> Floats:
    """A convolution's channels after ReLU6; on a plain background each gives one value again and again."""
    rng = np.random.default_rng(7)
    drawn = np.clip(rng.exponential(1.2, 200_000) - 0.9, 0.0, 6.0)
    background = rng.uniform(0.2, 2.5, 40)
    repeated = rng.choice(background, int(on_background * len(drawn)))
    return np.concatenate([drawn, repeated]).astype(np.float32)


@pytest.mark.parametrize("on_background", [0.0, 0.05, 0.2, 0.5])
def test_entropy_keeps_a_relu6_as_well_as_minmax_does(on_background: float) -> None:
    """Six is where the producer has clipped already: what lies below it is signal, not a tail."""
    raw = relu6_outputs(on_background=on_background)
    summary = summarize(raw)
    power = float(np.sqrt(np.mean(raw.astype(np.float64) ** 2)))
    sqnr_db = {
        method: 20.0 * np.log10(power / rms_error(raw, *activation_range(summary, method)))
        for method in (Calibration.MINMAX, Calibration.ENTROPY)
    }
    assert sqnr_db[Calibration.ENTROPY] > sqnr_db[Calibration.MINMAX] - 0.5


def test_values_that_repeat_do_not_hide_a_tail_from_entropy() -> None:
    positive = draw("positive heavy tail", 200_000)
    repeated = np.random.default_rng(5).choice([0.4, 2.1, 5.3], len(positive) // 5)
    _, alone = activation_range(summarize(positive), Calibration.ENTROPY)
    mixed = np.concatenate([positive, repeated.astype(np.float32)])
    _, with_repeats = activation_range(summarize(mixed), Calibration.ENTROPY)
    assert with_repeats == pytest.approx(alone, rel=0.25)
