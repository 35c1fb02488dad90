"""Networks whose activations overlap in different ways: chains, branches, concatenations, gates, attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from blocks import Attention, Grouped
from handmade import ConvNet
from torch import Tensor, nn


class Residual(nn.Module):
    """Two residual blocks and a concatenation of what they made, with operators in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(inplace=True), nn.Conv2d(20, 8, 1)
            )
            for _ in range(2)
        )
        self.mix = nn.Conv2d(24, 10, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        x = torch.relu_(self.mix(torch.cat(parts, 1)))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(2).mean(2))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: ConvNet(16, 24), (1, 8, 8)),
    "residual": (Residual, (1, 8, 8)),
    "grouped": (Grouped, (1, 6, 6)),
    "attention": (Attention, (5, 16)),
}
