"""Sensitivity: what each option of each slot costs the model's output, from local errors and a few runs.

The divergence of a model is taken to be the sum of what its slots add, and what a layer adds to be
proportional to the local errors of its weights and of its input, each with a factor of the layer's own:
the second-order term of the loss with the Hessian replaced by a number (HAWQ-V2, Dong 2020). The factors
are fitted to the measured divergence of models in which one layer is compressed; without any, one
factor does for all layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from autoq.core.choices import Choice, Rewrites
from autoq.search.guide import ErrorProbe, Floats, Guide, Slot

MAX_PROBES = 96  # of the usual float model: more layers than that share theirs
_REWRITTEN_PROBES = 0.25  # share of the limit for each float model after it: it starts from known factors
_PRIOR_WEIGHT = 0.1  # of the common factor, against a measured divergence
_LEAST = 1e-9  # divergence that is none
_WORST = 10.0  # divergence of outputs that are not finite: more than any classifier's guessing
_MOST_RESCALED = 4.0  # a whole model's divergence is noisy, and more than a sum
_KINDS = ("weight", "static", "dynamic", "outlier", "block")


@dataclass(frozen=True)
class ProbePlan:
    """A model to run: some slots compressed, the rest float."""

    rewrites: Rewrites
    chosen: Mapping[str, int]  # slot -> option


def plan_probes(guide: Guide, limit: int = MAX_PROBES) -> list[ProbePlan]:
    """Choose the models whose divergence tells the factors apart.

    For each kind of error a layer can have, one option in which that kind weighs most. Layers with
    the largest local errors are compressed alone; where there are more than the limit allows, the rest
    share theirs, neighbours in the graph together. The number of runs does not grow with the layers then.
    A group of weightless ops is run int8 beside the layers that its integers come from. A narrower float
    model is run as it is and with all layers static: its factors are those of the first, times a number.
    """
    plans: list[ProbePlan] = []
    for rewrites, slots in guide.slots.items():
        if rewrites.widths:
            plans += _width_plans(rewrites, slots)
            continue
        is_usual = rewrites == guide.rewrites[0]
        wanted = [
            (slot, kind, index)
            for slot in slots
            if slot.is_layer
            for kind, index in _telling_options(slot).items()
        ]
        if not is_usual:  # rewrites move outliers of activations: weights err as before
            wanted = [one for one in wanted if one[1] != "weight"]
        for together in _shared(wanted, limit if is_usual else round(_REWRITTEN_PROBES * limit)):
            plans.append(ProbePlan(rewrites, {slot.name: index for slot, _, index in together}))
    return [*plans, *_op_plans(guide)]


def sensitivities(guide: Guide) -> dict[Rewrites, list[Floats]]:
    """Divergence that each option of each slot adds, per float model; fewer bits never look better.

    Returns:
        For each slot an array (options,), zero for float.
    """
    found = {}
    factors_before: dict[str, Floats] = {}
    ops: dict[str, Floats] = {}
    for rewrites, slots in guide.slots.items():
        probes = [
            replace(probe, divergence=min(probe.divergence, _WORST))
            for probe in guide.error_probes
            if probe.rewrites == rewrites
        ]
        if rewrites.widths:
            factors = _rescaled(slots, probes, factors_before, offset=offsets(guide)[rewrites])
        else:
            factors = _factors(slots, probes, factors_before)
        factors_before = factors_before or factors
        ops = ops or _op_costs(slots, probes)  # probed on the usual float model alone
        found[rewrites] = [
            _monotone(slot, _errors(slot) @ factors[slot.name]) if slot.is_layer else ops[slot.name]
            for slot in slots
        ]
    return found


def offsets(guide: Guide) -> dict[Rewrites, float]:
    """Divergence of each float model from the one that was given, before any slot is compressed.

    Only narrower ones compute something else; one that could not be measured counts as lost.
    """
    measured = {probe.rewrites: probe.divergence for probe in guide.error_probes if not probe.chosen}
    return {
        rewrites: min(measured.get(rewrites, _WORST), _WORST) if rewrites.widths else 0.0
        for rewrites in guide.rewrites
    }


def _width_plans(rewrites: Rewrites, slots: Sequence[Slot]) -> list[ProbePlan]:
    static = static_everywhere(slots)
    return [ProbePlan(rewrites, {}), *([ProbePlan(rewrites, static)] if static else [])]


def _rescaled(
    slots: Sequence[Slot], probes: Sequence[ErrorProbe], before: Mapping[str, Floats], *, offset: float
) -> dict[str, Floats]:
    """Take the factors of the first float model, times what a whole narrowed model says they are off by."""
    tables = {slot.name: _errors(slot) for slot in slots if slot.is_layer}
    ratios = [
        max(probe.divergence - offset, 0.0) / foretold
        for probe in probes
        if probe.chosen
        and (foretold := sum(float(tables[name][at] @ before[name]) for name, at in probe.chosen.items())) > 0
    ]
    ratio = float(np.clip(np.median(ratios), 1.0 / _MOST_RESCALED, _MOST_RESCALED)) if ratios else 1.0
    return {name: before[name] * ratio for name in tables}


def _telling_options(slot: Slot) -> dict[str, int]:
    """For each kind of error the option in which it shows best."""
    told: dict[str, int] = {}
    errors = [(index, option) for index, option in enumerate(slot.options) if not option.is_float]
    coarse = [
        (one.weight_error, -one.activation_error, index)
        for index, one in errors
        if np.isfinite(one.weight_error)
    ]
    if coarse and max(coarse)[0] > 0:
        told["weight"] = max(coarse)[-1]
    for kind in _KINDS[1:]:
        fine = [
            (one.weight_error, one.activation_error, index) for index, one in errors if one.error_kind == kind
        ]
        if fine:
            told[kind] = min(fine)[-1]
    if "weight" in told and told["weight"] in [told.get(kind) for kind in _KINDS[1:]]:
        del told["weight"]
    return told


def _shared(wanted: Sequence[tuple[Slot, str, int]], limit: int) -> Iterable[Sequence[tuple[Slot, str, int]]]:
    """Put the options with the smallest errors together until no more than the limit are left to run."""
    if len(wanted) <= limit:
        return [[one] for one in wanted]

    def error(one: tuple[Slot, str, int]) -> float:
        option = one[0].options[one[2]]
        return option.weight_error + option.activation_error

    n_alone = limit // 2
    ranked = sorted(range(len(wanted)), key=lambda at: -error(wanted[at]))
    alone = set(ranked[:n_alone])
    groups: list[list[tuple[Slot, str, int]]] = [[wanted[at]] for at in sorted(alone)]
    for kind in _KINDS:  # a slot can be one thing at a time, so kinds are not mixed
        rest = [wanted[at] for at in sorted(set(ranked) - alone) if wanted[at][1] == kind]
        share = min(len(rest), max(1, round((limit - n_alone) * len(rest) / (len(wanted) - n_alone))))
        groups += [
            [rest[at] for at in part]
            for part in np.array_split(np.arange(len(rest)), share or 1)
            if len(part)
        ]
    return groups


def _op_plans(guide: Guide) -> list[ProbePlan]:
    """Each group of weightless ops in int8, beside all layers static, and those alone to compare with."""
    groups = [
        (slot, _int8_option(slot)) for slot in guide.usual if not slot.is_layer and len(slot.options) > 1
    ]
    static = static_everywhere(guide.usual)
    if not groups or not static:
        return []
    rewrites = guide.rewrites[0]
    return [
        ProbePlan(rewrites, static),
        *(ProbePlan(rewrites, {**static, slot.name: at}) for slot, at in groups),
    ]


def static_everywhere(slots: Iterable[Slot]) -> dict[str, int]:
    """The gentlest static option of every layer that has one."""
    found = {}
    for slot in slots:
        static = [
            (one.weight_error + one.activation_error, index)
            for index, one in enumerate(slot.options)
            if slot.is_layer and one.error_kind == "static"
        ]
        if static:
            found[slot.name] = min(static)[1]
    return found


def _int8_option(slot: Slot) -> int:
    return next(index for index, option in enumerate(slot.options) if not option.is_float)


def _errors(slot: Slot) -> Floats:
    """Local errors of every option by kind; (options, kinds)."""
    table = np.zeros((len(slot.options), len(_KINDS)))
    for row, option in zip(table, slot.options, strict=True):
        row[0] = option.weight_error
        if option.error_kind in _KINDS[1:]:
            row[_KINDS.index(option.error_kind)] = option.activation_error
    # A format that cannot hold the weights at all is as bad as losing the layer.
    return np.nan_to_num(table, nan=1.0, posinf=1.0)


def _factors(
    slots: Sequence[Slot], probes: Sequence[ErrorProbe], before: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Fit each layer's factors to the probes that it took part in, with the common one as prior."""
    tables = {slot.name: _errors(slot) for slot in slots if slot.is_layer}
    of_layers = [probe for probe in probes if probe.chosen.keys() <= tables.keys()]
    ratios = [
        probe.divergence / total
        for probe in of_layers
        if (total := sum(tables[name][index].sum() for name, index in probe.chosen.items())) > 0
    ]
    common = float(np.median(ratios)) if ratios else 1.0
    return {
        name: _fitted(
            before.get(name, np.full(len(_KINDS), common)),
            [
                (np.sum([tables[one][at] for one, at in probe.chosen.items()], axis=0), probe.divergence)
                for probe in of_layers
                if name in probe.chosen
            ],
        )
        for name in tables
    }


