"""A deployed model in MLflow's ONNX flavour: the very file that was measured, with a signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoq.core.artifacts import ModelArtifact
from autoq.core.layers import TensorSpec
from autoq.graph.loading import read_proto

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

_FILE = "model.onnx"  # MLflow's own name for it
_NEEDS = ("numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class DeployedModel:
    """A point of a search as it would be deployed."""

    search: str
    trial: int
    artifact: ModelArtifact
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int

    @property
    def name(self) -> str:
        """Name for people, of the characters that MLflow allows."""
        return f"{self.search.replace('.', '_')}-t{self.trial:03d}"


def write_mlflow_model(model: DeployedModel, folder: Path) -> None:
    """Write an MLflow model into a folder that does not exist yet.

    MLflow writes an ONNX model anew, with all its weights in another file; the measured bytes take the
    place of what it wrote.
    """
    from mlflow import onnx

    onnx.save_model(
        read_proto(model.artifact),
        str(folder),
        signature=signature_of(model),
        pip_requirements=[f"{name}=={version(name)}" for name in _NEEDS],  # else it runs pip to find out
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": model.threads},
        save_as_external_data=False,
    )
    model.artifact.save(folder / _FILE)


def signature_of(model: DeployedModel) -> ModelSignature:
    """Describe inputs and outputs by name, type and shape; axes of any length are -1."""
    from mlflow.models import ModelSignature

    return ModelSignature(_schema(model.inputs), _schema(model.outputs))


def _schema(tensors: Sequence[TensorSpec]) -> Schema:
    from mlflow.types.schema import Schema
    from mlflow.types.schema import TensorSpec as MlflowTensorSpec

    def shape(tensor: TensorSpec) -> tuple[int, ...]:
        return tuple(length if isinstance(length, int) else -1 for length in tensor.shape)

    return Schema([MlflowTensorSpec(np.dtype(one.dtype), shape(one), one.name) for one in tensors])
