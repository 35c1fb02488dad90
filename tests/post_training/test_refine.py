"""Budgets shared out by trial."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError, MethodError


def network() -> tuple[nn.Sequential, list[Tensor]]:
    """The first hidden layer matters, the second hardly does; data in four batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4)).double()
    with torch.no_grad():
        net[0].weight *= 4
        net[2].weight[1:] = net[2].weight[0]  # copies
    return net.eval(), list(torch.randn(160, 8).double().split(40))


def uniform(space: SearchSpace) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.ones(space.num_units)


def far(net: nn.Module, plan: niwaki.Plan, data: list[Tensor], repair: bool) -> float:
    space = niwaki.search_space(net, data[0])
    model = niwaki.compensate(space, plan, data[:3]).model if repair else net
    small = niwaki.cut(model, plan)
    with torch.no_grad():
        given, target = (F.log_softmax(one(torch.cat(data)), -1) for one in (small, net))
    return float(F.kl_div(given, target, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("repair", ["compensate", "none"])
def test_the_budget_moves_to_where_it_matters(repair: Any) -> None:
    net, data = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    space, budget = niwaki.search_space(net, data[0]), niwaki.Budget(macs=0.5)
    scores = niwaki.score(space, uniform)
    heard: list[tuple[int, int, float]] = []
    first = niwaki.choose(space, scores, budget)
    plan = niwaki.refine(space, scores, budget, data, repair=repair, sweeps=3, told=lambda *one: heard.append(one))
    kept, once = ([len(one.kept[group.name]) for group in space.groups] for one in (plan, first))
    if repair == "compensate":  # then copies are worth nothing; without it their sum is
        assert kept[0] > once[0] and kept[1] < once[1]
    assert far(net, plan, data, repair != "none") < 0.8 * far(net, first, data, repair != "none")
    assert 0.45 < space.cost(plan).macs / space.cost().macs <= 0.5
    assert [one[:2] for one in heard] == [(number, 6) for number in range(1, 7)]
    assert all(later[2] <= earlier[2] for earlier, later in zip(heard, heard[1:], strict=False))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert plan.provenance["refined"] == repair


def test_a_change_that_is_worse_on_the_last_batches_is_not_made() -> None:
    """The last batch sees another output than the others: what helps these harms it."""
    net, data = network()
    space, budget = niwaki.search_space(net, data[0]), niwaki.Budget(macs=0.5)
    scores = niwaki.score(space, uniform)
    first = niwaki.choose(space, scores, budget)

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        out: Tensor = model(batch)
        gone = len(space.groups[0].name) and model[0].out_features < 24  # type: ignore[index, operator]
        if batch is data[-1] and gone:  # punishes every change of the first layer's width
            out = out * (1.0 + (model[0].out_features - len(first.kept[space.groups[0].name])))  # type: ignore[index, operator]
        return out

    assert niwaki.refine(space, scores, budget, data, forward, repair="none").kept == first.kept
    assert niwaki.refine(space, scores, budget, data, repair="none").kept != first.kept


def test_wrong_inputs_get_sentences() -> None:
    net, data = network()
    space, budget = niwaki.search_space(net, data[0]), niwaki.Budget(macs=0.5)
    scores = niwaki.score(space, "magnitude")
    with pytest.raises(MethodError, match="There is one batch. Some choose and others decide: pass two or more"):
        niwaki.refine(space, scores, budget, data[:1])
    with pytest.raises(MethodError, match="There are no batches. Some choose"):
        niwaki.refine(space, scores, budget, [])
    with pytest.raises(MethodError, match="step=1 must be a number above 1"):
        niwaki.refine(space, scores, budget, data, step=1)
    with pytest.raises(MethodError, match="sweeps=0 must be a whole number, 1 or more"):
        niwaki.refine(space, scores, budget, data, sweeps=0)
    with pytest.raises(MethodError, match="repair='more' is none of 'compensate', 'norms', 'none'"):
        niwaki.refine(space, scores, budget, data, repair="more")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="latency is measured on networks that are cut"):
        niwaki.refine(space, scores, niwaki.Budget(latency=0.5), data)
    with pytest.raises(BudgetError, match="cannot be met: with every group at its least size"):
        niwaki.refine(space, scores, niwaki.Budget(macs=0.01), data)


def test_outputs_without_a_distribution_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    data = list(torch.randn(8, 4).split(4))
    space = niwaki.search_space(net, data[0])
    with pytest.raises(MethodError, match="returns one number per sample"):
        niwaki.refine(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5), data)
