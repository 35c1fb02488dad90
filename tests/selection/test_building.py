"""Code that compares sizes: choices with which it would go another way are not made, nor come out of a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.methods import DHSPG, HESSO, HSPG, Schedule
from niwaki.selection import Widths, leaving
from niwaki.selection.budget import Budget


class Compares(nn.Module):
    """Adds what has the shape of what came before."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip((5, *widths), widths, strict=False))
        self.out = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            made = torch.relu(layer(x))
            x = made if made.shape != x.shape else made + x
        result: Tensor = self.out(x)
        return result


X = torch.randn(16, 5)
WIDTHS = [(10, 9, 16), (8, 12, 16)]


def space_of(widths: tuple[int, ...]) -> SearchSpace:
    torch.manual_seed(0)
    space = niwaki.search_space(Compares(widths), X)
    assert space.groups
    return space


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("round_to", [1, 2])
def test_every_budget_can_be_built(widths: tuple[int, ...], round_to: int) -> None:
    space = space_of(widths)
    scores = niwaki.score(space, "random", seed=3)
    least = space.least_cost().macs
    met = 0
    for limit in range(least + 400, space.cost().macs, 50):
        plan = niwaki.choose(space, scores, Budget(macs=limit, round_to=round_to))
        assert space.cost(plan).macs <= limit
        assert all(len(kept) % round_to == 0 or len(kept) == plan.units[n] for n, kept in plan.kept.items())
        met += 1
    assert met > 5


@pytest.mark.parametrize("widths", WIDTHS)
def test_what_has_become_zero_can_be_built(widths: tuple[int, ...]) -> None:
    space, generator, changed = space_of(widths), np.random.default_rng(0), 0
    for _ in range(60):
        gone = generator.random(space.num_units) < generator.random()
        for group in space.groups:
            gone[group.first] = False
        leaves = leaving(space, gone, Widths())
        space.plan(~leaves)
        assert not (leaves & ~gone).any()
        changed += bool((leaves != gone).any())
    assert changed


@pytest.mark.parametrize("kind", [HESSO, DHSPG, HSPG])
@pytest.mark.parametrize("share", [0.6, 0.65, 0.7, 0.75])
def test_a_method_ends_with_a_plan(kind: type, share: float) -> None:
    space = space_of((10, 9, 16))
    model, budget = space.model, Budget(macs=share)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = kind(space, optimizer, budget, Schedule(start=2, until=16, periods=3))
    for _ in range(16):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    plan = method.plan()
    assert space.cost(plan).macs <= share * space.cost().macs
    torch.testing.assert_close(niwaki.cut(model, plan)(X), model(X))


@pytest.mark.parametrize("kind", [HESSO, DHSPG, HSPG])
def test_a_plan_of_a_method_says_where_steps_are_coarse(kind: type) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    for share, coarse in ((0.6, True), (0.5, False)):
        torch.manual_seed(0)
        space = niwaki.search_space(model, X)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        budget, schedule = Budget(macs=share, round_to=8), Schedule(start=2, until=12, periods=1)
        options = {"tolerance": 0.0} if kind is DHSPG else {}
        method = kind(space, optimizer, budget, schedule, **options)
        for _ in range(12):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        told = method.plan().provenance.get("tight", "")
        assert ("The finest possible step, 8 more of the units of 0" in told) == coarse
        method.detach()
