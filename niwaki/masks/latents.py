"""The number per unit that deterministic masks are learnt from: the unit's scale, and whether it stays."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from niwaki.masks.protocol import BASE, MaskGenerator

STEEP, FIRST, LAST = 2.4, 0.5, 0.05  # the slope of a retention, and its threshold at the two ends of the training
STRETCH = 0.1  # retentions reach 0 and 1 at finite latents


@final
class Latents(MaskGenerator):
    """A latent z >= 0 per unit, at first 1 (Deterministic Differentiable Pruning, arXiv 2603.08065). z itself is what
    the unit is multiplied by; how much of it counts as there is its retention

        s = clamp(1.2 sigmoid(2.4 (z - mu) / mu) - 0.1, 0, 1),    mu = 0.5 - 0.45 sqrt(progress)

    which is 0 for z = 0 and 1 from about 2 mu on. The threshold mu falls, so that in the end a unit is there or not,
    while its scale is free.

    The published z may be negative, where nothing moves it any more. Here it ends at 0 and may come back.

    >>> import niwaki
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> latents = Latents(niwaki.search_space(model, torch.randn(1, 4)))
    >>> latents.retentions().tolist(), latents.scales().tolist()
    ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    """

    name, travel = "latents", 6.0
    threshold: Tensor

    def build(self) -> None:
        """All units at 1."""
        self.values = nn.Parameter(torch.ones(sum(self.sizes)))
        self.register_buffer("threshold", torch.tensor(FIRST))

    def move(self, progress: float) -> None:
        """Set the threshold for the share ``progress`` of the training."""
        self.threshold.fill_(FIRST - (FIRST - LAST) * min(1.0, max(0.0, progress)) ** 0.5)

    def scores(self) -> Tensor:
        """Of all units: positive logits above the threshold."""
        return self._logits() - BASE

    def observe(self, gradient: Tensor, size: Tensor) -> None:
        """It does not look."""

    def scales(self) -> Tensor:
        """What each unit is multiplied by, [num_units], with gradients."""
        return self._padded(self.values, 1.0)

    def retentions(self) -> Tensor:
        """How much of each unit is there, [num_units]. Where a retention is 0 or 1, its gradient is that of the nearest
        between: the price of a budget reaches units that are there for certain, or not at all."""
        logits = self._logits()
        exact = ((1 + 2 * STRETCH) * torch.sigmoid(logits) - STRETCH).clamp(0, 1)
        nearest = (1 + 2 * STRETCH) * torch.sigmoid(logits.detach().clamp(-STEEP, STEEP))
        slope = nearest * (1 - nearest / (1 + 2 * STRETCH))
        return self._padded(exact.detach() + slope * (logits - logits.detach()), 1.0)

    @torch.no_grad()
    def project(self, least: float = 0.0) -> None:
        """Bring latents below ``least`` back to it."""
        self.values.clamp_(min=least)

    def _logits(self) -> Tensor:
        return STEEP * (self.values - self.threshold) / self.threshold
