"""The layers and parameters that sum over units which a plan removes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from niwaki.core.names import named_modules, named_parameters
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Reader = nn.Linear | Convolution


def readers_of(space: SearchSpace, plan: Plan, model: nn.Module) -> dict[str, tuple[Reader, Tensor]]:
    """The linear layers and ungrouped convolutions that read removed units, with the numbers of these inputs."""
    reading = {(place.tensor, place.dim) for place in space.dims if not place.role.produces}
    parameters = dict(named_parameters(model))
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, tuple[Reader, Tensor]] = {}
    for path, layer in named_modules(model):
        if isinstance(layer, nn.Linear) or (isinstance(layer, Convolution) and layer.groups == 1):
            name = names.get(id(layer.weight), "")
            removed = removed_from(plan, name, 1, parameters)
            if (name, 1) in reading and removed is not None:
                found[path] = layer, removed
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


def channels(layer: Reader) -> int:
    """The dimension of the input that the layer sums over, counted from the end."""
    return -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.ndim
