"""Choices in rounds: what they see of the network on the way, and what they leave behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError, MethodError
from niwaki.testing.models import randomised


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return randomised(
        nn.Sequential(
            nn.Conv2d(1, 12, 3),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 16, 3),
        )
    ).eval()


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))) for _ in range(2)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_rounds_go_down_evenly_and_take_nothing_back(data: list[tuple[Tensor, Tensor]]) -> None:
    net = convolutional()
    before, space = state(net), niwaki.search_space(net, data[0][0])
    plans: list[Plan] = []
    plan = niwaki.choose_iteratively(
        *(space, "taylor1", niwaki.Budget(macs=0.4), data, loss_fn),
        rounds=4,
        told=lambda number, made: plans.append(made),
    )
    dense = space.cost().macs
    assert [round(space.cost(one).macs / dense, 2) for one in plans] == pytest.approx([0.85, 0.7, 0.55, 0.4], abs=0.05)
    assert plan is plans[-1] and space.cost(plan).macs <= 0.4 * dense
    kept = [space.keep_of(one) for one in plans]
    assert all((later <= earlier).all() for earlier, later in zip(kept, kept[1:], strict=False))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again = niwaki.choose_iteratively(space, "taylor1", niwaki.Budget(macs=0.4), data, loss_fn, rounds=4)
    assert again.kept == plan.kept


def test_one_round_is_choose(data: list[tuple[Tensor, Tensor]]) -> None:
    net = convolutional()
    space, budget = niwaki.search_space(net, data[0][0]), niwaki.Budget(macs=0.5, params=0.6, round_to=2)
    once = niwaki.choose_iteratively(space, "taylor2", budget, data, loss_fn, rounds=1)
    assert once.kept == niwaki.choose(space, niwaki.score(space, "taylor2", data, loss_fn), budget).kept


def test_each_round_scores_the_network_as_it_then_is(data: list[tuple[Tensor, Tensor]]) -> None:
    """Each score is asked of what is left, and the last one again of the network as it was."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        net[0].weight[1:4] = net[0].weight[0]  # four copies of a unit, each worth little beside the others
    space = niwaki.search_space(net, torch.randn(1, 4))
    seen: list[list[int]] = []

    def redundancy(space: SearchSpace) -> np.ndarray[Any, np.dtype[np.float64]]:
        weight = space.model.get_parameter("0.weight").detach()
        alive = weight.abs().sum(1) > 0
        seen.append(alive.nonzero().flatten().tolist())
        same = torch.tensor([[bool(torch.equal(a, b)) for b in weight] for a in weight]).sum(1)
        return (1.0 / same.double() + 0.1 * torch.arange(6) / 6).where(alive, 0.0).numpy()

    rounds = niwaki.choose_iteratively(space, redundancy, niwaki.Budget(macs=0.5), rounds=3)
    once = niwaki.choose(space, niwaki.score(space, redundancy), niwaki.Budget(macs=0.5))
    assert [list(kept) for kept in once.kept.values()] == [[3, 4, 5]]
    assert [list(kept) for kept in rounds.kept.values()] == [[3, 4, 5]]
    assert [len(alive) for alive in seen] == [6, 5, 4, 6]


def test_norms_have_the_statistics_of_the_data_while_the_network_is_scored(data: list[tuple[Tensor, Tensor]]) -> None:
    net = convolutional()
    norm = net.get_submodule("4")
    before, space, means = state(net), niwaki.search_space(net, data[0][0]), []

    def noting(space: SearchSpace) -> np.ndarray[Any, np.dtype[np.float64]]:
        means.append(space.model.get_buffer("4.running_mean").clone())
        return np.arange(space.num_units) + 1.0

    for between in ("norms", "none"):
        niwaki.choose_iteratively(*(space, noting, niwaki.Budget(macs=0.5), data, loss_fn), rounds=2, between=between)  # type: ignore[arg-type]
    assert [torch.equal(mean, before["4.running_mean"]) for mean in means] == [True, False, True, True]
    assert torch.equal(norm.get_buffer("running_mean"), before["4.running_mean"])
    half = niwaki.choose_iteratively(space, noting, niwaki.Budget(macs=0.75), rounds=1)
    zeroed = convolutional()
    niwaki.zero_(zeroed, half)
    niwaki.reestimate_norms(zeroed, [x for x, _ in data])
    assert torch.allclose(means[1], zeroed.get_buffer("4.running_mean"), atol=1e-6)


def test_a_criterion_that_fails_leaves_the_model_as_it_was(data: list[tuple[Tensor, Tensor]]) -> None:
    net, calls = convolutional(), 0
    before, space = state(net), niwaki.search_space(net, data[0][0])

    def failing(space: SearchSpace) -> np.ndarray[Any, np.dtype[np.float64]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("no more")
        return np.arange(space.num_units) + 1.0

    with pytest.raises(KeyError, match="no more"):
        niwaki.choose_iteratively(space, failing, niwaki.Budget(macs=0.5), data, loss_fn, rounds=3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_wrong_inputs_get_sentences(data: list[tuple[Tensor, Tensor]]) -> None:
    space = niwaki.search_space(convolutional(), data[0][0])
    with pytest.raises(MethodError, match="between='more' is none of 'compensate', 'norms', 'none'"):
        niwaki.choose_iteratively(space, "magnitude", niwaki.Budget(macs=0.5), between="more")  # type: ignore[arg-type]
    for rounds in (0, 1.5, "many"):
        with pytest.raises(MethodError, match=r"rounds=.* must be a whole number, 1 or more: how often the network"):
            niwaki.choose_iteratively(space, "magnitude", niwaki.Budget(macs=0.5), rounds=rounds)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="A limit on latency is met by measuring cut networks, .* or rounds=1"):
        niwaki.choose_iteratively(space, "magnitude", niwaki.Budget(latency=0.5), example_inputs=data[0][0])
    calls = 0

    def counted(space: SearchSpace) -> np.ndarray[Any, np.dtype[np.float64]]:
        nonlocal calls
        calls += 1
        return np.ones(space.num_units)

    with pytest.raises(BudgetError, match="cannot be met: with every group at its least size"):
        niwaki.choose_iteratively(space, counted, niwaki.Budget(macs=0.001))
    assert calls == 0  # before the first round
