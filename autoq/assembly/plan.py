"""The plan of one candidate: everything assembly needs beside the float model and the variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autoq.assembly.domains import Domains, Style, decide_domains
from autoq.calibration.methods import Range, activation_range
from autoq.calibration.outliers import Outliers, find_outliers, outlier_channels
from autoq.calibration.statistics import Statistics
from autoq.calibration.summaries import TensorSummary
from autoq.core.choices import FLOAT, Candidate
from autoq.core.errors import TrialError
from autoq.core.quantization import ActivationParams, activation_params
from autoq.graph.blocks import Block, BlockKind, find_blocks
from autoq.graph.float_model import FloatModel

Maxima = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """A candidate with the quantisation parameters of every tensor that carries a Q/DQ pair."""

    candidate: Candidate
    domains: Domains
    params: Mapping[str, ActivationParams]  # by root value
    outliers: Mapping[str, Outliers] = field(default_factory=dict)  # by value that is split


class RangeTable:
    """Ranges by tensor and style, each derived from the statistics once."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self._known: dict[tuple[str, Style], Range] = {}
        self._outliers: dict[str, Outliers] = {}

    def __call__(self, value: str, style: Style) -> Range:
        """Return the range of a tensor.

        Raises:
            TrialError: The calibration pass has not seen it.
        """
        key = (value, style)
        if key not in self._known:
            self._known[key] = activation_range(self._summary(value), style.calibration)
        return self._known[key]

    def outliers(self, value: str) -> Outliers:
        """Return the channels of a tensor that stay float where its reader keeps outliers.

        Of a tensor that layers read along different axes, nothing is known by channel: it has none.

        Raises:
            TrialError: The calibration pass has not seen it.
        """
        if value not in self._outliers:
            maxima = self.statistics.channel_maxima.get(value)
            self._outliers[value] = find_outliers(self._summary(value), maxima)
        return self._outliers[value]

    def _summary(self, value: str) -> TensorSummary:
        summary = self.statistics.tensors.get(value)
        if summary is None:
            raise TrialError(f"no statistics for tensor {value!r}")
        return summary


class OutlierChannels:
    """Channels that stay float where a layer keeps outliers; looked up when the first layer asks."""

    def __init__(self, model: FloatModel, load_maxima: Callable[[], Mapping[str, Maxima]]) -> None:
        """Remember where things come from.

        Args:
            model: The float model.
            load_maxima: Gives the largest magnitudes of every tensor that a layer reads, by channel; what
                it raises goes through.
        """
        self._model, self._load_maxima = model, load_maxima

    def __call__(self, layer: str) -> tuple[int, ...]:
        """Return the channels of a layer's input; none where nothing is known of it."""
        sources, maxima = self._known
        return outlier_channels(maxima[sources[layer]]) if sources.get(layer) in maxima else ()

    @cached_property
    def _known(self) -> tuple[dict[str, str], Mapping[str, Maxima]]:
        return layer_sources(find_blocks(self._model.graph)), self._load_maxima()


def layer_sources(blocks: Sequence[Block]) -> dict[str, str]:
    """Name the float tensor each layer reads; one that reads integers has none."""
    return {
        block.name: block.sources[0] for block in blocks if block.kind is BlockKind.LAYER and block.sources
    }


def build_plan(blocks: Sequence[Block], candidate: Candidate, ranges: RangeTable) -> Plan:
    """Decide where integers flow and with which scales."""
    domains = decide_domains(blocks, candidate)
    bounds = _upper_bounds(blocks, domains)
    params = {}
    for root, style in sorted(domains.styles.items()):
        low, high = ranges(root, style)
        fitted = activation_params(low, high, signed=style.signed)
        params[root] = _keep_below(fitted, bounds.get(root))
    outliers = {value: ranges.outliers(value) for value in split_values(blocks, candidate)}
    return Plan(candidate, domains, params, outliers)


def restore_plan(
    blocks: Sequence[Block],
    candidate: Candidate,
    params: Mapping[str, ActivationParams],
    outliers: Mapping[str, Outliers],
) -> Plan:
    """Rebuild a plan from stored parameters, without statistics."""
    return Plan(candidate, decide_domains(blocks, candidate), params, outliers)


def split_values(blocks: Sequence[Block], candidate: Candidate) -> list[str]:
    """Name the tensors whose outliers some layer keeps, each once, in graph order."""
    found = {
        source: None
        for layer, source in layer_sources(blocks).items()
        if candidate.by_layer.get(layer, FLOAT).format.keeps_outliers
    }
    return list(found)


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
