"""A layer that writes some channels of a stream: its outputs, with zeros where the stream has channels of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, final

import torch
from torch import Tensor, nn


@final
class Scattered(nn.Module):
    """``layer`` computes fewer outputs than the stream has channels; zeros take the places of the others.

    Along dimension ``dim`` runs of outputs and gaps of zeros take turns: ``runs[0]`` outputs, ``gaps[0]`` zeros,
    ``runs[1]`` outputs, and so on; the first run and the last gap may be empty.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from niwaki.core.scattered import Scattered
        >>> layer = Scattered.of(nn.Identity(), [False, True, True, False, True], -1)
        >>> layer(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[0., 1., 2., 0., 3.]])
    """

    def __init__(self, layer: nn.Module, runs: tuple[int, ...], gaps: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.layer, self.runs, self.gaps, self.dim = layer, runs, gaps, dim

    @classmethod
    def of(cls, layer: nn.Module, written: Sequence[bool], dim: int) -> Self:
        """The layer whose outputs are the channels that are ``written``."""
        return cls(layer, *runs_of(written), dim)

    def forward(self, input: Tensor) -> Tensor:
        """All channels of the stream; ``input`` is called as torch's layers call it."""
        made = self.layer(input)
        parts: list[Tensor] = []
        for run, gap in zip(made.split(self.runs, self.dim), self.gaps, strict=True):
            shape = list(run.shape)
            shape[self.dim] = gap
            parts += [run, run.new_zeros(shape)]
        return torch.cat(parts, self.dim)


def runs_of(written: Sequence[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lengths of runs of channels that are written, and of the gaps behind each.

    >>> runs_of([False, True, True, False])
    ((0, 2), (1, 1))
    """
    lengths, before = [0], True
    for now in written:
        if now != before:
            lengths.append(0)
        lengths[-1] += 1
        before = now
    if len(lengths) % 2:
        lengths.append(0)
    return tuple(lengths[::2]), tuple(lengths[1::2])
