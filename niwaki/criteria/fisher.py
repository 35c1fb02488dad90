"""Fisher: the curvature of the loss along a unit, as group Fisher pruning takes it (arXiv 2108.00708)."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("fisher", reads=("product",))
def fisher(unit: UnitSums) -> Tensor:
    """1/2 <x_g, grad_g>^2 per batch, averaged by whoever scores: 1/2 x_g' F x_g with F the empirical Fisher matrix.

    Unlike ``taylor2``, whose F is diagonal, it sees how the weights of a unit act together; on one batch alone it ranks
    as ``taylor1`` does.
    """
    return unit.product.square() / 2
