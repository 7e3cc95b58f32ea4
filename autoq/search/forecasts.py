"""What the trials so far foretell of candidates that nobody has run: divergence, drop, latency, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoq.core.choices import Rewrites
from autoq.core.measurements import Baseline, Measurement
from autoq.evaluation.statistics import Z
from autoq.search.acquisition import Forecast
from autoq.search.drop_model import DropModel, Seen
from autoq.search.guide import Floats, Guide, PerOption, Stitch
from autoq.search.latency_model import LatencyModel, Timing
from autoq.search.sensitivity import offsets

_LIKENESS = 0.3  # share of the divergence in which two candidates differ that makes them strangers
_SHRINK = 0.3  # weight of "the sum is right" against trials that say it is not
_BYTES_PULL = 0.01  # of the slope of bytes to one, against what trials say
_LEAST_BYTES = 0.5  # of the sum: a line fitted to large candidates can be below zero at small ones
_DROP_SPREAD = 0.35  # of a drop where no trial is alike, relative: equal divergence is not equal loss


class Forecaster:
    """Pure: the same guide, sensitivities and trials foretell the same."""

    def __init__(
        self,
        guide: Guide,
        costs: Mapping[Rewrites, Sequence[Floats]],
        baseline: Baseline,
        trials: Sequence[tuple[Stitch, Measurement]],
    ) -> None:
        self._guide, self._baseline = guide, baseline
        self._offsets = offsets(guide)
        self._parts_of = {rewrites: PerOption(of_slots) for rewrites, of_slots in costs.items()}
        timings = [
            Timing(stitch, probe.ratio, probe.error)
            for probe in guide.latency_probes
            if (stitch := guide.stitch(probe.candidate)) is not None
        ]
        self._trials = list(trials)
        self.latency = LatencyModel(guide, [*timings, *(_timing(*trial, baseline) for trial in self._trials)])
        told = [
            (stitch, measurement.divergence)
            for stitch, measurement in self._trials
            if measurement.divergence is not None
        ]
        self._told = list(zip(self._parts([stitch for stitch, _ in told]), (d for _, d in told), strict=True))
        self.drop = DropModel([_seen(self._divergence_of(*trial), trial[1]) for trial in self._trials])
        self._noise = _noise([measurement for _, measurement in self._trials])
        self._size_law = self._bytes_law(bundle=False)
        self._bundle_law = self._bytes_law(bundle=True)

    def __call__(self, stitches: Sequence[Stitch]) -> Forecast:
        """Foretell every stitch."""
        divergence, doubt = self._divergence(stitches)
        drop = self.drop.predict(divergence)
        latency, latency_sd = self.latency.predict(stitches)
        return Forecast(
            drop,
            np.hypot(_DROP_SPREAD * doubt * drop, self._noise),
            latency,
            latency_sd,
            self.size(stitches) / self._baseline.size_bytes,
            self.bundle(stitches) / self._baseline.size_bytes,
        )

    def size(self, stitches: Sequence[Stitch]) -> Floats:
        """Bytes of the deployed file; (n,)."""
        return _on_line(self._size_law, self._guide.bytes_of(stitches, bundle=False))

    def bundle(self, stitches: Sequence[Stitch]) -> Floats:
        """Bytes of the bundle; (n,)."""
        return _on_line(self._bundle_law, self._guide.bytes_of(stitches, bundle=True))

    def divergence_sum(self, stitches: Sequence[Stitch]) -> Floats:
        """Sum of what the float model and the slots of each stitch add; (n,)."""
        return np.asarray(self._parts(stitches).sum(axis=1), np.float64)

    def divergence(self, stitches: Sequence[Stitch]) -> Floats:
        """The sum, corrected by how far it was off on trials that differ in little; (n,)."""
        return self._divergence(stitches)[0]

    def _divergence(self, stitches: Sequence[Stitch]) -> tuple[Floats, Floats]:
        """The corrected sum, and how much doubt trials alike leave, from 1 for none down to 0; each (n,)."""
        parts = self._parts(stitches)
        sums = parts.sum(axis=1)
        weights, logs = np.full(len(stitches), _SHRINK), np.zeros(len(stitches))
        for own, measured in self._told:
            foretold = float(own.sum())
            if foretold <= 0 or measured <= 0:
                continue
            strange = np.abs(parts - own).sum(axis=1) / np.maximum(sums + foretold, 1e-30)
            weight = np.exp(-strange / _LIKENESS)
            weights += weight
            logs += weight * np.log(measured / foretold)
        return np.asarray(sums * np.exp(logs / weights)), np.asarray(np.sqrt(_SHRINK / weights))

    def _parts(self, stitches: Sequence[Stitch]) -> Floats:
        """What the float model and each slot add to the divergence of each stitch; (n, 1 + slots)."""
        found = np.empty((len(stitches), 1 + len(self._guide.usual)))
        for rewrites in {stitch.rewrites for stitch in stitches}:
            mine = [at for at, stitch in enumerate(stitches) if stitch.rewrites == rewrites]
            options = np.array([stitches[at].row for at in mine])
            found[mine, 0] = self._offsets[rewrites]
            found[mine, 1:] = self._parts_of[rewrites].of(options)
        return found

    def _divergence_of(self, stitch: Stitch, measurement: Measurement) -> float:
        return self.divergence_sum([stitch])[0] if measurement.divergence is None else measurement.divergence

    def _bytes_law(self, *, bundle: bool) -> tuple[float, float]:
        """Intercept and slope of measured bytes over the sum over slots; the slope is drawn to one."""
        if not self._trials:
            return 0.0, 1.0
        sums = self._guide.bytes_of([stitch for stitch, _ in self._trials], bundle=bundle)
        sizes = [one.size.bundle_bytes if bundle else one.size.size_bytes for _, one in self._trials]
        found, x = np.array(sizes, np.float64), sums - sums.mean()
        pull = _BYTES_PULL * max(float((sums**2).sum()), 1.0)
        slope = float((x @ (found - found.mean()) + pull) / (x @ x + pull))
        return float(found.mean() - slope * sums.mean()), slope


def _on_line(law: tuple[float, float], sums: Floats) -> Floats:
    intercept, slope = law
    return np.maximum(intercept + slope * sums, np.maximum(_LEAST_BYTES * sums, 1.0))


def _timing(stitch: Stitch, measurement: Measurement, baseline: Baseline) -> Timing:
    latency = measurement.latency
    low, high = latency.latency_ms_ci
    error = np.log(max(high, 1e-12) / max(low, 1e-12)) / (2 * Z)
    return Timing(stitch, latency.latency_ms / baseline.latency_ms, float(max(error, 1e-3)))


def _seen(divergence: float, measurement: Measurement) -> Seen:
    accuracy = measurement.accuracy
    error = 0.0 if accuracy.drop_ci is None else (accuracy.drop_ci[1] - accuracy.drop_ci[0]) / (2 * Z)
    return Seen(divergence, accuracy.drop, error)


def _noise(measurements: Sequence[Measurement]) -> float:
    """Standard error that the drop of a good candidate is measured with; the float model's own has none."""
    intervals = [one.accuracy.drop_ci for one in measurements if one.accuracy.drop_ci is not None]
    errors = [(high - low) / (2 * Z) for low, high in intervals if low < high]
    return float(np.quantile(errors, 0.25)) if errors else 0.0
