from __future__ import annotations

import numpy as np
import pytest

from autoq.search.drop_model import DropModel, Seen


def seen_of(scale: float, power: float, *, n: int = 12, noise: float = 0.0, seed: int = 0) -> list[Seen]:
    rng = np.random.default_rng(seed)
    divergence = np.geomspace(1e-3, 1.0, n)
    drop = scale * divergence**power + noise * rng.standard_normal(n)
    return [Seen(float(d), float(x), max(noise, 1e-3)) for d, x in zip(divergence, drop, strict=True)]


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("scale", [0.05, 0.4, 3.0])
def test_a_power_law_is_recovered(scale: float, power: float) -> None:
    model = DropModel(seen_of(scale, power))
    divergence = np.array([2e-3, 0.03, 0.5])
    assert model.predict(divergence) == pytest.approx(scale * divergence**power, rel=1e-6)


def test_noise_of_small_drops_does_not_hide_the_law() -> None:
    errors = []
    for seed in range(20):
        model = DropModel(seen_of(0.3, 0.75, noise=0.01, seed=seed))
        errors.append(float(model.predict(np.array([0.1]))[0]) / (0.3 * 0.1**0.75) - 1.0)
    assert abs(float(np.median(errors))) <= 0.1
    assert float(np.quantile(np.abs(errors), 0.9)) <= 0.35


def test_before_anything_is_measured_more_divergence_costs_more() -> None:
    mean = DropModel([]).predict(np.array([0.0, 0.01, 0.1, 1.0]))
    assert mean[0] == 0.0
    assert (np.diff(mean) > 0.0).all()


@pytest.mark.parametrize(
    "useless",
    [Seen(0.0, 0.02, 0.01), Seen(float("inf"), 0.9, 0.01), Seen(float("nan"), 0.9, 0.01)],
    ids=["no divergence", "infinite", "no number"],
)
def test_a_trial_that_says_nothing_changes_nothing(useless: Seen) -> None:
    seen = seen_of(0.3, 0.75)
    divergence = np.array([0.01, 0.2])
    for others in (seen, []):
        with_it, without = DropModel([useless, *others]), DropModel(others)
        assert with_it.predict(divergence).tolist() == without.predict(divergence).tolist()


def test_trials_that_are_better_than_the_float_model_leave_drops_that_are_not_negative() -> None:
    model = DropModel([Seen(0.01, -0.01, 0.01), Seen(0.02, -0.005, 0.01)])
    mean = model.predict(np.array([0.0, 0.01, 1.0]))
    assert (mean >= 0.0).all()


def test_drops_of_zero_alone_are_no_error() -> None:
    model = DropModel([Seen(0.01, 0.0, 0.0), Seen(0.02, 0.0, 0.0)])
    assert (model.predict(np.array([0.5])) < 0.01).all()


def test_a_metric_without_an_interval_is_fitted_all_the_same() -> None:
    seen = [Seen(one.divergence, one.drop, 0.0) for one in seen_of(0.3, 1.0)]
    assert DropModel(seen).predict(np.array([0.1])) == pytest.approx([0.03])
