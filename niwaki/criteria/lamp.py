"""LAMP: the magnitude of a unit against those that would outlive it (arXiv 2010.07611, per unit)."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.criteria.sums import UnitSums


@criterion("lamp", reads=("square", "group"))
def lamp(unit: UnitSums) -> Tensor:
    """||x_g||^2 over the sum of ||x_h||^2 for all h of its group with ||x_h|| >= ||x_g||, itself included.

    The largest unit of every group scores 1, so that groups can be compared with one another (``compare="space"``) and
    none is emptied. Of units that are equally large the later one counts as the larger. 0 where the unit is zero.
    """
    order = torch.argsort(unit.square, stable=True)
    order = order[torch.argsort(unit.group[order], stable=True)]  # by group, and by size in it
    square, group = unit.square[order].double(), unit.group[order]
    whole = square.new_zeros(len(square)).index_add_(0, group, square)[group]
    share = square / torch.where(whole > 0, whole, 1)  # groups add up to 1, so that their sum drowns none
    total = share.cumsum(0)
    in_group = share.new_zeros(len(share) + 1).index_add_(0, group + 1, share).cumsum(0)
    larger = in_group[group + 1] - (total - share)  # what is left of the group from here on
    score = torch.where(share > 0, share / torch.where(share > 0, larger, 1), 0)
    return torch.zeros_like(unit.square).index_copy_(0, order, score.to(unit.square))
