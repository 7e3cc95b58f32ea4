"""Read an ONNX file, trusting nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from autoq.core.errors import ModelError


def load_onnx(path: Path) -> ir.Model:
    """Read an ONNX model whose external data, if any, lies in its own folder.

    Raises:
        ModelError: The file is missing, is not ONNX, is truncated, or names external data that is
            missing, too short, or outside the model's folder.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint="expected an ONNX model")
    try:
        model = ir.load(path)
        nodes = list(model.graph)
    except (DecodeError, ValueError, TypeError, AttributeError, KeyError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not a readable ONNX model: {reason}", hint="is it truncated?") from error
    if not nodes:
        raise ModelError(f"{path}: not an ONNX model, or one without any node")
    _check_external_data(model, path)
    return model


def _check_external_data(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in _external_tensors(model):
        location = Path(tensor.location)
        target = (folder / location).resolve()
        if location.is_absolute() or not target.is_relative_to(folder):
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has its data at {tensor.location!r}, outside the "
                "model's folder",
                hint="external data must lie beside the model",
            )
        if not target.is_file():
            raise ModelError(
                f"{path}: external data file {tensor.location!r} of tensor {tensor.name!r} is missing"
            )
        needed = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if target.stat().st_size < needed:
            raise ModelError(
                f"{path}: external data file {tensor.location!r} is truncated: "
                f"tensor {tensor.name!r} ends at byte {needed:,}, the file at {target.stat().st_size:,}"
            )


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and isinstance(
                    attribute.value, ir.ExternalTensor
                ):
                    yield attribute.value
