"""A controller that looks at units instead of numbering them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from niwaki.masks.protocol import MaskGenerator, orthogonal_rows
from niwaki.masks.registry import generator

INPUT, HIDDEN, FEATURES = 64, 64, 3
MEMORY = 0.9  # of the average of what is observed
FIRST = (0.3, -0.3, 0.3)  # what large weights, a loss that falls with the gate and one that depends on it speak for


@generator
@final
class SharedHead(MaskGenerator):
    """One head for all units, which sees what is known of each: the norm of its weights, the gradient of the loss by
    its gate (which is what its activations contribute to the loss, to first order), and the size of that gradient.

    A bidirectional GRU reads a fixed row of each group and the means over its units, so that the head knows where it
    is. Renumbering the units of a group permutes their gates and changes nothing else; and what is learnt of one unit
    holds for all that are like it.
    """

    name, travel, looks = "shared", 0.6, True
    inputs: Tensor
    seen: Tensor
    count: Tensor

    def build(self) -> None:
        """Inputs, GRU, head, and the averages of what is observed."""
        self.register_buffer("inputs", orthogonal_rows(len(self.sizes), INPUT))
        self.register_buffer("seen", torch.zeros(FEATURES, sum(self.sizes)))
        self.register_buffer("count", torch.zeros(()))
        self.gru = nn.GRU(INPUT + FEATURES, HIDDEN, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(2 * HIDDEN + FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.direct = nn.Parameter(torch.tensor(FIRST))

    def scores(self) -> Tensor:
        """Of all units, from what has been observed so far."""
        group = self.group_numbers.to(self.seen.device)
        features = self._features()
        means = self._means(features, group)
        rows: Tensor = self.gru(torch.cat([self.inputs, means.T], dim=1))[0]
        centred = features - means[:, group]
        spread = self._means(centred.square(), group).sqrt()
        within = centred / spread[:, group].clamp(min=torch.finfo(centred.dtype).eps)
        said: Tensor = self.head(torch.cat([rows[group], within.T], dim=1))
        return said.squeeze(1) + self.direct @ within

    def observe(self, gradient: Tensor, size: Tensor) -> None:
        """Average the norm, the gradient and its size."""
        now = torch.stack([size, gradient, gradient.abs()]).to(self.seen)
        self.seen.mul_(MEMORY).add_(now, alpha=1 - MEMORY)
        self.count.add_(1)

    def _features(self) -> Tensor:
        """What is known of each unit, [features, units]: over its mean size among all units, and compressed."""
        seen = self.seen / (1 - MEMORY**self.count).clamp(min=1 - MEMORY)
        ratio = seen / seen.abs().mean(1, keepdim=True).clamp(min=torch.finfo(seen.dtype).tiny)
        return torch.sign(ratio) * torch.log1p(ratio.abs())

    def _means(self, features: Tensor, group: Tensor) -> Tensor:
        """The means over the units of each group, [features, groups]."""
        sums = features.new_zeros(len(features), len(self.sizes)).index_add_(1, group, features)
        return sums / features.new_tensor(self.sizes)
