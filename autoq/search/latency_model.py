"""A model of latency, learnt from whole models around what the runtime's profile says of each kernel.

A candidate's time, as a share of the float model's, is taken to be

    t0 + Σ_slot β[slot, kernel] + γ · (share of tensors, by number and by elements, that are converted)

with one γ for quantising and one for dequantising.

The profile gives every β a mean. Measurements correct it by factors that formats, kernels of one format,
slots of one op and shape, and single slots have of their own, each with a normal prior: Bayesian linear
regression. Kernels of one format differ by little (scales per tensor or per channel): told apart by what
the profile says of each, the faster of two would be the one that was measured in a quieter moment. The
conversions are not optional: one int8 layer between floats is often slower than none, and tables that
only add layers up cannot say so.

How far models are from adding up differs: by a percent where products of matrices follow each other, by five
where layers share a cache. That misfit is chosen by the evidence for it in the timings (MacKay 1992). Too
small, and noise is learnt as if it were kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoq.core.choices import Choice, Rewrites
from autoq.search.guide import Floats, Guide, Option, PerOption, Slot, Stitch

# How many times faster than float a kernel is where nobody has profiled it: roughly, they are priors.
_TYPICAL = {
    "fp32": 1.0,
    "fp16": 1.0,
    "int8": 0.3,
    "int8_s8": 0.5,
    "int8_outlier": 0.4,
    "int8_dynamic": 0.45,
    "int8_weight": 0.75,
    "int4_weight": 0.75,
}
_FORMAT_SD, _KERNEL_SD, _TIE_SD, _SLOT_SD = 0.25, 0.05, 0.2, 0.15  # relative, of a slot's time
_N_KINDS = 4  # of effects that an option has
_REST_SD = 0.1  # of what no slot takes, as a share of the float model's time
_REWRITE_SD = 0.05
_CONVERSION_MEAN, _CONVERSION_SD = 0.05, 0.2  # of converting every tensor one way, by number and by elements
_MISFIT, _MISFIT_SPREAD = 0.03, math.log(2.0)  # what an additive model misses, relative; of its logarithm
_MISFITS = np.geomspace(0.005, 0.16, 8)
_LEAST = 0.01  # of the float model's time: nothing is faster


@dataclass(frozen=True, slots=True)
class Timing:
    """The measured latency of a stitch."""

    stitch: Stitch
    ratio: float  # of the float model's latency
    error: float  # standard error of its logarithm


@dataclass(frozen=True)
class Prices:
    """What the model says each part of a candidate costs, as shares of the float model's time."""

    fixed: float
    options: tuple[Floats, ...]  # for each slot (options,)
    borders: Floats  # (borders, 2) of quantising and of dequantising each tensor


