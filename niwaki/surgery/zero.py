"""The reference of the law: the same network with every entry of every removed unit at zero."""

from __future__ import annotations

import torch

from niwaki.core.plan import Plan
from niwaki.surgery.cut import duplicate
from niwaki.surgery.plans import to_do


def zeroed(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """A copy of ``model`` in which every entry of every *parameter* that lies in a slice of a removed unit is zero.

    Producing and consuming slices alike; buffers and everything else are as they were. So are the directions of weight
    norms (`Plan.directions`), whose lengths are zero.
    """
    return zero_out(duplicate(model), plan)


def zero_out(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """As `zeroed`, the model itself; for copies that are the caller's own."""
    plan, _ = to_do(model, plan)
    parameters = dict(model.named_parameters())
    directions = set(plan.directions)
    with torch.no_grad():
        for name, dims in plan.tensors.items():
            parameter = parameters.get(name)
            if parameter is None:
                continue
            for dim, kept in dims.items():
                if (name, dim) in directions:
                    continue
                removed = torch.ones(parameter.shape[dim], dtype=torch.bool, device=parameter.device)
                removed[list(kept)] = False
                parameter.index_fill_(dim, removed.nonzero().flatten(), 0)
    return model
