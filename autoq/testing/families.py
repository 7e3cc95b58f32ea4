"""One small network of each architecture that channel groups have to get right, as torch modules.

Weights and running statistics are random and seeded. The modules are made by the factories in
`convolutional_families` and `sequence_families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoq.graph.float_model import FloatModel, build_float_model
from autoq.graph.torch_export import ExampleInput, export_torch


@dataclass(frozen=True, slots=True)
class Family:
    """A factory, as `package.module:factory`, and what its module reads."""

    factory: str
    example: Mapping[str, ExampleInput]

    def export(self) -> FloatModel:
        """Export the module through the path that a user's takes: seconds."""
        return build_float_model(export_torch(self.factory, Path(), self.example))


_IMAGE = {"image": ExampleInput(("batch", 3, 16, 16), low=-1.0)}
_TOKENS = {"tokens": ExampleInput(("batch", "length"), "int64", high=32)}
_CONVOLUTIONAL = (
    *("vgg", "resnet_basic", "resnet_bottleneck", "resnext", "mobilenet_v2", "mobilenet_v3"),
    *("densenet", "inception", "unet", "shufflenet"),
)
_SEQUENCES: Mapping[str, Mapping[str, ExampleInput]] = {
    "vit": _IMAGE,
    "bert": {**_TOKENS, "mask": ExampleInput(("batch", "length"), "int64", high=2)},
    "gpt2": {"tokens": ExampleInput(("batch", 8), "int64", high=32)},
    "torch_encoder": {"frames": ExampleInput((6, "batch", 8), low=-1.0)},
    "bilstm": _TOKENS,
}
FAMILIES: Mapping[str, Family] = {
    **{name: Family(f"autoq.testing.convolutional_families:{name}", _IMAGE) for name in _CONVOLUTIONAL},
    **{name: Family(f"autoq.testing.sequence_families:{name}", one) for name, one in _SEQUENCES.items()},
}
