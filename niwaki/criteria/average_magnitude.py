"""Average magnitude: the norm of a unit's weights over their number."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("average_magnitude", reads=("square",))
def average_magnitude(unit: UnitSums) -> Tensor:
    """||x_g|| / |g| (HESSO, arXiv 2409.09085): units of many weights have no head start."""
    return unit.square.sqrt() / unit.entries.clamp(min=1)
