"""Cosine: does the optimizer shrink the unit?"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("cosine", reads=("square", "aligned", "direction_square"))
def cosine(unit: UnitSums) -> Tensor:
    """1 - cos(x_g, d_g), in [0, 2].

    A step goes from x to x - lr * d, so a unit whose direction is parallel to itself is being shrunk by the training:
    it is redundant (DHSPG, arXiv 2303.06862; the released HESSO has the opposite sign). 1 where either is zero.
    """
    lengths = (unit.square * unit.direction_square).sqrt()
    parallel = torch.where(lengths > 0, unit.aligned / lengths, lengths.new_zeros(()))
    return 1 - parallel.clamp(-1, 1)
