"""What criteria read of a unit beside sums over it: how it stands among the others of its group."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from niwaki.core.segments import as_real
from niwaki.core.space import Group, SearchSpace
from niwaki.criteria.normalise import group_of
from niwaki.criteria.scales import mean_scales


def among(
    space: SearchSpace, parameters: Mapping[str, Tensor], reads: Collection[str], like: Tensor
) -> dict[str, Tensor]:
    """Those of ``group``, ``distance`` and ``scale`` that are in ``reads``, as fields of `UnitSums`, where and as
    ``like`` is."""
    found: dict[str, Tensor] = {}
    if "group" in reads:
        found["group"] = torch.from_numpy(group_of(space)).to(like.device)
    if "distance" in reads:
        parts = [_vectors(group, parameters).to(like) for group in space.groups]
        found["distance"] = torch.cat([torch.cdist(x, x).sum(1) for x in parts])
    if "scale" in reads:
        found["scale"] = mean_scales(space, parameters, like)
    return found


def _vectors(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
    """The producing entries of each unit of ``group``, [units, entries]."""
    parts = []
    for piece in group.slices:
        if piece.parameter and piece.produces:
            weight = parameters[piece.tensor].detach()
            index = torch.from_numpy(piece.index.reshape(-1)).to(weight.device)
            chosen = as_real(weight.index_select(piece.dim, index))
            parts.append(chosen.movedim(piece.dim, 0).reshape(group.units, -1))
    return torch.cat(parts, dim=1)
