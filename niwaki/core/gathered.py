"""A layer that reads some channels of a stream, and is given all of them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class Gathered(nn.Module):
    """``layer`` is given the channels of a stream that it reads, and the others are left out.

    Along dimension ``dim`` runs of channels that are read and gaps of others take turns: ``runs[0]`` channels,
    ``gaps[0]`` that are left out, ``runs[1]`` channels, and so on; the first run and the last gap may be empty.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from niwaki.core.gathered import Gathered
        >>> layer = Gathered(nn.Identity(), (0, 2, 1), (1, 1, 0), -1)
        >>> layer(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
        tensor([[2., 3., 5.]])
    """

    def __init__(self, layer: nn.Module, runs: tuple[int, ...], gaps: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.layer, self.runs, self.gaps, self.dim = layer, runs, gaps, dim

    def forward(self, input: Tensor) -> Tensor:
        """What ``layer`` makes of the channels that it reads; ``input`` is called as torch's layers call it."""
        lengths = [length for pair in zip(self.runs, self.gaps, strict=True) for length in pair]
        read = torch.split(input, lengths, self.dim)[::2]
        found: Tensor = self.layer(torch.cat(read, self.dim))
        return found
