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
    square = unit.square[order].double()
    total, group = square.cumsum(0), unit.group[order]
    in_group = square.new_zeros(int(len(square)) + 1).index_add_(0, group + 1, square).cumsum(0)
    larger = in_group[group + 1] - (total - square)  # what is left of the group from here on
    score = torch.where(square > 0, square / torch.where(square > 0, larger, 1), 0)
    return torch.zeros_like(unit.square).index_copy_(0, order, score.to(unit.square))
