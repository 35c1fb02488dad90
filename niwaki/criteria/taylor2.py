"""Second-order Taylor: the curvature term of the change of the loss when a unit is set to zero."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("taylor2", reads=("product_square",))
def taylor2(unit: UnitSums) -> Tensor:
    """1/2 x_g' F x_g with F the diagonal of the empirical Fisher information, the mean of grad^2 over the batches.

    That is 1/2 sum_i (x_i grad_i)^2 per batch, averaged by whoever scores. It carries curvature: gradients that cancel
    in the first-order term add up here. (1/2 <x, d>^2, as released with HESSO, ranks as the first order does.)
    """
    return unit.product_square / 2
