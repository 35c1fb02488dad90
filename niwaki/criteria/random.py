"""Random: the yardstick every other criterion must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("random")
def random(unit: UnitSums) -> Tensor:
    """Uniform in [0, 1), the same for the same seed."""
    drawn = torch.rand(unit.num_units, generator=torch.Generator().manual_seed(unit.seed))
    return drawn.to(unit.entries)[unit.number]
