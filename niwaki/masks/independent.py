"""The plainest generator: a number for each unit, which knows of no other."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from niwaki.masks.protocol import MaskGenerator
from niwaki.masks.registry import generator

SPREAD = 0.5


@generator
@final
class IndependentLogits(MaskGenerator):
    """One parameter per unit, normally distributed at first: were all equal, the price of a budget would move all of
    them across the threshold in one and the same step."""

    name, travel = "independent", 12.0

    def build(self) -> None:
        """The numbers."""
        self.values = nn.Parameter(SPREAD * torch.randn(sum(self.sizes)))

    def scores(self) -> Tensor:
        """The numbers."""
        return self.values

    def observe(self, gradient: Tensor, size: Tensor) -> None:
        """It does not look."""
