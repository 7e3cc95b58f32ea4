"""Small convolutional networks, one of each architecture; see `families`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.testing.torch_parts import Residual, seeded


def conv_bn(n_in: int, n_out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Build a convolution with batch norm."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))


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
    return seeded(
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

    return seeded(
        lambda: Classifier(
            32, conv_bn(3, 16), nn.ReLU(), block(16, 16, 1), block(16, 32, 2), block(32, 32, 1)
        )
    )


def resnet_bottleneck() -> nn.Module:
    """Blocks of a narrow 3x3 convolution between two 1x1 convolutions."""
    return seeded(
        lambda: Classifier(32, conv_bn(3, 16), nn.ReLU(), _bottleneck(16, 8, 32), _bottleneck(32, 8, 32))
    )


def resnext() -> nn.Module:
    """Bottleneck blocks whose 3x3 convolution has groups."""
    return seeded(
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

    return seeded(
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

    return seeded(lambda: Classifier(12, conv_bn(3, 12), nn.Hardswish(), block(12, 32), block(12, 48)))


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
    return seeded(
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

    return seeded(lambda: Classifier(32, conv_bn(3, 16), nn.ReLU(), block(16), block(32)))


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
    return seeded(UNet)


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
    return seeded(lambda: Classifier(24, conv_bn(3, 24), nn.ReLU(), ShuffleBlock(24), ShuffleBlock(24)))
