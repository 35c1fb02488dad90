"""The criterion ``hessian``: the curvature of the loss, by Hessian-vector products."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from niwaki.core.space import SearchSpace
from niwaki.criteria.products import HessianProducts
from niwaki.criteria.registry import criterion
from niwaki.per_unit.index import UnitIndex
from niwaki.per_unit.sums import UnitSums, row_sums


def curvature(
    space: SearchSpace,
    index: UnitIndex,
    parameters: Mapping[str, Tensor],
    products: HessianProducts,
    signs: Tensor,
) -> Tensor:
    """x_g' H_gg x_g of each unit, [num_units]: the mean over the probes ``signs`` [probes, num_units] of +-1.

    A probe is v = x with the entries of each unit under one random sign. Then <v_g, (Hv)_g> has the mean x_g' H_gg x_g,
    since the terms between units cancel: unlike the trace, it includes the terms between the weights of a unit. (For
    entries that lie in several units at once, the terms between entries of different other units cancel too.)
    """
    total = torch.zeros_like(index.entries)
    for sign in signs:
        probe = _probe(space, parameters, sign)
        curved = products.of(probe)
        rows: list[Tensor] = []
        for bundle in index.bundles:
            v, hv = (bundle.join([table[name] for name in bundle.names]) for table in (probe, curved))
            v = v.to(torch.promote_types(v.dtype, hv.dtype))
            rows += row_sums(v, hv, None, bundle.dims, {"product"})["product"]
        total += index.total({"product": rows})["product"]
    return total / len(signs)


@torch.no_grad()
def _probe(space: SearchSpace, parameters: Mapping[str, Tensor], sign: Tensor) -> dict[str, Tensor]:
    """The weights, each entry times the sign of every unit that it is part of; zero for entries of no unit."""
    extended = torch.cat([sign, sign.new_ones(1)])
    signs = {name: torch.ones((), device=value.device, dtype=value.dtype) for name, value in parameters.items()}
    outside = dict(signs)
    for place in space.dims:
        if place.role.produces and place.parameter:
            value = parameters[place.tensor]
            units = torch.from_numpy(place.units).to(sign.device)
            shape = [-1 if dim == place.dim else 1 for dim in range(value.dim())]
            signs[place.tensor] = signs[place.tensor] * extended[units].prod(1).to(value).view(shape)
            none = (units == space.num_units).all(1)
            outside[place.tensor] = outside[place.tensor] * none.to(value).view(shape)
    return {name: value.detach() * signs[name] * (1 - outside[name]) for name, value in parameters.items()}


@criterion("hessian", reads=("curved",))
def hessian(unit: UnitSums) -> Tensor:
    """1/2 x_g' H_gg x_g with H the Hessian of the loss, estimated by Hutchinson's method; 0 where it is negative (for
    the mean over all batches, not batch by batch).

    ``taylor2`` (diagonal) and ``fisher`` (the unit's whole block) take the empirical Fisher information for H, which
    needs no second derivative and is near H only for a likelihood loss of a network that fits the data.
    """
    return unit.curved.clamp(min=0) / 2
