"""First-order Taylor: the change of the loss when a unit is set to zero, to first order."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("taylor1", reads=("product",))
def taylor1(unit: UnitSums) -> Tensor:
    """|<x_g, grad_g>|, with the gradient of the loss and not an adaptive optimizer's direction."""
    return unit.product.abs()
