"""A small residual network for 32x32 digits, with depthwise-separable stages between its residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm, which the ONNX exporter folds into it."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class Separable(nn.Module):
    """A depthwise 3x3 convolution with a stride of two, then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.pointwise = ConvNorm(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.pointwise(torch.relu(self.depthwise(x))))


class DigitsNet(nn.Module):
    """Images (n, 1, 32, 32), float32 in [-1, 1], to logits (n, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = ConvNorm(1, width, 3)
        self.stage1 = Residual(width)
        self.down1 = Separable(width, 2 * width)
        self.stage2 = nn.Sequential(Residual(2 * width), Residual(2 * width))
        self.down2 = Separable(2 * width, 4 * width)
        self.stage3 = Residual(4 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage1(torch.relu(self.stem(image)))
        x = self.stage2(self.down1(x))
        x = self.stage3(self.down2(x))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def create_model() -> DigitsNet:
    """Return the untrained network with the same weights every time, ready for inference."""
    torch.manual_seed(0)
    return DigitsNet().eval()
