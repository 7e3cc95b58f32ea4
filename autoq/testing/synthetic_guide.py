"""A guide made of arithmetic: what the guided strategy knows of a synthetic search before its first trial."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from autoq.core.choices import AS_IT_IS, FLOAT, Candidate, Choice, Rewrites
from autoq.search.guide import Border, Guide, Option, Slot
from autoq.search.probing import plan_timings, run_error_probes, run_latency_probes
from autoq.search.sensitivity import plan_probes
from autoq.search.space import GraphSpace, LayerSpace, SearchSpace
from autoq.testing.synthetic import SyntheticRunner, synthetic_measurement


def synthetic_guide(
    space: SearchSpace, runner: SyntheticRunner, *, rewrites: Sequence[Rewrites] = (AS_IT_IS,)
) -> Guide:
    """Build the guide of a space from the formula that the runner figures candidates by.

    Local errors only rank options, as real ones do: what they cost is measured by probes.
    """
    layers = tuple(_layer_slot(layer) for layer in space.layers)
    groups = [group for group in space.graph if len(group.precisions) > 1]
    slots = layers + tuple(_group_slot(group) for group in groups)
    free = {op for group in groups for op in group.ops}
    guide = Guide(
        dict.fromkeys(rewrites, slots),
        borders=tuple(Border(one.name, two.name, 64.0) for one, two in itertools.pairwise(slots)),
        kernel_ratios=_kernel_ratios(layers),
        fixed_ops={name: what for name, what in space.decode({}).graph if name not in free},
    )
    guide = replace(guide, error_probes=run_error_probes(guide, plan_probes(guide), runner))
    stitches = plan_timings(guide, [], seed=0)
    return replace(guide, latency_probes=run_latency_probes(guide, stitches, runner))


def _choices(layer: LayerSpace) -> list[Choice]:
    found = (
        layer.choose(label, bits=bits, sparsity=sparsity, **way)
        for label, (low, high) in layer.legal.items()
        for bits in range(high, low - 1, -1)
        for sparsity, way in itertools.product(layer.sparsities, layer.ways)
    )
    return list(dict.fromkeys(found))


def _layer_slot(layer: LayerSpace) -> Slot:
    return Slot(layer.name, "Conv 8x4x3x3 /1", tuple(_option(choice) for choice in _choices(layer)))


def _option(choice: Choice) -> Option:
    kernel = f"{choice.format}/{choice.granularity}" if choice.granularity != "none" else str(choice.format)
    bits = 1e-4 * 2.0 ** (8 - choice.weight_bits) if choice.format is not FLOAT.format else 0.0
    static = choice.format.is_static
    return Option(
        choice,
        kernel,
        bits + 0.1 * choice.sparsity**2,
        (1e-4 + 1e-3 * (choice.calibration == "minmax")) if static else 0.0,
        bundle_bytes=int(1_000 * choice.weight_bits / 32 * (1.0 - choice.sparsity)),
        size_bytes=int(1_200 * choice.weight_bits / 32 * (1.0 - choice.sparsity)),
    )


def _group_slot(group: GraphSpace) -> Slot:
    options = tuple(Option(precision, str(precision)) for precision in group.precisions)
    return Slot(group.name, group.name, options, group.ops)


def _kernel_ratios(slots: Sequence[Slot]) -> dict[str, dict[str, float]]:
    """What a profiler would say: the share of each layer in the float model, and its speed in each kernel."""
    total = sum(range(1, len(slots) + 1))
    return {
        slot.name: {
            option.kernel: (at + 1) / total * _ms(option.what)
            for option in reversed(slot.options)
            if isinstance(option.what, Choice)
        }
        for at, slot in enumerate(slots)
    }


def _ms(choice: Choice) -> float:
    """Milliseconds of a model of one layer."""
    return synthetic_measurement(Candidate.of({"layer": choice})).latency.latency_ms
