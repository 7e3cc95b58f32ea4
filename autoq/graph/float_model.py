"""The float model: canonical graph, and what everyone else needs to know of it."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

import onnx_ir as ir
from filelock import FileLock, Timeout

from autoq.core.artifacts import ModelArtifact
from autoq.core.digests import digest_file
from autoq.core.errors import ModelError
from autoq.core.layers import ModelSummary, TensorSpec
from autoq.graph.canonical import canonicalize
from autoq.graph.layers import find_layers, find_ops, is_layer, tensor_spec
from autoq.graph.loading import load_onnx, map_onnx

# Protobuf refuses messages of 2 GB and more; the rest of the limit is for nodes and names.
_WEIGHT_LIMIT = 2**31 - 2**26
_SMALL_BYTES = 1024  # tensors up to this size stay in the model: runtimes read shapes from them
# Runtimes map large tensors: on Windows at multiples of 64 KiB, elsewhere at pages.
_PAGE, _MAP_UNIT = 4096, 1 << 16
_LARGE_BYTES = 1 << 20
# What says that others have quantised a model before.
_QUANTISED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits",
    "QLinearConv", "QLinearMatMul",
}  # fmt: skip
_FOLDER_PREFIX = "autoq-model-"
_YOUNG_S = 60.0  # a folder this new may not have been locked yet by the process that made it


@dataclass(frozen=True)
class FloatModel:
    """A canonical float model. Edit only a `clone` of it; weights are shared between clones."""

    graph: ir.Model
    summary: ModelSummary
    artifact: ModelArtifact

    def clone(self) -> ir.Model:
        """Return a copy whose graph can be edited."""
        return self.graph.clone()

    def output(self, name: str | None) -> TensorSpec:
        """Return the output that metrics look at.

        Raises:
            ModelError: The model has several outputs and none is named, or none has that name.
        """
        outputs = self.summary.outputs
        known = ", ".join(output.name for output in outputs)
        if name is None:
            if len(outputs) > 1:
                raise ModelError(f"the model has {len(outputs)} outputs", hint=f"name one of: {known}")
            return outputs[0]
        for output in outputs:
            if output.name == name:
                return output
        raise ModelError(f"the model has no output {name!r}", hint=f"it has: {known}")


def load_float_model(path: Path) -> FloatModel:
    """Read and canonicalise an ONNX file.

    Raises:
        ModelError: The file cannot be read, or has no layer that can be compressed.
    """
    try:
        return build_float_model(load_onnx(path))
    except ModelError as error:
        message = str(error.args[0])
        if str(path) in message:
            raise
        raise ModelError(f"{path}: {message}", hint=error.hint) from error


def build_float_model(model: ir.Model) -> FloatModel:
    """Canonicalise a model and describe it.

    Raises:
        ModelError: It has no layer that can be compressed, or a weight is not finite.
    """
    return describe_graph(canonicalize(model))


def describe_graph(graph: ir.Model, *, is_part: bool = False) -> FloatModel:
    """Take a graph that is canonical already, or a part of one, which may have no layers.

    Raises:
        ModelError: It has no layer that can be compressed, or a weight is not finite.
    """
    return _describe(graph, lambda: serialize(graph), is_part=is_part)


def reload_float_model(path: Path) -> FloatModel:
    """Read a model that `FloatModel.artifact` wrote: canonical already, names and all.

    External data stay on disk, mapped, and the artifact refers to the files themselves.

    Raises:
        ModelError: The file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError:
        content = b""  # `map_onnx` says what is wrong
    graph, external = map_onnx(path, content)
    if external:
        return _describe(graph, lambda: ModelArtifact(path=path, external=external))
    return _describe(graph, lambda: ModelArtifact.from_bytes(content))


def _describe(graph: ir.Model, write: Callable[[], ModelArtifact], *, is_part: bool = False) -> FloatModel:
    layers = tuple(find_layers(graph))
    if not layers and not is_part:
        raise ModelError("the model has no layer that can be compressed", hint=_why_no_layers(graph))
    artifact = write()
    summary = ModelSummary(
        digest=artifact.digest,
        inputs=tuple(tensor_spec(value) for value in graph.graph.inputs),
        outputs=tuple(tensor_spec(value) for value in graph.graph.outputs),
        layers=layers,
        ops=tuple(find_ops(graph)),
        size_bytes=artifact.size_bytes,
    )
    return FloatModel(graph, summary, artifact)


