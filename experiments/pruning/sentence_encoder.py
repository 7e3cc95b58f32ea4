"""MiniLM as a torch module that takes its weights from the ONNX file: what gradients are taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.assembly.assemble import layer_weights
from autoq.core.data import Array
from autoq.graph.blocks import bias_add
from autoq.graph.float_model import FloatModel
from autoq.graph.values import constant

WIDTH, N_HEADS, N_BLOCKS, EPSILON = 384, 12, 6, 1e-12
INPUTS = ("input_ids", "attention_mask")


class Block(nn.Module):
    def __init__(self, n_units: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, EPSILON)
        self.intermediate, self.output = nn.Linear(WIDTH, n_units), nn.Linear(n_units, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        parts = (layer(x).unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for layer in self._projections)
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        x = self.norm(x + self.dense(mixed.transpose(1, 2).flatten(2)))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))

    @property
    def _projections(self) -> tuple[nn.Module, ...]:
        return self.query, self.key, self.value


class SentenceEncoder(nn.Module):
    """BERT of six blocks, feed-forward units of each given; the mean over tokens, of length one."""

    def __init__(self, n_units: Sequence[int]) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30522, WIDTH), nn.Embedding(512, WIDTH)
        self.types = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.blocks = nn.ModuleList(map(Block, n_units))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return embeddings, (sentences, width)."""
        return self.with_states(input_ids, attention_mask)[0]

    def with_states(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return embeddings, and what every block gives, (sentences, tokens, width)."""
        positions = self.positions(torch.arange(input_ids.shape[1]))
        x = self.norm(self.words(input_ids) + positions + self.types.weight[0])
        states = []
        for block in self.blocks:
            x = block(x, attention_mask[:, None, None, :] > 0)
            states.append(x)
        weights = attention_mask[..., None].float()
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return F.normalize(mean, dim=1), states


def load_encoder(model: FloatModel) -> SentenceEncoder:
    """Fill the module with the weights of the canonical ONNX model, or of one of fewer feed-forward units."""
    weights = layer_weights(model)
    rows = (weights[f"n.encoder.layer.{index}.intermediate.dense"] for index in range(N_BLOCKS))
    module = SentenceEncoder([one.shape[1] for one in rows])
    constants = ((name, one.const_value) for name, one in model.graph.graph.initializers.items())
    plain = {name: one.numpy() for name, one in constants if one is not None}
    for node in (one for one in model.graph.graph if one.op_type == "MatMul"):
        # Refitted biases are called otherwise.
        values = () if (add := bias_add(node)) is None else map(constant, add.inputs)
        plain |= {f"{node.name}.bias": array for array in values if array is not None}
    found = {ours: torch.tensor(_found(theirs, plain, weights)) for ours, theirs in _names().items()}
    module.load_state_dict(found)
    return module


def _found(name: str, plain: Mapping[str, Array], weights: Mapping[str, Array]) -> Array:
    """Weights of products are named after their layer, and lie as (in, out)."""
    return np.array(plain[name] if name in plain else weights[name.removesuffix(".weight")].T)


def _names() -> dict[str, str]:
    """Parameters of the module, as the ONNX file calls them."""
    words = {"words": "word", "positions": "position", "types": "token_type"}
    found = {f"{ours}.weight": f"n.embeddings.{theirs}_embeddings.weight" for ours, theirs in words.items()}
    parts = {"norm": "n.embeddings.LayerNorm"}
    for index in range(N_BLOCKS):
        block, theirs = f"blocks.{index}", f"n.encoder.layer.{index}"
        parts |= {f"{block}.{name}": f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")}
        parts |= {
            f"{block}.dense": f"{theirs}.attention.output.dense",
            f"{block}.norm": f"{theirs}.attention.output.LayerNorm",
            f"{block}.intermediate": f"{theirs}.intermediate.dense",
            f"{block}.output": f"{theirs}.output.dense",
            f"{block}.output_norm": f"{theirs}.output.LayerNorm",
        }
    for ours, theirs in parts.items():
        found |= {f"{ours}.{half}": f"{theirs}.{half}" for half in ("weight", "bias")}
    return found