def _fitted(prior: Floats, measured: Sequence[tuple[Floats, float]]) -> Floats:
    """Fit one layer's factors to (local errors by kind, divergence), each divergence to a share of itself.

    The prior decides what the probes leave open and no more, so its misfit is a share of the larger of
    itself and what the probes allow a factor to be: relative to itself alone it would pull a layer that is
    a hundred times as sensitive as others to twice the common factor.
    """
    prior = np.maximum(prior, 1e-12)
    shares = np.array([errors / max(divergence, _LEAST) for errors, divergence in measured])
    largest = np.max(shares, axis=0) if measured else np.zeros(len(_KINDS))
    allowed = np.divide(1.0, largest, out=np.zeros(len(_KINDS)), where=largest > 0.0)
    scale = np.maximum(prior, allowed)
    rows = np.concatenate((np.diag(_PRIOR_WEIGHT / scale), shares.reshape(-1, len(_KINDS))))
    goals = np.concatenate((_PRIOR_WEIGHT * prior / scale, np.ones(len(measured))))
    return least_squares_above_zero(rows, goals)


def least_squares_above_zero(rows: Floats, goals: Floats) -> Floats:
    """Minimise |rows·x - goals| over x ≥ 0, for few unknowns: each set of them may be the one above zero.

    `scipy.optimize.nnls` does it for many, and takes as long to load as a search may think about a trial.
    """
    n = rows.shape[1]
    norms = np.maximum(np.sqrt((rows**2).sum(axis=0)), 1e-300)
    unit = rows / norms
    gram, right = unit.T @ unit, unit.T @ goals
    chosen = np.array(list(product((False, True), repeat=n)))
    # A hair on the diagonal, for columns that are all but the same.
    diagonal = np.eye(n) * (~chosen[:, None, :] + 1e-12)
    systems = gram * (chosen[:, :, None] & chosen[:, None, :]) + diagonal
    found = np.linalg.solve(systems, (right * chosen)[:, :, None])[:, :, 0]
    costs = np.einsum("si,ij,sj->s", found, gram, found) - 2.0 * found @ right
    costs[(found < 0.0).any(axis=1)] = np.inf
    return np.asarray(found[np.argmin(costs)] / norms, np.float64)


