"""BatchNorm scale: how strongly the norms after a unit let it through (network slimming, arXiv 1708.06519)."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("batchnorm_scale", reads=("scale",))
def batchnorm_scale(unit: UnitSums) -> Tensor:
    """The mean of |gamma| over all BatchNorms that the unit runs through.

    Defined for spaces all of whose groups run through a BatchNorm; any other is an error.
    """
    return unit.scale
