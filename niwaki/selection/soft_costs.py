"""The cost of gates that are learnt, with gradients: what a mask pays for each of its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.core.cost import CostModel
from niwaki.selection.objective import prices

_LEAST = 1e-12  # of a limit: a network that costs nothing is that far below it


def soft_costs(model: CostModel, gates: Tensor, measures: Sequence[str]) -> Tensor:
    """The cost of ``gates`` [num_units] in each of ``measures``, [measures], in float64 on the CPU.

    With gates of 0 and 1 that is the exact cost of the network with these units. Between them it is the polynomial that
    the cost model is made of, which is linear in each gate. The gradient by a gate is the price of its unit: what it
    alone adds to the cost of the others.

    Args:
        model: of a search space, ``space.cost_model``.
        gates: 1 for a unit that is kept and 0 for one that is removed, of any floating-point type, on any device.
        measures: fields of `niwaki.core.cost.Cost`, ``"latency"`` if the model is timed, or ``"units"``.

    >>> import niwaki
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(network, torch.randn(1, 4))
    >>> gates = torch.ones(10, requires_grad=True)
    >>> cost = soft_costs(space.cost_model, gates, ["macs", "params"])
    >>> cost.tolist()
    [60.0, 72.0]
    >>> cost[0].backward()
    >>> gates.grad.tolist()
    [6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0]
    """
    found: Tensor = _Costs.apply(gates, model, tuple(measures))  # type: ignore[no-untyped-call]
    return found


def budget_loss(model: CostModel, gates: Tensor, limits: Mapping[str, float]) -> Tensor:
    """How far the cost of ``gates`` [num_units] is from ``limits``, a scalar of float64 on the CPU: 0 where it is met
    exactly.

    For one limit b and a cost a: log(max(a, b) / min(a, b)), which grows on both sides of the limit (Auto-Train-Once,
    arXiv 2403.14729). With several, those that are exceeded count one by one, and if none is, the one that is nearest:
    a network that is below all of its limits may grow until it reaches the first.

    >>> import niwaki
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> model = niwaki.search_space(network, torch.randn(1, 4)).cost_model
    >>> [round(float(budget_loss(model, torch.ones(10), {"macs": limit})), 4) for limit in (30, 60, 120)]
    [0.6931, 0.0, 0.6931]
    """
    limit = torch.tensor(list(limits.values()), dtype=torch.float64)
    ratio = torch.log((soft_costs(model, gates, tuple(limits)) / limit).clamp(min=_LEAST))
    return ratio.clamp(min=0).sum() + (-ratio.max()).clamp(min=0)


class _Costs(torch.autograd.Function):
    """The cost model is evaluated in numpy, once per call."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, model: CostModel, measures: tuple[str, ...]) -> Tensor:
        values = gates.detach().double().cpu().numpy()
        ctx.model, ctx.measures, ctx.values, ctx.like = model, measures, values, gates
        alive = model.counts(values)
        found = [values.sum() if measure == "units" else model.terms(measure).total(alive) for measure in measures]
        return torch.tensor(found, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        price = np.stack(list(prices(ctx.model, ctx.values, ctx.measures).values()))
        return (gradients[0] @ torch.from_numpy(price)).to(ctx.like), None, None
