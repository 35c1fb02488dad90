"""What stands where a module was replaced by the mean of what it returned."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn


@final
class Constant(nn.Module):
    """A module that returns the same features ``value`` [features] for every row of its first input [..., inputs].

    Example:
        >>> import torch
        >>> Constant(torch.tensor([1.0, 2.0]))(torch.zeros(3, 5)).tolist()
        [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Buffer(value)

    def forward(self, input: Tensor) -> Tensor:
        """[..., features]."""
        return self.value.expand(*input.shape[:-1], -1)
