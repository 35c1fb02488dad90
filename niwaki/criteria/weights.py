"""Criteria that read the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.per_unit.sums import UnitSums


@criterion("magnitude", reads=("square",))
def magnitude(unit: UnitSums) -> Tensor:
    """The norm ||x_g|| (HESSO, arXiv 2409.09085)."""
    return unit.square.sqrt()


@criterion("magnitude_l1", reads=("absolute",))
def magnitude_l1(unit: UnitSums) -> Tensor:
    """The norm ||x_g||_1, the first criterion for filters (arXiv 1608.08710)."""
    return unit.absolute


@criterion("average_magnitude", reads=("square",))
def average_magnitude(unit: UnitSums) -> Tensor:
    """||x_g|| / |g| (HESSO, arXiv 2409.09085): units of many weights have no advantage."""
    return unit.square.sqrt() / unit.entries.clamp(min=1)


@criterion("lamp", reads=("square", "group"))
def lamp(unit: UnitSums) -> Tensor:
    """||x_g||^2 over the sum of ||x_h||^2 for all h of its group with ||x_h|| >= ||x_g||, itself included.

    The largest unit of every group scores 1, so that groups can be compared with one another (``compare="space"``) and
    no group is emptied. Of units that are equally large the later one counts as the larger. 0 where the unit is zero.
    """
    order = torch.argsort(unit.square, stable=True)
    order = order[torch.argsort(unit.group[order], stable=True)]  # by group, and by size in it
    square, group = unit.square[order].double(), unit.group[order]
    whole = square.new_zeros(len(square)).index_add_(0, group, square)[group]
    share = square / torch.where(whole > 0, whole, 1)  # groups add up to 1, so that their sum drowns none
    total = share.cumsum(0)
    in_group = share.new_zeros(len(share) + 1).index_add_(0, group + 1, share).cumsum(0)
    larger = in_group[group + 1] - (total - share)  # the sum of the group's remaining units
    score = torch.where(share > 0, share / torch.where(share > 0, larger, 1), 0)
    return torch.zeros_like(unit.square).index_copy_(0, order, score.to(unit.square))


@criterion("geometric_median", reads=("distance",))
def geometric_median(unit: UnitSums) -> Tensor:
    """The sum of ||x_g - x_h|| over all units h of the group.

    It is smallest for units near the group's geometric median, which the other units can best replace, whatever their
    size. The released code compares filters of one layer; here a unit is all weights that produce it.
    """
    return unit.distance


@criterion("exemplar", reads=("exemplar",))
def exemplar(unit: UnitSums) -> Tensor:
    """For how strict a choice of exemplars by affinity propagation the unit is still one (EPruner, arXiv 2101.07985).

    Units are points, s_ik = -||x_i - x_k||^2 how well k stands for i, and beta * median(s) what it costs to stand for
    itself: those that are left to stand for the others are the exemplars. The paper takes one beta, at which every
    layer has a number of exemplars of its own; here the score is for how many of seven betas, from 1/8 to 8, the unit
    is one. So with ``compare="space"`` the budget decides on beta, and each group keeps as many as it has different
    units. x is all weights that produce a unit, not its filter alone. Needs weights only, and a table of all pairs of a
    group: at most 4,096 units, and some seconds for a thousand; too slow to be computed on steps of a training.
    """
    return unit.exemplar


@criterion("batchnorm_scale", reads=("scale",))
def batchnorm_scale(unit: UnitSums) -> Tensor:
    """The mean of |gamma| over all BatchNorms that the unit runs through.

    Defined for spaces all of whose groups run through a BatchNorm; any other is an error.
    """
    return unit.scale


@criterion("random")
def random(unit: UnitSums) -> Tensor:
    """Uniform in [0, 1), the same for the same seed."""
    drawn = torch.rand(unit.num_units, generator=torch.Generator().manual_seed(unit.seed))
    return drawn.to(unit.entries)[unit.number]
