"""The scales of BatchNorms, for the criterion that reads them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.core.names import named_modules
from niwaki.core.space import Place, SearchSpace
from niwaki.errors import MethodError


def scale_places(space: SearchSpace) -> list[Place]:
    """The places of ``space`` that are the scale of a BatchNorm.

    Raises:
        MethodError: some group runs through no BatchNorm with a scale.
    """
    scales = {
        f"{name}.weight" if name else "weight"
        for name, module in named_modules(space.model)
        if isinstance(module, _BatchNorm) and module.affine
    }
    places = [place for place in space.places if place.tensor in scales and place.produces]
    has = np.zeros(space.num_units + 1, dtype=bool)
    for place in places:
        has[place.units.reshape(-1)] = True
    bare = [group.name for group in space.groups if not has[group.numbers].all()]
    if bare:
        raise MethodError(
            f"The criterion 'batchnorm_scale' is not defined for {len(bare)} of the {len(space.groups)} groups, first "
            f"{bare[0]!r}: no BatchNorm with a scale is among what makes their units. Choose another criterion, or pin "
            "these groups with `ignored` when you build the search space."
        )
    return places


def mean_scales(space: SearchSpace, parameters: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The mean |scale| of each unit, [num_units], where and as ``like`` is."""
    total, number = like.new_zeros(2, space.num_units + 1)
    for place in scale_places(space):
        units = torch.from_numpy(place.units).to(like.device)  # [n, K]
        size = parameters[place.tensor].detach().abs().to(like).unsqueeze(1).expand(units.shape)
        total.index_add_(0, units.reshape(-1), size.reshape(-1))
        number.index_add_(0, units.reshape(-1), torch.ones_like(size).reshape(-1))
    mean: Tensor = (total / number)[:-1]
    return mean
