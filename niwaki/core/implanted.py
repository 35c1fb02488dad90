"""What stands where a part of a layer was replaced by something cheaper: two layers, whose outputs are interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, final

import torch
from torch import Tensor, nn


@final
class Implanted(nn.Module):
    """A layer some of whose outputs are computed by a cheaper one. Outputs keep their order.

    ``whole`` computes outputs as before, ``slim`` the others. The outputs are runs of the one and of the other in turn,
    along dimension ``dim``: ``whole_runs[0]`` of ``whole``, ``slim_runs[0]`` of ``slim``, ``whole_runs[1]`` of
    ``whole``, and so on; the first and the last run may be of no outputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from niwaki.core.implanted import Implanted
        >>> layer = Implanted.of(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 1, 1), [False, True, False, False], -3)
        >>> layer.whole_runs, layer.slim_runs, layer(torch.ones(2, 3, 5, 5)).shape
        ((1, 2), (1, 0), torch.Size([2, 4, 5, 5]))
    """

    def __init__(
        self, whole: nn.Module, slim: nn.Module, whole_runs: tuple[int, ...], slim_runs: tuple[int, ...], dim: int
    ) -> None:
        super().__init__()
        self.whole, self.slim = whole, slim
        self.whole_runs, self.slim_runs = whole_runs, slim_runs
        self.dim = dim

    @classmethod
    def of(cls, whole: nn.Module, slim: nn.Module, is_slim: Sequence[bool], dim: int) -> Self:
        """The layer whose output number i is computed by ``slim`` where ``is_slim[i]``."""
        runs, before = [0], False
        for now in is_slim:
            if now != before:
                runs.append(0)
            runs[-1] += 1
            before = now
        if len(runs) % 2:
            runs.append(0)
        return cls(whole, slim, tuple(runs[::2]), tuple(runs[1::2]), dim)

    def forward(self, input: Tensor) -> Tensor:
        """All outputs; ``input`` is called as torch's layers call it."""
        parts: list[Tensor] = []
        whole, slim = (
            self.whole(input).split(self.whole_runs, self.dim),
            self.slim(input).split(self.slim_runs, self.dim),
        )
        for pair in zip(whole, slim, strict=True):
            parts += pair
        return torch.cat(parts, self.dim)
