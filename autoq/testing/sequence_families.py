"""Small transformers and a recurrent network, one of each architecture; see `families`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.testing.torch_parts import Residual, seeded

_WIDTH, _HEADS = 32, 4


class FusedAttention(nn.Module):
    """Self-attention with one layer for queries, keys and values, as vision transformers write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, positions, width)."""
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class VisionTransformer(nn.Module):
    """Patches by a convolution, a class token, blocks that normalise before each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, _WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 17, _WIDTH))
        self.blocks = nn.Sequential(*(self._block() for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 5)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, 16, 16) to (batch, 5)."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits

    @staticmethod
    def _block() -> nn.Module:
        attention = nn.Sequential(nn.LayerNorm(_WIDTH), FusedAttention())
        layers = (nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 64), nn.GELU(), nn.Linear(64, _WIDTH))
        return nn.Sequential(
            Residual(attention, rectify=False), Residual(nn.Sequential(*layers), rectify=False)
        )


def vit() -> nn.Module:
    """A vision transformer of two blocks."""
    return seeded(VisionTransformer)


class BertBlock(nn.Module):
    """Attention with separate layers and a mask, feed-forward, each normalised after its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.dense, self.norm = nn.Linear(_WIDTH, _WIDTH), nn.LayerNorm(_WIDTH)
        self.intermediate, self.output = nn.Linear(_WIDTH, 64), nn.Linear(64, _WIDTH)
        self.output_norm = nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Keep the shape (batch, positions, width); the mask is added to scores."""
        batch, length, width = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, _HEADS, width // _HEADS).transpose(1, 2)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = q @ k.transpose(-1, -2) / (width // _HEADS) ** 0.5 + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = self.norm(x + self.dense(mixed))
        normed: Tensor = self.output_norm(x + self.output(F.gelu(self.intermediate(x))))
        return normed


class Bert(nn.Module):
    """Embeddings, blocks, and a classifier over the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(32, _WIDTH), nn.Embedding(16, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH)
        self.blocks = nn.ModuleList(BertBlock() for _ in range(2))
        self.pooler, self.head = nn.Linear(_WIDTH, 24), nn.Linear(24, 5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, positions) of tokens and of zeros and ones to (batch, 5)."""
        x = self.norm(self.words(tokens) + self.positions(torch.arange(tokens.shape[1])))
        added = (1.0 - mask[:, None, None, :].float()) * -1e4
        for block in self.blocks:
            x = block(x, added)
        logits: Tensor = self.head(torch.tanh(self.pooler(x[:, 0])))
        return logits


def bert() -> nn.Module:
    """An encoder of two blocks."""
    return seeded(Bert)


class Product(nn.Module):
    """A linear layer that keeps its weight as (in, out), as GPT-2 does."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * n_in**-0.5)
        self.bias = nn.Parameter(torch.randn(n_out) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        return x @ self.weight + self.bias


class GptBlock(nn.Module):
    """Causal attention from one layer that is split, and a feed-forward branch."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.c_attn, self.attn_proj = Product(_WIDTH, 3 * _WIDTH), Product(_WIDTH, _WIDTH)
        self.c_fc, self.mlp_proj = Product(_WIDTH, 64), Product(64, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, positions, width)."""
        batch, length, width = x.shape
        parts = self.c_attn(self.ln_1(x)).split(width, 2)
        q, k, v = (part.view(batch, length, _HEADS, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        summed: Tensor = x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return summed


class Gpt2(nn.Module):
    """A decoder whose head is the table of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(32, _WIDTH), nn.Embedding(16, _WIDTH)
        self.h = nn.Sequential(GptBlock(), GptBlock())
        self.ln_f = nn.LayerNorm(_WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, positions) to (batch, positions, 32)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return F.linear(self.ln_f(self.h(x)), self.wte.weight)


def gpt2() -> nn.Module:
    """A decoder of two blocks."""
    return seeded(Gpt2)


class TorchEncoder(nn.Module):
    """Layers of torch's own transformer, which keep positions before batches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, _WIDTH)
        self.layers = nn.ModuleList(nn.MultiheadAttention(_WIDTH, _HEADS) for _ in range(2))
        self.fc = nn.Linear(_WIDTH, 5)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (positions, batch, 8) to (batch, 5)."""
        x = self.embedding(frames)
        for layer in self.layers:
            x = x + layer(x, x, x, need_weights=False)[0]
        logits: Tensor = self.fc(x.mean(0))
        return logits


def torch_encoder() -> nn.Module:
    """Two of torch's own attentions with a residual stream that nothing normalises."""
    return seeded(TorchEncoder)


class BiLstm(nn.Module):
    """Embeddings, two bidirectional LSTM layers, and a classifier over the mean of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.lstm = nn.LSTM(16, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, positions) to (batch, 5)."""
        hidden, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.fc(hidden.mean(1))
        return logits


def bilstm() -> nn.Module:
    """A tagger's trunk of two layers."""
    return seeded(BiLstm)
