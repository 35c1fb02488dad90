"""Criteria of the values that pass through the units."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.per_unit.sums import UnitSums


@criterion("activation", reads=("active",))
def activation(unit: UnitSums) -> Tensor:
    """The mean of |a| over all values a of the unit that a matrix product or convolution reads (arXiv 1611.06440).

    These values lie behind norms and non-linearities: the network loses them when the unit is removed.
    """
    return unit.active


@criterion("energy", reads=("energy",))
def energy(unit: UnitSums) -> Tensor:
    """The sum of the singular values of the matrix [samples, positions] of the unit's values.

    A feature map that is the same for every sample has one singular value, however large it is. Computed where a matrix
    product or convolution reads the unit; the mean over all such reads. In a network of matrix products all rows
    (tokens) are samples, and a unit of one position has the Euclidean norm.
    """
    return unit.energy