class LatencyModel:
    """The posterior after some timings. Pure: the same guide and timings give the same model."""

    def __init__(self, guide: Guide, timings: Sequence[Timing] = (), *, misfit: float | None = None) -> None:
        """Take the guide's profile and what was measured since.

        Args:
            guide: Slots, options and profile.
            timings: Measured stitches.
            misfit: What the model misses, relative; told by the timings unless given.
        """
        self._guide = guide
        self._features = _Features(guide)
        self._timings = list(timings)
        self._misfit_given = misfit

    def predict(self, stitches: Sequence[Stitch]) -> tuple[Floats, Floats]:
        """Return the mean ratio to the float model's latency, and its standard deviation; each (n,)."""
        mean, scaled = self._foretold(stitches)
        variance = np.asarray((scaled**2).sum(axis=1), np.float64)
        if self._timings:
            cross = scaled @ self._scaled.T
            variance -= np.einsum("ij,ij->i", cross @ self._precision, cross)
        return mean, np.asarray(np.sqrt(np.maximum(variance, 0.0) + (self.misfit * mean) ** 2))

    def joint(self, stitches: Sequence[Stitch]) -> tuple[Floats, Floats]:
        """Return the mean ratios, (n,), and how they vary together, (n, n)."""
        mean, scaled = self._foretold(stitches)
        covariance = scaled @ scaled.T
        if self._timings:
            cross = scaled @ self._scaled.T
            covariance -= cross @ self._precision @ cross.T
        return mean, covariance + np.diag((self.misfit * mean) ** 2)

    def _foretold(self, stitches: Sequence[Stitch]) -> tuple[Floats, Floats]:
        """Mean ratios, and the design in units of its effects' standard deviations."""
        design = self._features.design(stitches)
        foretold = self._features.prior_mean(design) + design @ self._effects
        return np.maximum(foretold, _LEAST), design * self._features.sds

    @cached_property
    def prices(self) -> dict[object, Prices]:
        """Prices by rewrites."""
        features, effects = self._features, self._effects
        found: dict[object, Prices] = {}
        for position, rewrites in enumerate(self._guide.rewrites):
            options = tuple(np.maximum(one, 0.0) for one in features.option_prices(effects, rewrites))
            fixed = features.rest + effects[0] + effects[features.of_rewrites.start + position]
            found[rewrites] = Prices(float(fixed), options, np.maximum(features.border_prices(effects), 0.0))
        return found

    @cached_property
    def misfit(self) -> float:
        """What the model misses of any candidate, relative: the likeliest, given the timings."""
        if self._misfit_given is not None:
            return self._misfit_given
        if not self._timings:
            return _MISFIT
        return float(_MISFITS[int(np.argmax([self._evidence(float(one)) for one in _MISFITS]))])

    def _evidence(self, misfit: float) -> float:
        """Logarithm of how likely timings and misfit are together, but for a constant."""
        lower = np.linalg.cholesky(self._covariance(misfit))
        whitened = np.linalg.solve(lower, self._missed)
        prior = math.log(misfit / _MISFIT) / _MISFIT_SPREAD
        return float(-0.5 * whitened @ whitened - np.log(lower.diagonal()).sum() - 0.5 * prior**2)

    def _covariance(self, misfit: float) -> Floats:
        """Of all timings, as the priors have it."""
        ratios = np.array([one.ratio for one in self._timings])
        errors = np.array([one.error for one in self._timings])
        covariance: Floats = self._gram + np.diag(ratios**2 * (errors**2 + misfit**2))
        return covariance

    @cached_property
    def _design(self) -> Floats:
        return self._features.design([one.stitch for one in self._timings])

    @cached_property
    def _scaled(self) -> Floats:
        scaled: Floats = self._design * self._features.sds
        return scaled

    @cached_property
    def _gram(self) -> Floats:
        return np.asarray(self._scaled @ self._scaled.T, np.float64)

    @cached_property
    def _missed(self) -> Floats:
        """What was measured beyond what the profile foretells."""
        missed: Floats = np.array([one.ratio for one in self._timings]) - self._features.prior_mean(
            self._design
        )
        return missed

    @cached_property
    def _precision(self) -> Floats:
        return np.asarray(np.linalg.inv(self._covariance(self.misfit)), np.float64)

    @cached_property
    def _effects(self) -> Floats:
        """Posterior mean of every effect."""
        if not self._timings:
            return np.zeros(len(self._features.sds))
        effects: Floats = self._features.sds * (self._scaled.T @ (self._precision @ self._missed))
        return effects


_Columns = np.ndarray[tuple[int, int], np.dtype[np.int64]]


