"""What the small torch networks of `families` have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
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
