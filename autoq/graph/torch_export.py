"""Turn a torch module into an ONNX model, once."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from autoq.core.errors import ModelError
from autoq.core.python_objects import load_object
from autoq.graph.quiet import quiet

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class ExampleInput:
    """Shape and dtype of one example input; axes named by a str are dynamic."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float = 0.0
    high: float = 1.0  # integers are drawn from [low, high)

    def draw(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[Any]]:
        """Draw an array of this shape; a dynamic axis gets length 2, which no exporter specialises."""
        shape = [2 if isinstance(axis, str) else axis for axis in self.shape]
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            return rng.integers(int(self.low), max(int(self.high), int(self.low) + 1), shape).astype(dtype)
        return rng.uniform(self.low, self.high, shape).astype(dtype)


def export_torch(
    reference: str,
    base: Path,
    example: Mapping[str, ExampleInput],
    checkpoint: Path | None = None,
) -> ir.Model:
    """Export the module that a factory makes, with dynamic axes where the example names them.

    Args:
        reference: `package.module:factory` or `file.py:factory`; called without arguments.
        base: Folder that relative file names refer to.
        example: Inputs by the name of forward's parameter, in its order.
        checkpoint: State dict, read with `weights_only=True`.

    Raises:
        ModelError: The factory, the checkpoint or the export fails.
    """
    torch = importlib.import_module("torch")
    module = build_module(reference, base, checkpoint)
    rng = np.random.default_rng(0)
    args = tuple(torch.from_numpy(spec.draw(rng)) for spec in example.values())
    dynamic = [
        {axis: torch.export.Dim(size) for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in example.values()
    ]
    try:
        with quiet(), redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                module.eval(),
                args,
                dynamo=True,
                input_names=list(example),
                dynamic_shapes=tuple(dynamic),
                verbose=False,
            )
    except Exception as error:  # the exporter runs the user's code and wraps whatever it raises
        cause: BaseException = error  # what the user's code raised, under the exporter's own account of it
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(_COLOURS.sub("", f"{type(cause).__name__}: {cause}").split())[:300]
        raise ModelError(
            f"{reference}: torch.onnx.export failed: {reason}",
            hint="does forward take what model.example says?",
        ) from error
    model = program.model
    assert isinstance(model, ir.Model)
    _check_dynamic(reference, model, example)
    return model


def _check_dynamic(reference: str, model: ir.Model, example: Mapping[str, ExampleInput]) -> None:
    """Refuse axes that the exporter fixed, without a word, at the length that was drawn."""
    for value in model.graph.inputs:
        spec = example.get(str(value.name))
        for axis, wanted in enumerate(spec.shape if spec else ()):
            if isinstance(wanted, str) and value.shape is not None and isinstance(value.shape[axis], int):
                raise ModelError(
                    f"{reference}: axis {axis} ({wanted}) of input {value.name!r} cannot be dynamic: "
                    f"the module fixes it",
                    hint="does forward call len() or int() on it? x.shape[0] stays dynamic; a number in "
                    "model.example fixes the axis",
                )


def build_module(reference: str, base: Path, checkpoint: Path | None = None) -> Any:
    """Make the torch.nn.Module of a factory, with the checkpoint's weights if one is given.

    Raises:
        ModelError: The factory or the checkpoint fails.
    """
    torch = importlib.import_module("torch")
    factory = load_object(reference, base)
    if not callable(factory):
        raise ModelError(f"{reference}: expected a callable that returns a torch.nn.Module")
    try:
        module = factory()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"{reference}: the factory raised {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{reference}: expected a torch.nn.Module, got {type(module).__name__}")
    if checkpoint is not None:
        _load_checkpoint(torch, module, checkpoint)
    return module


def _load_checkpoint(torch: Any, module: Any, checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise ModelError(f"{checkpoint}: no such checkpoint file")
    try:
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except Exception as error:  # on bytes that are no pickle the unpickler trips in any way, KeyError too
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{checkpoint}: not a state dict of the module: {reason}",
            hint="it is read with weights_only=True",
        ) from error
