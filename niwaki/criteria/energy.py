"""Energy: the nuclear norm of what a unit passes on (energy-aware pruning, arXiv 2103.10858)."""

from __future__ import annotations

from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("energy", reads=("energy",))
def energy(unit: UnitSums) -> Tensor:
    """The sum of the singular values of the matrix [samples, positions] of the unit's values.

    A feature map that is the same for every sample has one singular value, however large it is. Taken where a matrix
    product or convolution reads the unit; the mean over such places. In a network of matrix products all rows (tokens)
    are samples, and a unit of one position has the Euclidean norm.
    """
    return unit.energy
