"""Models that ONNX Runtime's own tools make: the rows autoq's front is compared with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from autoq.core.data import Feed, Split

Maker = Callable[[Path, Path, Split], None]  # float model, file to write, calibration split
N_CALIBRATION = 256


class _Reader(CalibrationDataReader):
    """Feeds the calibration split example by example, which is what the quantiser expects."""

    def __init__(self, split: Split) -> None:
        self._feeds: Iterator[Feed] = split.take(N_CALIBRATION).feeds(1)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _static(
    *,
    signed: bool = False,
    per_channel: bool = True,
    method: CalibrationMethod = CalibrationMethod.MinMax,
    ops: list[str] | None = None,
) -> Maker:
    def make(model: Path, out: Path, calibration: Split) -> None:
        quantize_static(
            str(model),
            str(out),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
            calibrate_method=method,
            op_types_to_quantize=ops,
        )

    return make


def _dynamic(ops: list[str] | None) -> Maker:
    def make(model: Path, out: Path, calibration: Split) -> None:
        quantize_dynamic(
            str(model), str(out), op_types_to_quantize=ops, per_channel=True, weight_type=QuantType.QInt8
        )

    return make


def _blocks(bits: int) -> Maker:
    def make(model: Path, out: Path, calibration: Split) -> None:
        quantizer = MatMulNBitsQuantizer(onnx.load(model), block_size=32, accuracy_level=4, bits=bits)
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))

    return make


CNN_ROWS: dict[str, Maker] = {
    "quantize_static, u8, per channel, MinMax": _static(),
    "quantize_static, u8, per channel, Percentile": _static(method=CalibrationMethod.Percentile),
    "quantize_static, u8, per tensor": _static(per_channel=False),
    "quantize_static, s8": _static(signed=True),
}
TRANSFORMER_ROWS: dict[str, Maker] = {
    "quantize_dynamic, per channel": _dynamic(None),
    "quantize_dynamic, MatMul only": _dynamic(["MatMul"]),
    "quantize_static, MatMul only, MinMax": _static(ops=["MatMul"]),
    "quantize_static, MatMul only, Percentile": _static(ops=["MatMul"], method=CalibrationMethod.Percentile),
    "quantize_static, every op": _static(),
    "MatMulNBits, 8 bit, blocks of 32": _blocks(8),
    "MatMulNBits, 4 bit, blocks of 32": _blocks(4),
}


def make_rows(model: Path, folder: Path, calibration: Split, *, transformer: bool) -> dict[str, Path]:
    """Build every row's model; return the files by row."""
    logging.getLogger().setLevel(logging.ERROR)
    rows = TRANSFORMER_ROWS if transformer else CNN_ROWS
    files = {}
    for index, (name, make) in enumerate(rows.items()):
        out = folder / f"{model.stem}_{index}.onnx"
        np.random.seed(0)  # the percentile calibrator draws from the global state
        make(model, out, calibration)
        files[name] = out
    return files
