"""Activation: how large are the values that a unit passes on?"""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("activation", reads=("active",))
def activation(unit: UnitSums) -> Tensor:
    """The mean of |a| over all values a of the unit that a matrix product or convolution reads (arXiv 1611.06440).

    What is read lies behind norms and non-linearities: it is what the network misses when the unit is gone.
    """
    return unit.active
