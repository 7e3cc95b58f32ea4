"""A small residual network for 32x32 digits, with depthwise-separable convolutions between its stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a padded convolution without bias; the batch norm after it has one."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


class Residual(nn.Module):
    """Two convolutions around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))


class Separable(nn.Module):
    """A depthwise convolution that halves the image, then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = conv3x3(in_channels, in_channels, stride=2, groups=in_channels)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(self.norm2(self.pointwise(x)))


class DigitsNet(nn.Module):
    """Images (n, 1, 32, 32), float32 in [-1, 1], to logits (n, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = conv3x3(1, width)
        self.norm = nn.BatchNorm2d(width)
        self.stage1 = Residual(width)
        self.down1 = Separable(width, 2 * width)
        self.stage2 = nn.Sequential(Residual(2 * width), Residual(2 * width))
        self.down2 = Separable(2 * width, 4 * width)
        self.stage3 = Residual(4 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage1(torch.relu(self.norm(self.stem(image))))
        x = self.stage2(self.down1(x))
        x = self.stage3(self.down2(x))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def create_model() -> DigitsNet:
    """Return the untrained network, with the same weights every time."""
    torch.manual_seed(0)
    return DigitsNet().eval()