def _why_no_layers(graph: ir.Model) -> str:
    if _QUANTISED & {node.op_type for node in graph.graph if node.domain in ("", "com.microsoft")}:
        return "it is quantised already: autoq starts from the float model"
    if any(is_layer(node) for node in graph.graph.all_nodes()):
        return "its layers are in the bodies of If, Loop or Scan, which are left as they are"
    ops = "Conv, ConvTranspose, Gemm, MatMul, LSTM and embeddings"
    return f"autoq compresses {ops} with constant float32 weights"


def serialize(
    model: ir.Model, folder: Path | None = None, *, limit_bytes: int = _WEIGHT_LIMIT
) -> ModelArtifact:
    """Write a model to bytes or, where its weights are too large for one message, to files.

    Files are `model.onnx` and, beside it, one file of weights that is named after its content. Equal
    models give equal bytes.

    Args:
        model: Any model whose tensors are in memory or mapped; it is not changed.
        folder: Where files go. By default a temporary folder, which goes when the artifact does.
        limit_bytes: Weights of more than this go to files.

    Raises:
        OSError: The disk is full or refuses.
    """
    if sum(tensor.nbytes for tensor in _tensors(model).values()) <= limit_bytes:
        return ModelArtifact.from_bytes(_to_bytes(model))
    if folder is not None:
        return _write_files(model, folder)
    folder, lock = _make_folder()
    try:
        artifact = _write_files(model, folder)
    except BaseException:  # raised again: an interrupt too may leave no folder behind
        _remove_folder(folder, lock)
        raise
    weakref.finalize(artifact, _remove_folder, folder, lock)
    return artifact


def _tensors(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return {value: value.const_value for value in values if value.const_value is not None}


def _to_bytes(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


def _write_files(model: ir.Model, folder: Path) -> ModelArtifact:
    stub = model.clone()
    large = {value: tensor for value, tensor in _tensors(stub).items() if tensor.nbytes > _SMALL_BYTES}
    writing = folder / "weights.partial"
    offsets = _write_tensors(writing, list(large.values()))
    data = folder / f"weights-{digest_file(writing)}.data"
    writing.replace(data)
    for (value, tensor), offset in zip(large.items(), offsets, strict=True):
        value.const_value = _reference(tensor, data, offset)
    path = folder / "model.onnx"
    path.write_bytes(_to_bytes(stub))
    return ModelArtifact(path=path, external=(data,))


def _write_tensors(path: Path, tensors: Sequence[ir.TensorProtocol]) -> list[int]:
    """Write tensors one after the other, aligned; return the offset of each."""
    offsets = []
    with path.open("wb") as file:
        for tensor in tensors:
            unit = _MAP_UNIT if tensor.nbytes >= _LARGE_BYTES else _PAGE
            file.write(bytes(-file.tell() % unit))
            offsets.append(file.tell())
            file.write(tensor.tobytes())
    return offsets


def _reference(tensor: ir.TensorProtocol, data: Path, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location=data.name,
        offset=offset,
        length=tensor.nbytes,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir=data.parent,
    )


def _make_folder() -> tuple[Path, FileLock]:
    """Make a temporary folder, and remove those whose process was killed: they hold gigabytes."""
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    lock = _locked(folder)
    for other in folder.parent.glob(f"{_FOLDER_PREFIX}*"):
        with suppress(OSError, Timeout):
            if _may_be_abandoned(other, folder.stat().st_uid):
                _remove_folder(other, _locked(other))
    return folder, lock


def _may_be_abandoned(folder: Path, user: int) -> bool:
    stat = folder.lstat()  # a link is somebody's trap
    is_old = time.time() - stat.st_mtime > _YOUNG_S
    return is_old and stat.st_uid == user and S_ISDIR(stat.st_mode)


def _locked(folder: Path) -> FileLock:
    """Lock a folder for as long as this process lives.

    Raises:
        Timeout: Its process lives.
    """
    lock = FileLock(folder / "lock", thread_local=False)  # whoever drops the artifact releases it
    lock.acquire(timeout=0)
    return lock


def _remove_folder(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
