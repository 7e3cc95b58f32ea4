"""The plan of one candidate: everything assembly needs beside the float model and the variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoq.assembly.domains import Domains, Style, decide_domains
from autoq.calibration.methods import Range, activation_range
from autoq.calibration.statistics import Statistics
from autoq.core.choices import Candidate
from autoq.core.errors import TrialError
from autoq.core.quantization import ActivationParams, activation_params
from autoq.graph.blocks import Block


@dataclass(frozen=True)
class Plan:
    """A candidate with the quantisation parameters of every tensor that carries a Q/DQ pair."""

    candidate: Candidate
    domains: Domains
    params: Mapping[str, ActivationParams]  # by root value


class RangeTable:
    """Ranges by tensor and style, each derived from the statistics once."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self._known: dict[tuple[str, Style], Range] = {}

    def __call__(self, value: str, style: Style) -> Range:
        """Return the range of a tensor.

        Raises:
            TrialError: The calibration pass has not seen it.
        """
        key = (value, style)
        if key not in self._known:
            summary = self.statistics.tensors.get(value)
            if summary is None:
                raise TrialError(f"no statistics for tensor {value!r}")
            self._known[key] = activation_range(summary, style.calibration)
        return self._known[key]


def build_plan(blocks: Sequence[Block], candidate: Candidate, ranges: RangeTable) -> Plan:
    """Decide where integers flow and with which scales."""
    domains = decide_domains(blocks, candidate)
    bounds = _upper_bounds(blocks, domains)
    params = {}
    for root, style in sorted(domains.styles.items()):
        low, high = ranges(root, style)
        fitted = activation_params(low, high, signed=style.signed)
        params[root] = _keep_below(fitted, bounds.get(root))
    return Plan(candidate, domains, params)


def restore_plan(
    blocks: Sequence[Block], candidate: Candidate, params: Mapping[str, ActivationParams]
) -> Plan:
    """Rebuild a plan from stored parameters, without statistics."""
    return Plan(candidate, decide_domains(blocks, candidate), params)


def _upper_bounds(blocks: Sequence[Block], domains: Domains) -> dict[str, float]:
    """Upper bound of each tensor that an absorbed Clip writes."""
    return {
        domains.roots[block.results[0]]: block.upper_bound
        for block in blocks
        if block.upper_bound is not None and block.results[0] in domains.roots
    }


def _keep_below(params: ActivationParams, bound: float | None) -> ActivationParams:
    """Shrink the scale by an ulp or two where rounding lifts the range over an absorbed Clip's bound.

    ONNX Runtime drops the Clip, and so fuses the layer, only if the range lies inside it.
    """
    n_steps = params.high - params.zero_point
    if bound is None or bound <= 0 or n_steps == 0:
        return params
    # A tensor that is always zero has scale 1, far above: start next to the bound.
    scale = np.float32(min(params.scale, bound / n_steps * (1 + 1e-6)))
    while scale * np.float32(n_steps) > np.float32(bound):
        scale = np.nextafter(scale, np.float32(0.0))
    return ActivationParams(float(scale), params.zero_point, params.signed)
