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


@criterion("small_contributions", reads=("share",))
def small_contributions(unit: UnitSums) -> Tensor:
    """How much of what its readers add up is the unit's: the mean share, plus its deviation (arXiv 2410.16151).

    In a sample, input j has of the output i of a matrix product or convolution the share
    c_ij = |w_ij x_j| / sum_k |w_ik x_k|, without the bias. The unit's score is the sum, over the weights that read it,
    of mean(c) + std(c) over all samples and places of all batches, by the number of outputs; the mean over its readers.
    Weights of a small and steady share are those that the paper removes; a unit is removed with all that read it.
    Shares mean the same in every layer: use it with ``compare="space"``.

    The paper also calls a removal safe where the pre-activation stays in the range in which the activation is flat.
    That is not looked at: a norm or a sum may stand between the two.
    """
    return unit.share


@criterion("energy", reads=("energy",))
def energy(unit: UnitSums) -> Tensor:
    """The sum of the singular values of the matrix [samples, positions] of the unit's values.

    A feature map that is the same for every sample has one singular value, however large it is. Computed where a matrix
    product or convolution reads the unit; the mean over all such reads. In a network of matrix products all rows
    (tokens) are samples, and a unit of one position has the Euclidean norm.
    """
    return unit.energy
