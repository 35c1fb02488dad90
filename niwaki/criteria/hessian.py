"""Second-order Taylor with the true Hessian: the curvature of the loss along a unit."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("hessian", reads=("curved",))
def hessian(unit: UnitSums) -> Tensor:
    """1/2 x_g' H_gg x_g with H the Hessian of the loss, estimated by Hutchinson's method; 0 where it is negative (for
    the mean over all batches, not batch by batch).

    ``taylor2`` (diagonal) and ``fisher`` (the unit's whole block) take the empirical Fisher information for H, which
    costs no second derivative and is near H only where the loss is a likelihood of a network that fits.
    """
    return unit.curved.clamp(min=0) / 2
