"""ONNX Runtime on the CPU of this machine."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from autoq.calibration.outliers import LEAST_CHANNELS
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Choice, Format, Granularity
from autoq.core.data import Array, Feed
from autoq.core.errors import RuntimeRejectedModel
from autoq.core.layers import Layer, OpFamily
from autoq.evaluation.ports import Verdict
from autoq.targets.cpu import Cpu, this_cpu
from autoq.targets.kernel_events import kernel_seconds

_PROFILED_RUNS = 8
_NATIVE = Verdict(legal=True)
# Formats that end in u8 x s8 kernels: s8 activations are rewritten to u8 at load.
_U8_BY_S8 = (Format.INT8, Format.INT8_S8, Format.INT8_OUTLIER, Format.INT8_DYNAMIC)
_UNSATURATED_BITS = 7  # of weights whose sums of two products fit 16 bits
REJECTIONS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoModel,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


def _refused(reason: str) -> Verdict:
    return Verdict(legal=False, native=False, reason=reason)


class OnnxRuntimeSession:
    """A model loaded in ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch and return every output by name. Safe to call from several threads."""
        assert self._session is not None, "the session is closed"
        try:
            values = self._session.run(None, dict(feed))
        except REJECTIONS as error:
            raise RuntimeRejectedModel(f"ONNX Runtime cannot run the model: {_one_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def time_block(self, n_runs: int, feeds: Sequence[Feed]) -> float:
        """Run `n_runs` times over `feeds` in turn and return seconds."""
        assert self._session is not None, "the session is closed"
        run = self._session.run
        turns = list(itertools.islice(itertools.cycle(feeds), n_runs))
        start = time.perf_counter()
        for feed in turns:
            run(None, feed)
        return time.perf_counter() - start

    def close(self) -> None:
        """Free the session's memory."""
        self._session = None


class OnnxRuntimeTarget:
    """ONNX Runtime's CPU execution provider with its default optimisations.

    What it calls native was established by measurement; see docs/architecture.md.
    """

    def __init__(self, *, threads: int = 1, batch_size: int = 1, cpu: Cpu | None = None) -> None:
        self._threads = threads
        self._batch_size = batch_size
        self._cpu = cpu or this_cpu()

    @property
    def name(self) -> str:
        """Readable identity."""
        return f"onnxruntime-cpu-{self._threads}t-b{self._batch_size}"

    @property
    def batch_size(self) -> int:
        """Examples a run."""
        return self._batch_size

    @property
    def threads(self) -> int:
        """Threads of one run."""
        return self._threads

    def environment(self) -> dict[str, Any]:
        """Describe runtime, CPU and threads."""
        return {
            "runtime": "onnxruntime",
            "runtime_version": ort.__version__,
            "device": "cpu",
            "threads": self._threads,
            "batch_size": self._batch_size,
            "cpu": {**asdict(self._cpu), "instruction_sets": list(self._cpu.instruction_sets)},
        }

    def judge(self, layer: Layer, choice: Choice) -> Verdict:
        """Say whether ONNX Runtime runs this choice on this layer."""
        if choice.format is Format.FP32:
            return _NATIVE
        if choice.format is Format.FP16:
            return Verdict(legal=True, native=False, reason="fp16 weights run at the speed of fp32 ones")
        if missing := _missing_kernel(layer, choice.format):
            return _refused(missing)
        saturates = self._cpu.saturates and choice.format in _U8_BY_S8
        widest = _UNSATURATED_BITS if saturates else choice.format.container_bits
        if choice.weight_bits > widest:
            return _refused("u8 x s8 saturates on this CPU (no VNNI): at most 7 weight bits (reduce_range)")
        if choice.stored_bits > widest:
            return _refused("u8 x s8 saturates on this CPU (no VNNI), and codebooks use all 8 bits")
        if layer.op == "ConvTranspose" and choice.granularity is Granularity.CHANNEL and layer.group > 1:
            return _refused("per-channel scales of a grouped ConvTranspose cannot be expressed in ONNX")
        if layer.op == "ConvTranspose":
            return Verdict(legal=True, native=False, reason="ONNX Runtime computes ConvTranspose in float")
        if choice.weight_bits < widest:
            return Verdict(
                legal=True,
                native=False,
                reason=f"a {choice.weight_bits}-bit grid runs at the speed of "
                f"{choice.format.container_bits}-bit weights",
            )
        return _NATIVE

    def judge_op(self, family: OpFamily) -> Verdict:
        """Say whether weightless ops of this family may run in int8; all known families may."""
        return _NATIVE

    def open(self, model: ModelArtifact, *, optimize: bool = True) -> OnnxRuntimeSession:
        """Load a model; `optimize=False` runs the graph as written.

        Raises:
            RuntimeRejectedModel: The runtime refused the model; trying again cannot help.
        """
        return OnnxRuntimeSession(self._create(model, optimize=optimize))

    def profile(self, model: ModelArtifact, feeds: Sequence[Feed]) -> dict[str, float]:
        """Return the seconds of one run by kernel, under the names of the model's nodes.

        Raises:
            RuntimeRejectedModel: The runtime refused the model, or to run it; trying again cannot help.
        """
        with tempfile.TemporaryDirectory() as folder:
            session = self._create(model, optimize=True, profile=Path(folder) / "profile")
            runner = OnnxRuntimeSession(session)
            for feed in itertools.islice(itertools.cycle(feeds), _PROFILED_RUNS):
                runner.run(feed)
            return kernel_seconds(json.loads(Path(session.end_profiling()).read_text()))

    def optimized_graph(self, model: ModelArtifact, path: Path) -> None:
        """Write the graph the runtime really runs: what was fused, and what was not."""
        self._create(model, optimize=True, dump=path)

    def _create(
        self, model: ModelArtifact, *, optimize: bool, dump: Path | None = None, profile: Path | None = None
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if dump is not None:
            options.optimized_model_filepath = str(dump)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        source = model.content if model.content is not None else str(model.path)
        try:
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except REJECTIONS as error:
            kind = " (not an ONNX model)" if isinstance(error, ort_state.InvalidProtobuf) else ""
            raise RuntimeRejectedModel(f"ONNX Runtime refused the model{kind}: {_one_line(error)}") from error


def _missing_kernel(layer: Layer, fmt: Format) -> str:
    """Why no kernel runs an integer format on a layer; empty if one does."""
    if layer.op == "GRU":
        return "ONNX Runtime has no integer GRU kernel"
    if layer.op == "LSTM":
        return "" if fmt is Format.INT8_DYNAMIC else f"{fmt} has no kernel for LSTM, only int8_dynamic has"
    if layer.op == "Gather":
        if not fmt.is_weight_only:
            return f"{fmt} has no kernel for Gather, only weight-only formats have"
        if layer.weight_shape[1] * fmt.container_bits % 8:
            return f"{fmt} has no kernel for a Gather of rows with an odd number of columns"
        return ""
    if not layer.is_matmul and (fmt.keeps_outliers or fmt is Format.INT8_DYNAMIC or fmt.is_weight_only):
        return f"{fmt} has no fast kernel for {layer.op}, only for MatMul and Gemm"
    if fmt.keeps_outliers and layer.weight_shape[1 - layer.channel_axis] < LEAST_CHANNELS:
        return (
            f"{fmt} is for layers of at least {LEAST_CHANNELS} inputs: of fewer no small part can stay float"
        )
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
