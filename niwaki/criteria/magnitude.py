"""Magnitude: the Euclidean norm of a unit's weights."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("magnitude", reads=("square",))
def magnitude(unit: UnitSums) -> Tensor:
    """The norm ||x_g|| (HESSO, arXiv 2409.09085)."""
    return unit.square.sqrt()