def _op_costs(slots: Sequence[Slot], probes: Sequence[ErrorProbe]) -> dict[str, Floats]:
    """What each group adds in int8 to layers that are static already; unmeasured groups add nothing."""
    layers = {slot.name for slot in slots if slot.is_layer}
    measured = {frozenset(probe.chosen.items()): probe.divergence for probe in probes}
    costs = {}
    for slot in (one for one in slots if not one.is_layer):
        costs[slot.name] = np.zeros(len(slot.options))
        for probe in probes:
            without = measured.get(frozenset(one for one in probe.chosen.items() if one[0] in layers))
            if slot.name in probe.chosen and without is not None:
                costs[slot.name][probe.chosen[slot.name]] = max(probe.divergence - without, 0.0)
    return costs


def _monotone(slot: Slot, costs: Floats) -> Floats:
    """Raise options with fewer bits to the cost of those that differ in nothing but more bits."""
    raised = costs.copy()
    by_rest: dict[object, list[tuple[int, int]]] = {}
    for index, option in enumerate(slot.options):
        what = option.what
        assert isinstance(what, Choice)
        rest = (what.label, what.sparsity, what.rounding, what.grid, what.pruning, what.pattern)
        by_rest.setdefault(rest, []).append((what.weight_bits, index))
    for members in by_rest.values():
        floor = 0.0
        for _, index in sorted(members, reverse=True):
            floor = raised[index] = max(floor, raised[index])
    return raised
