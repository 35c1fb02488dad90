"""The controller of Auto-Train-Once: a recurrent network that walks along the groups (arXiv 2403.14729)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from niwaki.masks.heads import GroupHeads
from niwaki.masks.protocol import MaskGenerator, orthogonal_rows
from niwaki.masks.registry import generator

INPUT, HIDDEN = 64, 128


@generator
@final
class GRUController(MaskGenerator):
    """Each group has a fixed input, one of orthogonal rows of 64 numbers. A bidirectional GRU of 128 hidden units reads
    them in the order of the groups, and LayerNorm, ReLU and a linear layer of each group's own make a score of each of
    its units.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> controller = GRUController(niwaki.search_space(model, torch.randn(1, 4)))
    >>> controller.gates().hard.tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    name, travel = "gru", 0.3
    inputs: Tensor

    def build(self) -> None:
        """Inputs, GRU and heads."""
        self.register_buffer("inputs", orthogonal_rows(len(self.sizes), INPUT))
        self.gru = nn.GRU(INPUT, HIDDEN, bidirectional=True)
        self.heads = GroupHeads(2 * HIDDEN, self.sizes)

    def scores(self) -> Tensor:
        """Of all units."""
        rows: Tensor = self.gru(self.inputs)[0]
        found: Tensor = self.heads(rows)
        return found

    def observe(self, gradient: Tensor, size: Tensor) -> None:
        """It does not look."""
