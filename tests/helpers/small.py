"""A small convolutional network, and images for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Convolutions with norms, tied and parametrized weights, and a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)  # before a norm its gradient is noise
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 8, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def images(number: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(number, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
