"""One small network of each architecture that channel groups have to get right, as torch modules.

Weights and running statistics are random and seeded. Every factory takes no arguments, so that
`autoq.testing.families:vgg` names one; `EXAMPLES` holds the inputs of each by the factory's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.graph.torch_export import ExampleInput

_IMAGE = {"image": ExampleInput(("batch", 3, 16, 16), low=-1.0)}
_TOKENS = {"tokens": ExampleInput(("batch", "length"), "int64", high=32)}
_WIDTH, _HEADS = 32, 4


def conv_bn(n_in: int, n_out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Build a convolution with batch norm."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))


class Residual(nn.Module):
    """Adds what a branch makes of its input to the input, or to what a shortcut makes of it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, *, rectify: bool = True) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        """Keep shapes, but for those that the branch changes."""
        total: Tensor = self.branch(x) + self.shortcut(x)
        return F.relu(total) if self.rectify else total


class Classifier(nn.Module):
    """A trunk, the mean over its maps, and a linear layer."""

    def __init__(self, width: int, *trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*trunk)
        self.fc = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, 16, 16) to (batch, 5)."""
        logits: Tensor = self.fc(self.trunk(image).mean((2, 3)))
        return logits


def vgg() -> nn.Module:
    """Convolutions and pooling, then linear layers over the flattened maps."""
    return _seeded(
        lambda: nn.Sequential(
            *(*conv_bn(3, 16), nn.ReLU(), nn.MaxPool2d(2), *conv_bn(16, 32), nn.ReLU(), nn.MaxPool2d(4)),
            *(nn.Flatten(), nn.Linear(32 * 2 * 2, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5)),
        )
    )


def resnet_basic() -> nn.Module:
    """Two stages of basic blocks; the second starts with a strided shortcut."""

    def block(n_in: int, n_out: int, stride: int) -> nn.Module:
        branch = nn.Sequential(conv_bn(n_in, n_out, stride=stride), nn.ReLU(), conv_bn(n_out, n_out))
        shortcut = conv_bn(n_in, n_out, 1, stride=stride) if stride > 1 else None
        return Residual(branch, shortcut)

    return _seeded(
        lambda: Classifier(
            32, conv_bn(3, 16), nn.ReLU(), block(16, 16, 1), block(16, 32, 2), block(32, 32, 1)
        )
    )


def resnet_bottleneck() -> nn.Module:
    """Blocks of a narrow 3x3 convolution between two 1x1 convolutions."""
    return _seeded(
        lambda: Classifier(32, conv_bn(3, 16), nn.ReLU(), _bottleneck(16, 8, 32), _bottleneck(32, 8, 32))
    )


def resnext() -> nn.Module:
    """Bottleneck blocks whose 3x3 convolution has groups."""
    return _seeded(
        lambda: Classifier(
            32,
            conv_bn(3, 16),
            nn.ReLU(),
            _bottleneck(16, 16, 32, groups=4),
            _bottleneck(32, 16, 32, groups=4),
        )
    )


def _bottleneck(n_in: int, inner: int, n_out: int, *, groups: int = 1) -> nn.Module:
    layers = (conv_bn(n_in, inner, 1), nn.ReLU(), conv_bn(inner, inner, groups=groups), nn.ReLU())
    branch = nn.Sequential(*layers, conv_bn(inner, n_out, 1))
    return Residual(branch, None if n_in == n_out else conv_bn(n_in, n_out, 1))


def mobilenet_v2() -> nn.Module:
    """Inverted residuals: wide depthwise convolutions between narrow linear ones."""

    def block(n_in: int, n_out: int) -> nn.Module:
        wide = 4 * n_in
        layers = (conv_bn(n_in, wide, 1), nn.ReLU6(), conv_bn(wide, wide, groups=wide), nn.ReLU6())
        branch = nn.Sequential(*layers, conv_bn(wide, n_out, 1))
        return Residual(branch, rectify=False) if n_in == n_out else branch

    return _seeded(
        lambda: Classifier(48, conv_bn(3, 8), nn.ReLU6(), block(8, 12), block(12, 12), conv_bn(12, 48, 1))
    )


class SqueezeExcite(nn.Module):
    """Multiplies channels by gates that are computed from their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.expand = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, width, height, length)."""
        gates = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gates)


def mobilenet_v3() -> nn.Module:
    """Inverted residuals with squeeze-excite and hard swish."""

    def block(width: int, wide: int) -> nn.Module:
        layers = (
            conv_bn(width, wide, 1),
            nn.Hardswish(),
            conv_bn(wide, wide, 5, groups=wide),
            nn.Hardswish(),
        )
        return Residual(nn.Sequential(*layers, SqueezeExcite(wide), conv_bn(wide, width, 1)), rectify=False)

    return _seeded(lambda: Classifier(12, conv_bn(3, 12), nn.Hardswish(), block(12, 32), block(12, 48)))


class DenseBlock(nn.Module):
    """Every layer reads all that came before it; batch norms stand before convolutions, unfolded."""

    def __init__(self, width: int, growth: int, n_layers: int) -> None:
        super().__init__()
        widths = [width + growth * index for index in range(n_layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n_in), nn.ReLU(), nn.Conv2d(n_in, growth, 3, padding=1))
            for n_in in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width, ...) to (batch, width + growth * layers, ...)."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet() -> nn.Module:
    """Two dense blocks with a transition between them."""
    return _seeded(
        lambda: Classifier(
            *(32, conv_bn(3, 16), nn.ReLU(), DenseBlock(16, 8, 3), nn.BatchNorm2d(40), nn.ReLU()),
            *(nn.Conv2d(40, 16, 1), nn.AvgPool2d(2), DenseBlock(16, 8, 2), nn.BatchNorm2d(32), nn.ReLU()),
        )
    )


class Branches(nn.Module):
    """Concatenates what several branches make of one input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate along channels."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception() -> nn.Module:
    """Parallel convolutions of several sizes and a pooled branch, concatenated."""

    def block(n_in: int) -> nn.Module:
        return Branches(
            nn.Sequential(conv_bn(n_in, 8, 1), nn.ReLU()),
            nn.Sequential(conv_bn(n_in, 8, 1), nn.ReLU(), conv_bn(8, 16), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(n_in, 8, 1), nn.ReLU()),
        )

    return _seeded(lambda: Classifier(32, conv_bn(3, 16), nn.ReLU(), block(16), block(32)))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 8), nn.ReLU())
        self.inner = nn.Sequential(conv_bn(8, 16), nn.ReLU(), conv_bn(16, 16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge = nn.Sequential(conv_bn(16, 8), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, 16, 16) to (batch, 2, 16, 16)."""
        skip = self.outer(image)
        raised = F.relu(self.up(self.inner(F.max_pool2d(skip, 2))))
        mask: Tensor = self.head(self.merge(torch.cat([skip, raised], 1)))
        return mask


def unet() -> nn.Module:
    """A U-Net of two levels."""
    return _seeded(UNet)


class ShuffleBlock(nn.Module):
    """Half of the channels pass, half are convolved, and both are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(conv_bn(half, half, 1), nn.ReLU(), conv_bn(half, half, groups=half))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, width, height, length)."""
        passed, worked = x.chunk(2, 1)
        joined = torch.cat([passed, F.relu(self.branch(worked))], 1)
        batch, width, height, length = joined.shape
        return joined.view(batch, 2, width // 2, height, length).transpose(1, 2).reshape(joined.shape)


def shufflenet() -> nn.Module:
    """Split, concatenation and a shuffle of channels, twice."""
    return _seeded(lambda: Classifier(24, conv_bn(3, 24), nn.ReLU(), ShuffleBlock(24), ShuffleBlock(24)))


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
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
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
    return _seeded(VisionTransformer)


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
    return _seeded(Bert)


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
    return _seeded(Gpt2)


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
    return _seeded(TorchEncoder)


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
    return _seeded(BiLstm)


EXAMPLES = {
    **dict.fromkeys(("vgg", "resnet_basic", "resnet_bottleneck", "resnext", "mobilenet_v2"), _IMAGE),
    **dict.fromkeys(("mobilenet_v3", "densenet", "inception", "unet", "shufflenet", "vit"), _IMAGE),
    "bert": {**_TOKENS, "mask": ExampleInput(("batch", "length"), "int64", high=2)},
    "gpt2": {"tokens": ExampleInput(("batch", 8), "int64", high=32)},
    "torch_encoder": {"frames": ExampleInput((6, "batch", 8), low=-1.0)},
    "bilstm": _TOKENS,
}
FAMILIES: Sequence[str] = tuple(EXAMPLES)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose weights, norms and running statistics are all random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build().eval()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean, std=0.3)
                nn.init.uniform_(part.running_var, 0.5, 2.0)
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.3)
    return module
