"""The float model: canonical graph, and what everyone else needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from autoq.core.artifacts import ModelArtifact
from autoq.core.errors import ModelError
from autoq.core.layers import ModelSummary, TensorSpec
from autoq.graph.canonical import canonicalize
from autoq.graph.layers import find_layers, find_ops, tensor_spec
from autoq.graph.loading import load_onnx

# Protobuf refuses messages of 2 GB and more.
_PROTOBUF_LIMIT = 2**31 - 2**20


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
    return _describe(canonicalize(model))


def _describe(graph: ir.Model) -> FloatModel:
    layers = tuple(find_layers(graph))
    if not layers:
        raise ModelError(
            "the model has no layer that can be compressed",
            hint="autoq compresses Conv, ConvTranspose, Gemm and MatMul with constant float32 weights",
        )
    artifact = serialize(graph)
    summary = ModelSummary(
        digest=artifact.digest,
        inputs=tuple(tensor_spec(value) for value in graph.graph.inputs),
        outputs=tuple(tensor_spec(value) for value in graph.graph.outputs),
        layers=layers,
        ops=tuple(find_ops(graph)),
        size_bytes=artifact.size_bytes,
    )
    return FloatModel(graph, summary, artifact)


def serialize(model: ir.Model) -> ModelArtifact:
    """Write a model to bytes.

    Raises:
        ModelError: It is too large for one protobuf message.
    """
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > _PROTOBUF_LIMIT:
        raise ModelError(f"the model holds {size / 2**30:.1f} GiB of weights; at most 2 GiB are supported")
    return ModelArtifact.from_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def reload_float_model(path: Path) -> FloatModel:
    """Read a model that `FloatModel.artifact` wrote: canonical already, names and all.

    Raises:
        ModelError: The file cannot be read.
    """
    return _describe(load_onnx(path))
