"""Magnitude by the sum of absolute values of a unit's weights."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("magnitude_l1", reads=("absolute",))
def magnitude_l1(unit: UnitSums) -> Tensor:
    """The norm ||x_g||_1, as filters were first pruned by (arXiv 1608.08710)."""
    return unit.absolute