class _Features:
    """Effects of a guide: t0, rewrites, conversions; formats, kernels, ties and slots, by the slot's time."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide
        self._means = {
            rewrites: _prior_means(slots, guide.narrowed_ratios.get(rewrites, guide.kernel_ratios))
            for rewrites, slots in guide.slots.items()
        }
        # Of the float model, which a space may not offer.
        self.rest = max(1.0 - sum(_float_times(guide.usual, guide.kernel_ratios)), 0.0)
        self.of_rewrites = slice(1, 1 + len(guide.rewrites))
        at = self.of_rewrites.stop
        self._of_borders = slice(at, at + 4)
        at += 4
        index: dict[tuple[str, ...], int] = {}
        sds: list[float] = [_REST_SD, *([_REWRITE_SD] * len(guide.rewrites)), *([_CONVERSION_SD] * 4)]
        self._columns: dict[Rewrites, list[_Columns]] = {}  # (options, kinds) of each slot
        for rewrites, slots in guide.slots.items():
            self._columns[rewrites] = []
            for slot in slots:
                rows = []
                for option in slot.options:
                    for key, sd in _effects_of(slot, option).items():
                        if key not in index:
                            index[key] = at + len(index)
                            sds.append(sd)
                    rows.append([index[key] for key in _effects_of(slot, option)])
                self._columns[rewrites].append(np.array(rows, np.int64).reshape(len(slot.options), _N_KINDS))
        self.sds: Floats = np.array(sds)
        self._looked_up = {
            rewrites: (PerOption(means), PerOption(self._columns[rewrites]))
            for rewrites, means in self._means.items()
        }
        self._integer = PerOption(guide.integer)
        names = {slot.name: position for position, slot in enumerate(guide.usual)}
        borders = [one for one in guide.borders if one.writer in names and one.reader in names]
        self._writers = np.array([names[one.writer] for one in borders], np.int64)
        self._readers = np.array([names[one.reader] for one in borders], np.int64)
        total = sum(one.elements for one in borders) or 1.0
        self._border_weights = np.array(
            [[1.0 / len(borders), one.elements / total] for one in borders]
        ).reshape(-1, 2)

    def design(self, stitches: Sequence[Stitch]) -> Floats:
        """Features of stitches, (n, effects)."""
        table = np.array([one.row for one in stitches], np.int64).reshape(
            len(stitches), len(self._guide.usual)
        )
        rows = np.arange(len(stitches))
        design = np.zeros((len(stitches), len(self.sds)))
        design[:, 0] = 1.0
        positions = np.array([self._guide.rewrites.index(one.rewrites) for one in stitches], np.int64)
        design[rows, self.of_rewrites.start + positions] = 1.0
        n_effects = len(self.sds)
        for position, rewrites in enumerate(self._guide.rewrites):
            mine = np.flatnonzero(positions == position)
            times, columns = (of.of(table[mine]) for of in self._looked_up[rewrites])
            cells = np.arange(len(mine))[:, None, None] * n_effects + columns  # of the rows at hand
            weights = np.broadcast_to(times[:, :, None], cells.shape)
            added = np.bincount(cells.reshape(-1), weights.reshape(-1), minlength=len(mine) * n_effects)
            design[mine] += added.reshape(len(mine), n_effects)
        integer = self._integer.of(table)
        writes, reads = integer[:, self._writers], integer[:, self._readers]  # (n, borders)
        ways = (~writes & reads) @ self._border_weights, (writes & ~reads) @ self._border_weights
        design[:, self._of_borders] = np.concatenate(ways, axis=1)
        return design

    def prior_mean(self, design: Floats) -> Floats:
        """Ratio that the profile alone foretells: each slot's time stands once under its own effect."""
        kernels = np.zeros(len(self.sds))
        kernels[
            [
                int(column)
                for of_slots in self._columns.values()
                for columns in of_slots
                for column in set(columns[:, -1])
            ]
        ] = 1.0
        converted = design[:, self._of_borders].sum(axis=1) * _CONVERSION_MEAN
        mean: Floats = self.rest + design @ kernels + converted
        return mean

    def option_prices(self, effects: Floats, rewrites: Rewrites) -> list[Floats]:
        """What each option of each slot costs, on one float model."""
        return [
            means * (1.0 + effects[columns].sum(axis=1))
            for means, columns in zip(self._means[rewrites], self._columns[rewrites], strict=True)
        ]

    def border_prices(self, effects: Floats) -> Floats:
        """What converting each tensor costs, (borders, 2), in the order of the guide's borders."""
        ways = (_CONVERSION_MEAN + effects[self._of_borders]).reshape(2, 2)
        prices: Floats = self._border_weights @ ways.T
        return prices


def _effects_of(slot: Slot, option: Option) -> dict[tuple[str, ...], float]:
    """What a slot's time with an option may differ by from the profile's, with standard deviations.

    The last is of the slot and format alone.
    """
    return {
        ("format", option.format): _FORMAT_SD,
        ("kernel", option.kernel): _KERNEL_SD,
        ("tie", option.format, slot.tie): _TIE_SD,
        ("slot", option.format, slot.tie, slot.name): _SLOT_SD,
    }


def _prior_means(slots: Sequence[Slot], profiled: Mapping[str, Mapping[str, float]]) -> list[Floats]:
    """Expected time of each option: its format's; what was not profiled is set in relation to float."""
    means = []
    for slot, of_float in zip(slots, _float_times(slots, profiled), strict=True):
        by_format = _mean_by_format(slot, profiled.get(slot.name, {}))
        times = [by_format.get(one.format, of_float * _typical(one)) for one in slot.options]
        means.append(np.array(times, np.float64))
    return means


def _float_times(slots: Sequence[Slot], profiled: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Expected time of each slot in float.

    Layers that the profile does not know share what it gives to no slot: at zero nothing would be learnt
    of them. A weightless op that is missing was fused into its neighbour.
    """
    found = [profiled.get(slot.name, {}) for slot in slots]
    of_float = [one.get("fp32", one.get("float")) for one in found]
    unknown = [time is None and slot.is_layer for slot, time in zip(slots, of_float, strict=True)]
    left = max(1.0 - sum(time or 0.0 for time in of_float), 0.0) / (sum(unknown) + 1)
    return [left if is_unknown else time or 0.0 for time, is_unknown in zip(of_float, unknown, strict=True)]


def _mean_by_format(slot: Slot, profiled: Mapping[str, float]) -> dict[str, float]:
    kernels = {one.kernel: one.format for one in slot.options if one.kernel in profiled}
    return {
        name: float(np.mean([profiled[kernel] for kernel, of in kernels.items() if of == name]))
        for name in set(kernels.values())
    }


def _typical(option: Option) -> float:
    return _TYPICAL[option.what.format] if isinstance(option.what, Choice) else 1.0
