"""Compute what criteria read of a unit beside sums over it: its distance to the others of its group,
whether it stands for them, its scales."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.core.dying import dying_parameters
from niwaki.core.isomorphic import peer_groups
from niwaki.core.names import named_modules
from niwaki.core.space import Group, SearchSpace
from niwaki.core.tensor_dims import TensorDim
from niwaki.errors import MethodError
from niwaki.per_unit.exemplars import persistence
from niwaki.per_unit.index import as_real


def among(
    space: SearchSpace, parameters: Mapping[str, Tensor], reads: Collection[str], like: Tensor
) -> dict[str, Tensor]:
    """Those of ``group``, ``distance``, ``exemplar`` and ``scale`` that are in ``reads``, as fields of `UnitSums`, like
    ``like``."""
    found: dict[str, Tensor] = {}
    if "group" in reads:
        found["group"] = torch.from_numpy(peer_groups(space)).to(like.device)
    if "distance" in reads:
        parts = [_vectors(group, parameters).to(like) for group in space.groups]
        found["distance"] = torch.cat([torch.cdist(x, x).sum(1) for x in parts])
    if "exemplar" in reads:
        vectors = [_vectors(group, parameters).to(like.device) for group in space.groups]
        found["exemplar"] = torch.cat([persistence(x) for x in vectors]).to(like)
    if "scale" in reads:
        found["scale"] = mean_scales(space, parameters, like)
    return found


def _vectors(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
    """The producing entries of each unit of ``group``, [units, entries]."""
    parts = []
    for piece in group.slices:
        if piece.parameter and piece.role.produces:
            weight = parameters[piece.tensor].detach()
            index = torch.from_numpy(piece.index.reshape(-1)).to(weight.device)
            chosen = as_real(weight.index_select(piece.dim, index))
            parts.append(chosen.movedim(piece.dim, 0).reshape(group.units, -1))
    return torch.cat(parts, dim=1)


def scale_dims(space: SearchSpace) -> list[TensorDim]:
    """The dimensions of ``space`` that are the scale of a BatchNorm.

    Raises:
        MethodError: some group runs through no BatchNorm with a scale.
    """
    scales = _scales(space)
    places = [place for place in space.dims if place.tensor in scales and place.role.produces]
    dying = dying_parameters(space)
    has = np.zeros(space.num_units + 1, dtype=bool)
    for place in places:
        has[place.units.reshape(-1)] = True
    has[[unit for name in scales for unit in dying.get(name, ())]] = True
    bare = [group.name for group in space.groups if not has[group.numbers].all()]
    if bare:
        raise MethodError(
            f"The criterion 'batchnorm_scale' is not defined for {len(bare)} of the {len(space.groups)} groups, first "
            f"{bare[0]!r}: no BatchNorm with a scale is among what makes their units. Choose another criterion, or pin "
            "these groups with `ignored` when you build the search space."
        )
    return places


def mean_scales(space: SearchSpace, parameters: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The mean |scale| of each unit, [num_units], where and as ``like`` is; of a structure, that of all inside."""
    total, number = like.new_zeros(2, space.num_units + 1)
    for place in scale_dims(space):
        units = torch.from_numpy(place.units).to(like.device)  # [n, K]
        size = parameters[place.tensor].detach().abs().to(like).unsqueeze(1).expand(units.shape)
        total.index_add_(0, units.reshape(-1), size.reshape(-1))
        number.index_add_(0, units.reshape(-1), torch.ones_like(size).reshape(-1))
    mean: Tensor = (total / number)[:-1]
    inside: dict[int, list[Tensor]] = {}
    for name, owners in dying_parameters(space).items():
        for unit in owners if name in _scales(space) else ():
            inside.setdefault(unit, []).append(parameters[name].detach().abs().to(like))
    for unit, sizes in inside.items():
        mean[unit] = torch.cat(sizes).mean()
    return mean


def _scales(space: SearchSpace) -> frozenset[str]:
    """The parameters that are the scale of a BatchNorm."""
    return frozenset(
        f"{name}.weight" if name else "weight"
        for name, module in named_modules(space.model)
        if isinstance(module, _BatchNorm) and module.affine
    )
