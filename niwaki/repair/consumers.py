"""The layers and parameters that sum over units which a plan removes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from niwaki.core.names import named_modules, named_parameters
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.repair.linear_maps import LinearMap, is_of_torch, linear_maps

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Reader = nn.Linear | Convolution


def reading_maps(space: SearchSpace, plan: Plan, model: nn.Module) -> dict[str, list[LinearMap]]:
    """The linear maps of all layers that read removed units, by the name of the layer."""
    reading = {(place.tensor, place.dim) for place in space.dims if not place.role.produces}
    names = {id(parameter): name for name, parameter in named_parameters(model)}
    found: dict[str, list[LinearMap]] = {}
    attentions = {
        id(module.out_proj): module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and is_of_torch(module)
    }
    for path, layer in named_modules(model):
        for one in linear_maps(layer):
            name = names.get(id(one.sums.weight), "")
            # Complex convolutions are sums of real ones, in which their inputs look as if they computed the units.
            reads = one.groups > 1 or one.sums.weight.is_complex() or (name, one.sums.dim) in reading
            if one.removed(plan, name) and reads:
                attention = None if one.tried else attentions.get(id(layer))
                found.setdefault(path, []).append(replace(one, attention=attention))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """Positions ``removed`` of dimension ``dim`` of a parameter, which read removed units."""

    name: str
    parameter: nn.Parameter
    dim: int
    removed: Tensor


def readings_of(space: SearchSpace, plan: Plan, model: nn.Module) -> list[Consumer]:
    """All parameters of ``model`` that read removed units."""
    parameters = dict(named_parameters(model))
    found = []
    for place in space.dims:
        removed = removed_from(plan, place.tensor, place.dim, parameters)
        if removed is not None and place.parameter and place.role.consumes:
            found.append(Consumer(place.tensor, parameters[place.tensor], place.dim, removed))
    return found


def removed_from(plan: Plan, tensor: str, dim: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
    """The removed positions of ``dim``; None if no position is removed."""
    kept = plan.tensors.get(tensor, {}).get(dim)
    if kept is None or tensor not in parameters:
        return None
    stays = torch.zeros(parameters[tensor].shape[dim], dtype=torch.bool, device=parameters[tensor].device)
    stays[list(kept)] = True
    return (~stays).nonzero().flatten()
