"""Read an ONNX file, trusting nothing in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from autoq.core.artifacts import ModelArtifact
from autoq.core.errors import ModelError


def load_onnx(path: Path) -> ir.Model:
    """Read an ONNX model whose external data, if any, lies in its own folder; they are read into memory.

    Raises:
        ModelError: The file is missing, is not ONNX, is truncated, or names external data that is
            missing, too short, or outside the model's folder.
    """
    model = _load(path, None, _copied)
    try:
        onnx.checker.check_model(path)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not a valid ONNX model: {reason}") from error
    return model


def map_onnx(path: Path, content: bytes | None = None) -> tuple[ir.Model, tuple[Path, ...]]:
    """Read an ONNX model, leave its external data on disk, and say which files hold them.

    Weights are views of the mapped files: these may be deleted or replaced, but never written to. What
    is read is known to be ONNX: whether nodes and types are valid is not checked.

    Args:
        path: The model's file.
        content: What is in it, where the caller has read it already.

    Raises:
        ModelError: As `load_onnx`, but for that.
    """
    files: dict[Path, None] = {}

    def mapped(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        files[path.parent / tensor.location] = None
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)

    return _load(path, content, mapped), tuple(files)


_Take = Callable[[ir.ExternalTensor], ir.TensorProtocol]


def _copied(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Read a tensor into memory: its file belongs to the user, who may write to it."""
    return ir.external_data.convert_tensors_from_external([tensor])[0]


def _load(path: Path, content: bytes | None, take: _Take) -> ir.Model:
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint="expected an ONNX model")
    try:
        model: ir.Model = ir.from_proto(onnx.load_model_from_string(content or path.read_bytes()))
        ir.external_data.set_base_dir(model.graph, path.parent)
        nodes = list(model.graph)
    except (
        OSError,
        DecodeError,
        ir.serde.SerdeError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not a readable ONNX model: {reason}", hint="is it truncated?") from error
    if not nodes:
        raise ModelError(f"{path}: not an ONNX model, or one without any node")
    for graph in _graphs(model):
        _load_external_data(graph, path, take)
    return model


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def _load_external_data(graph: ir.Graph, path: Path, take: _Take) -> None:
    """Replace references to external data by tensors, so that what is written later stands alone."""
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _load_external(value.const_value, path, take)
        elif value.const_value is not None and _is_plain(value.const_value.dtype):
            value.const_value = _held(value.const_value, path)
    for node in graph:
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                tensor = _load_external(attribute.value, path, take)
                node.attributes.add(ir.AttrTensor(attribute.name, tensor))


def _is_plain(dtype: ir.DataType) -> bool:
    """Whether numpy has the type itself: not strings, nor several numbers a byte."""
    return dtype != ir.DataType.STRING and dtype.itemsize >= 1


def _held(tensor: ir.TensorProtocol, path: Path) -> ir.TensorProtocol:
    """Take a tensor's array out of its message, which hands out a copy of it at every look."""
    try:
        array = tensor.numpy()
    except ValueError as error:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} does not have the data of its shape: {error}"
        ) from error
    return ir.Tensor(
        array,
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _load_external(tensor: ir.ExternalTensor, path: Path, take: _Take) -> ir.TensorProtocol:
    folder = path.resolve().parent
    location = Path(tensor.location)
    target = (folder / location).resolve()
    if location.is_absolute() or not target.is_relative_to(folder):
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has its data at {tensor.location!r}, outside the model's folder",
            hint="external data must lie beside the model",
        )
    if not target.is_file():
        raise ModelError(
            f"{path}: external data file {tensor.location!r} of tensor {tensor.name!r} is missing"
        )
    offset, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or length != tensor.nbytes:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} takes {tensor.nbytes:,} bytes, but its external data are "
            f"{length:,} bytes from byte {offset:,}"
        )
    if target.stat().st_size < offset + length:
        raise ModelError(
            f"{path}: external data file {tensor.location!r} is truncated: tensor {tensor.name!r} ends at "
            f"byte {offset + length:,}, the file at {target.stat().st_size:,}"
        )
    try:
        return take(tensor)
    except (OSError, ValueError) as error:  # not readable, or a file with a second hard link
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: cannot read external data {tensor.location!r}: {reason}") from error


def read_proto(artifact: ModelArtifact) -> onnx.ModelProto:
    """Parse a model that autoq wrote, for other tools; external data stay where they are."""
    if artifact.content is not None:
        return onnx.load_model_from_string(artifact.content)
    return onnx.load_model(artifact.source, load_external_data=False)
