"""Products of dimensions: the outer factor is the unit, the inner one on request; then units overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.testing.models import random_plan


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.scale = 4, 6, 6**-0.5
        self.query, self.key, self.value = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(8, 24)
        self.out = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).view(len(x), -1, self.heads, self.size).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) * self.scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(len(x), x.shape[1], -1))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())


CASES = [(Attention, (2, 5, 8), [4], [4, 6, 6]), (Grouped, (2, 3, 6, 6), [4], [2, 3, 4])]


@pytest.mark.parametrize(("model", "shape", "outer", "both"), CASES, ids=lambda v: str(v))
def test_outer_by_default_and_inner_on_request(
    model: type[nn.Module], shape: tuple[int, ...], outer: list[int], both: list[int]
) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(shape)
    whole = niwaki.search_space(net, x)
    assert sorted(group.units for group in whole.groups) == outer
    if model is Grouped:  # its weight has a dimension of inner positions only
        assert any("inner factor" in pin.reason for pin in whole.pins)
    space = niwaki.search_space(net, x, inner=True)
    assert sorted(group.units for group in space.groups) == both
    for seed in range(5):
        plan = random_plan(space, np.random.default_rng(seed))
        found = deviations(net, plan, x)
        assert found["eval"] <= 1e-10
        assert found["train"] <= 1e-8
        assert space.cost(plan).params == sum(p.numel() for p in niwaki.cut(net, plan).parameters())


@pytest.mark.parametrize(("model", "shape"), [case[:2] for case in CASES])
def test_overlapping_units_fade_to_zero(model: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(shape)
    space = niwaki.search_space(net, x, inner=True)
    optimizer = torch.optim.AdamW(net.parameters())
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(params=0.6), niwaki.Schedule(start=2, until=12, periods=2))
    for _ in range(14):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert space.cost(method.plan()).params <= 0.6 * space.cost().params
    result = niwaki.check(net, method.plan(), x)
    assert result.holds
    assert result.distance == 0
