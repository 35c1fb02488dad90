"""Geometric median: is the unit much like the others of its group? (FPGM, arXiv 1811.00250)"""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("geometric_median", reads=("distance",))
def geometric_median(unit: UnitSums) -> Tensor:
    """The sum of ||x_g - x_h|| over all units h of the group.

    It is least for the units near the group's geometric median, which the others can best stand in for, whatever their
    size. The released code works filter by filter of one layer; here a unit is all that produces it.
    """
    return unit.distance
