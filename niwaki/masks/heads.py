"""What ends the generators whose parameters belong to units one by one: a head for each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn


@final
class GroupHeads(nn.Module):
    """LayerNorm, ReLU and a linear layer for each group, from ``width`` numbers to one for each of its units."""

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, units)) for units in sizes
        )

    def forward(self, rows: Tensor) -> Tensor:
        """From a row for each group [groups, width] to [units of all groups]."""
        return torch.cat([head(row) for head, row in zip(self.heads, rows, strict=True)])
