"""Seconds from a choice to an open session: autoq beside ONNX Runtime's own quantiser, on ResNet-50."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from costs import at_least, at_most, in_own_process
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    create_calibrator,
    quantize_static,
)
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from resnet50 import IMAGE, SIDE, build_resnet50

from autoq.assembly.assemble import Stitcher
from autoq.calibrating import Calibrator, SourceKeys, derive, open_stitchers, save_model
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import AS_IT_IS, Candidate, Choice, Precision
from autoq.core.data import Batch, Feed, Split
from autoq.evaluation.clock import machine_clock
from autoq.execution.memory import keep_freed_memory
from autoq.exporting import Silent
from autoq.graph.float_model import FloatModel, load_float_model
from autoq.home import Home
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget

N_IMAGES = 32
N_ROUNDS = 3
REPEATS = {"autoq": 15, "QDQQuantizer": 6, "MinMax": 3, "Entropy": 2}  # spread over the rounds

MAX_AUTOQ_S = 0.25
MIN_RATIO = {"MinMax": 10.0, "Entropy": 60.0, "QDQQuantizer": 4.0}  # times slower than autoq


def assembly(bench: Path, home: Path) -> dict[str, Any]:
    """Time every way from float ResNet-50 to an open int8 session, interleaved in one process.

    autoq has its statistics and variants, as a trial does. `quantize_static` calibrates every time, on
    all cores; QDQQuantizer alone gets the ranges of such a calibration and its copy of the model for
    free. The bench is not used.
    """
    measured = in_own_process(_measure, home / "assembly")
    medians = {name: float(np.median(seconds)) for name, seconds in measured["seconds"].items()}
    ratios = {name: medians[name] / medians["autoq"] for name in MIN_RATIO}
    for name, median in medians.items():
        size_mb = measured["size_bytes"][name] / 1e6
        print(f"  {name}: {median:.3f} s, {ratios.get(name, 1.0):.1f}x autoq, {size_mb:.1f} MB", flush=True)
    bars = [at_most("autoq, s to an open session", medians["autoq"], MAX_AUTOQ_S, "s")]
    bars += [at_least(f"{name}, times slower", ratios[name], bar, "x") for name, bar in MIN_RATIO.items()]
    return {**measured, "median_s": medians, "ratios": ratios, "bars": bars}


@dataclass(frozen=True, eq=False)
class _Bench:
    """What all contenders start from; built once, not timed."""

    folder: Path
    images: Split
    stitcher: Stitcher
    candidate: Candidate
    ranges: TensorsData

    @property
    def model(self) -> Path:
        """The float model's file."""
        return _model_file(self.folder)


# Does what is free for a contender, and returns what is timed.
_Contender = Callable[[_Bench], Callable[[], ModelArtifact]]


def _measure(folder: Path) -> dict[str, Any]:
    """Run all contenders; return seconds and model size of each."""
    logging.getLogger().setLevel(logging.ERROR)  # importing ONNX Runtime's quantiser turns INFO on
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(build_resnet50(), _model_file(folder))
    bench = _prepare(folder)
    seconds: dict[str, list[float]] = {name: [] for name in REPEATS}
    sizes: dict[str, int] = {}
    # The entropy calibrator prints its progress.
    with machine_clock(), redirect_stdout(StringIO()):
        _timed(CONTENDERS["autoq"](bench))  # reads the variants, as the first trial does
        for name in _turns():
            taken, sizes[name] = _timed(CONTENDERS[name](bench))
            seconds[name].append(taken)
    return {"seconds": seconds, "size_bytes": sizes}


def ready_made_static(model: Path, out: Path, calibration: Split) -> ModelArtifact:
    """Let `quantize_static` make every MatMul of a model int8, per channel, by min-max."""
    quantize_static(
        str(model),
        str(out),
        _Reader(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
    )
    return ModelArtifact(path=out)


def _turns() -> Iterator[str]:
    """Name whose turn it is: every contender in every round, as often as its repeats go."""
    for index in range(N_ROUNDS):
        for name, n_repeats in REPEATS.items():
            share = n_repeats * (index + 1) // N_ROUNDS - n_repeats * index // N_ROUNDS
            yield from [name] * share


def _timed(make: Callable[[], ModelArtifact]) -> tuple[float, int]:
    """Build a model and open its session; return seconds and the model's bytes."""
    gc.collect()  # nobody pays for another's garbage
    start = time.perf_counter()
    artifact = make()
    session = OnnxRuntimeTarget().open(artifact)
    taken = time.perf_counter() - start
    session.close()
    return taken, artifact.size_bytes


def _autoq(bench: _Bench) -> Callable[[], ModelArtifact]:
    return lambda: bench.stitcher.assemble(bench.candidate).artifact


def _static(method: CalibrationMethod) -> _Contender:
    def ready(bench: _Bench) -> Callable[[], ModelArtifact]:
        out, reader = bench.folder / f"{method.name}.onnx", _Reader(bench.images)

        def make() -> ModelArtifact:
            quantize_static(
                str(bench.model),
                str(out),
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=method,
            )
            return ModelArtifact(path=out)

        return make

    return ready


def _quantizer(bench: _Bench) -> Callable[[], ModelArtifact]:
    model = load_model_with_shape_infer(bench.model)  # it is edited in place

    def make() -> ModelArtifact:
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=bench.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=_quantized_ops(),
            extra_options={},
        )
        quantizer.quantize_model()
        return ModelArtifact.from_bytes(quantizer.model.model.SerializeToString())

    return make


CONTENDERS: dict[str, _Contender] = {
    "autoq": _autoq,
    "QDQQuantizer": _quantizer,
    "MinMax": _static(CalibrationMethod.MinMax),
    "Entropy": _static(CalibrationMethod.Entropy),
}


class _Reader:
    """Feeds images one by one: a CalibrationDataReader, which only asks for its one method."""

    def __init__(self, images: Split) -> None:
        self._feeds: Iterator[Feed] = images.feeds(1)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _prepare(folder: Path) -> _Bench:
    images = np.random.default_rng(1).standard_normal((N_IMAGES, 3, SIDE, SIDE), np.float32)
    split = Split((Batch({IMAGE: images}),))
    model = load_float_model(_model_file(folder))
    return _Bench(folder, split, _stitcher(folder, model, split), _candidate(model), _ranges(folder, split))


def _stitcher(folder: Path, model: FloatModel, split: Split) -> Stitcher:
    """Calibrate, and open what a trial assembles with; statistics of an earlier run are used again."""
    home, target = Home.open(folder), OnnxRuntimeTarget()
    save_model(model, home)
    calibrator = Calibrator(home, split, target.environment(), Silent())
    source = derive(model, AS_IT_IS, calibrator, calibrator.key)
    return open_stitchers(home, {AS_IT_IS: SourceKeys.of(source)}, target).of(AS_IT_IS)


def _candidate(model: FloatModel) -> Candidate:
    """Static int8 throughout, weights per channel, ranges by min-max: what quantize_static makes."""
    layers, ops = model.summary.layers, model.summary.ops
    choice = Choice.of("int8", calibration="minmax")
    return Candidate.of({one.name: choice for one in layers}, {op.name: Precision.INT8 for op in ops})


def _ranges(folder: Path, split: Split) -> TensorsData:
    calibrator = create_calibrator(
        _model_file(folder),
        _quantized_ops(),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(_Reader(split))
    return calibrator.compute_data()


def _quantized_ops() -> list[str]:
    """The ops that quantize_static takes when it is not told any."""
    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _model_file(folder: Path) -> Path:
    return folder / "resnet50.onnx"
