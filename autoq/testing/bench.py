"""One tiny model, calibrated on drawn inputs and ready to be assembled and run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from autoq.assembly.assemble import Stitcher, build_model, layer_weights
from autoq.assembly.plan import OutlierChannels
from autoq.calibration.collect import collect_statistics
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.statistics import Statistics
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import FLOAT, Candidate, Choice, Precision
from autoq.core.data import Array, Batch, Feed, Split
from autoq.core.layers import Layer
from autoq.graph.blocks import find_blocks, quantizable_values
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.targets.cpu import this_cpu
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.testing.models import example_feed
from autoq.variants.build import LayerBuilder
from autoq.variants.store import VariantStore
from autoq.variants.variant import Variant

N_CALIBRATION = 16
# Without dot-product instructions 8-bit weights saturate, and no test could tell that from a bug.
INT8 = Choice.of("int8", weight_bits=7 if this_cpu().saturates else 8)


@dataclass(frozen=True)
class ModelBench:
    """A float model with everything that assembling its candidates takes."""

    model: FloatModel
    statistics: Statistics
    stitcher: Stitcher
    calibration: Feed
    target: OnnxRuntimeTarget
    folder: Path

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, in graph order."""
        return [layer.name for layer in self.model.summary.layers]

    @property
    def op_names(self) -> list[str]:
        """Names of the weightless ops, in graph order."""
        return [op.name for op in self.model.summary.ops]

    def uniform(
        self,
        choice: Choice,
        *,
        precision: Precision = Precision.INT8,
        but: Mapping[str, Choice] | None = None,
        but_ops: Mapping[str, Precision] | None = None,
    ) -> Candidate:
        """Build a candidate with one choice for every layer and op, but for the ones given.

        Layers that the target cannot run in it stay float.
        """
        possible = [one.name for one in self.model.summary.layers if self.target.judge(one, choice).legal]
        choices = {**dict.fromkeys(self.layer_names, FLOAT), **dict.fromkeys(possible, choice), **(but or {})}
        return Candidate.of(choices, {**dict.fromkeys(self.op_names, precision), **(but_ops or {})})

    def build(self, candidate: Candidate) -> ModelArtifact:
        """Assemble a candidate."""
        return self.stitcher.assemble(candidate).artifact

    def build_from(self, candidate: Candidate, variants: Mapping[str, Variant]) -> ModelArtifact:
        """Assemble a candidate from variants of the caller's own."""
        blocks = find_blocks(self.model.graph)
        return build_model(self.model, blocks, self.stitcher.plan(candidate), variants)

    def run(
        self, model: ModelArtifact, *, optimize: bool = True, feed: Feed | None = None
    ) -> dict[str, Array]:
        """Run a model, on the calibration data by default."""
        session = self.target.open(model, optimize=optimize)
        try:
            return session.run(self.calibration if feed is None else feed)
        finally:
            session.close()

    def optimized(self, model: ModelArtifact) -> onnx.ModelProto:
        """Return the graph that the runtime really runs."""
        path = self.folder / f"optimized_{model.digest}.onnx"
        self.target.optimized_graph(model, path)
        return onnx.load(path)

    def fused_ops(self, model: ModelArtifact) -> Counter[str]:
        """Count the operators that the runtime really runs."""
        return Counter(node.op_type for node in self.optimized(model).graph.node)


def build_bench(
    proto: onnx.ModelProto,
    folder: Path,
    *,
    seed: int = 1,
    is_native: Callable[[Layer, Choice], bool] | None = None,
) -> ModelBench:
    """Calibrate a tiny model on drawn inputs; its variants are kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build_float_model(ir.from_proto(proto))
    n_examples = next(
        (axis for axis in (spec.shape[0] for spec in model.summary.inputs) if isinstance(axis, int)),
        N_CALIBRATION,
    )
    feed = example_feed(proto, n_examples=n_examples, seed=seed)
    values = quantizable_values(find_blocks(model.graph))
    moments = MomentStore(folder / "moments")
    statistics = collect_statistics(model, values, Split((Batch(feed),)), moments=moments)
    weights = layer_weights(model)
    outliers = OutlierChannels(model, lambda: statistics.channel_maxima)
    builders = {
        layer.name: LayerBuilder(
            layer,
            weights[layer.name],
            partial(moments.get, layer.name),
            moments.key(layer.name) or "",
            partial(outliers, layer.name),
        )
        for layer in model.summary.layers
    }
    store = VariantStore(folder / "variants", builders)
    target = OnnxRuntimeTarget()
    stitcher = Stitcher(
        model, statistics, store, is_native or (lambda layer, choice: target.judge(layer, choice).native)
    )
    return ModelBench(model, statistics, stitcher, feed, target, folder)


def share_changed_by_optimizing(bench: ModelBench, model: ModelArtifact) -> float:
    """How much optimising changes the outputs, as a share of what compressing changes (root mean squares).

    Zero where nothing is compressed.
    """
    optimized, written = bench.run(model), bench.run(model, optimize=False)
    plain = bench.run(bench.model.artifact, optimize=False)
    shares = [0.0]
    for name, array in written.items():
        compressed = _rms(array - plain[name])
        if compressed > 1e-5 * _rms(plain[name]):
            shares.append(_rms(optimized[name] - array) / compressed)
    return max(shares)


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def largest_difference(left: Mapping[str, Array], right: Mapping[str, Array]) -> float:
    """Largest absolute difference over all outputs, as a share of the largest magnitude in `right`."""
    shares = [
        float(np.abs(left[name] - right[name]).max() / max(float(np.abs(right[name]).max()), 1e-12))
        for name in right
    ]
    return max(shares)
