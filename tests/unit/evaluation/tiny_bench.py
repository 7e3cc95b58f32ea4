"""A linear classifier in the real runtime, and a workbench for it that any process can build."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoq.core.artifacts import AssembledModel, ModelArtifact
from autoq.core.choices import FLOAT, Candidate, Choice, Format
from autoq.core.data import Array, Batch, Split
from autoq.core.errors import TrialError
from autoq.core.layers import TensorSpec
from autoq.evaluation.batches import Feeding, timing_feeds
from autoq.evaluation.metrics import MetricSpec, builtin_metric
from autoq.evaluation.ports import Assembler, OutputCache, Target
from autoq.evaluation.racing import RacingSettings
from autoq.evaluation.timing import TimingSettings
from autoq.evaluation.workbench import EvaluationData, EvaluationSettings, Workbench
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget

N_FEATURES, N_CLASSES = 12, 4
INPUTS = (TensorSpec("x", "float32", ("n", N_FEATURES)),)
WEIGHT: Array = np.random.default_rng(0).normal(size=(N_FEATURES, N_CLASSES)).astype(np.float32)
QUICK = TimingSettings(search_s=0.05, final_s=0.1, block_s=0.002, n_controls=2)


def linear_model(weight: Array, *, batch: int | str = "n") -> ModelArtifact:
    """scores = x @ weight."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["scores"], name="fc")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, N_FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, N_CLASSES])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return ModelArtifact.from_bytes(model.SerializeToString())


def random_model(noise: float) -> ModelArtifact:
    """scores = x @ WEIGHT + noise of its own in every run."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["clean"], name="fc"),
            helper.make_node("RandomNormalLike", ["clean"], ["drawn"], scale=noise),
            helper.make_node("Add", ["clean", "drawn"], ["scores"]),
        ],
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", N_FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", N_CLASSES])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return ModelArtifact.from_bytes(model.SerializeToString())


class RandomAssembler:
    """A float model whose outputs change from run to run, and candidates that are no better."""

    def __init__(self, noise: float = 0.3) -> None:
        self._noise = noise

    def float_model(self) -> ModelArtifact:
        """Return the noisy classifier."""
        return random_model(self._noise)

    def assemble(self, candidate: Candidate) -> AssembledModel:
        """Return the noisy classifier, or one that is hardly noisier if anything is compressed."""
        noise = 1.001 * self._noise if candidate.choices else self._noise
        return AssembledModel(random_model(noise), estimate_bundle=lambda: 64, storage_only=())


def split_of(n_examples: int, *, seed: int = 1) -> Split:
    """Examples whose labels the float model gets right except for every tenth."""
    inputs = np.random.default_rng(seed).normal(size=(n_examples, N_FEATURES)).astype(np.float32)
    labels = (inputs @ WEIGHT).argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % N_CLASSES
    return Split((Batch({"x": inputs}, labels),))


def candidate(bits: int) -> Candidate:
    """One layer at so many bits."""
    return Candidate.of({"fc": Choice.of(Format.INT8, weight_bits=bits)})


BROKEN = Candidate.of({"fc": Choice.of(Format.INT8_DYNAMIC)})  # gives NaN
REFUSED = Candidate.of({"fc": Choice.of(Format.INT4_WEIGHT)})  # cannot be built


class TinyAssembler:
    """Rounds the weights to a grid of as many levels as the candidate has bits."""

    def float_model(self) -> ModelArtifact:
        """Return the classifier."""
        return linear_model(WEIGHT)

    def assemble(self, candidate: Candidate) -> AssembledModel:
        """Return the classifier with rounded weights."""
        choice = candidate.by_layer.get("fc", FLOAT)
        if choice == FLOAT:
            return AssembledModel(self.float_model(), estimate_bundle=lambda: 64, storage_only=())
        if choice.format is Format.INT4_WEIGHT:
            raise TrialError("no tensor for fc")
        step = np.float32(np.abs(WEIGHT).max() / 2 ** (choice.weight_bits - 1))
        weight = np.round(WEIGHT / step) * step
        if choice.format is Format.INT8_DYNAMIC:
            weight = weight * np.float32(np.nan)
        return AssembledModel(linear_model(weight), estimate_bundle=lambda: 64, storage_only=("fc",))


def build_workbench(
    *,
    metric: MetricSpec | None = None,
    timing: TimingSettings = QUICK,
    n_test: int = 80,
    target: Target | None = None,
    outputs: OutputCache | None = None,
    racing: RacingSettings | None = None,
    n_search: int = 120,
    batch_size: int = 16,
    assembler: Assembler | None = None,
) -> Workbench:
    """Build a workbench whose every measurement takes some hundredths of a second."""
    search = split_of(n_search)
    feeding = Feeding(batch_size, n_workers=2)
    test = split_of(n_test, seed=2) if n_test else None
    data = EvaluationData(search, test, timing_feeds(search, INPUTS, feeding, n_feeds=2))
    settings = EvaluationSettings(
        metric or builtin_metric("top1"), feeding, output="scores", timing=timing, racing=racing
    )
    target = target or OnnxRuntimeTarget(threads=1, batch_size=batch_size)
    return Workbench(assembler or TinyAssembler(), target, data, settings, outputs)
