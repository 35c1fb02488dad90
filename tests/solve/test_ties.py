"""Sizes that depend on one another: tied groups lose units together, and the law holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.testing.models import random_plan


class Halves(nn.Module):
    """A chunk whose halves go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 12), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).relu().chunk(2, dim=1)
        return self.second(left) + self.third(right).tanh()


class OneNumberForTwo(nn.Module):
    """One attribute sets the width of two tensors that have nothing else in common."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.first, self.second = nn.Linear(4, 12), nn.Linear(4, 18)
        self.third, self.fourth = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        two = self.first(x).view(len(x), 2, self.width)
        three = self.second(x).view(len(x), 3, self.width)
        return self.third(two).sum(1) + self.fourth(three).sum(1)


class Unequal(nn.Module):
    """The second part is twice the first, in number and not by position."""

    def __init__(self) -> None:
        super().__init__()
        self.small = 3
        self.first, self.second, self.third = nn.Linear(4, 9), nn.Linear(3, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.first(x).split((self.small, 2 * self.small), dim=1)
        return self.second(small.relu()) + self.third(large.relu())


class Layer(nn.Module):
    """Is told its width by whoever calls it."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6 * times), nn.Linear(6, 4)

    def forward(self, x: Tensor, width: int) -> Tensor:
        return self.second(self.first(x).view(len(x), -1, width).relu()).sum(1)


class PassedDown(nn.Module):
    """A number that the model hands to its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"hidden_size": 6}
        self.layers = nn.ModuleList(Layer(times) for times in (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, self.config["hidden_size"])
        return x


class SharedFunction(nn.Module):
    """A number in a closure that two layers call."""

    def __init__(self) -> None:
        super().__init__()
        width = 6
        self.shaped = lambda x: x.view(len(x), -1, width)
        self.first, self.second = nn.Linear(4, 12), nn.Linear(4, 18)
        self.third, self.fourth = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.shaped(self.first(x))).sum(1) + self.fourth(self.shaped(self.second(x))).sum(1)


class AllHeads(nn.Module):
    """Heads of queries and of values are attended to apart; what is left of both is one number, as is their size."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.all_head_size = 4, 3, 12
        self.query, self.value, self.left, self.right = (nn.Linear(4, 12) for _ in range(4))
        self.first, self.second = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = ((a(x) * b(x)).view(-1, self.heads, self.size) for a, b in self._pairs())
        y, z = y.tanh().reshape(-1, self.all_head_size), z.relu().reshape(-1, self.all_head_size)
        return self.first(y) + self.second(z)

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.query, self.value), (self.left, self.right)]


TIED = [
    (Halves, (1, 1)),
    (OneNumberForTwo, (1, 1)),
    (Unequal, (1, 2)),
    (PassedDown, (1, 1, 1)),
    (SharedFunction, (1, 1)),
    (AllHeads, (1, 1)),
]


@pytest.mark.parametrize(("model", "steps"), TIED, ids=str)
def test_groups_leave_together(model: type[nn.Module], steps: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(2, 4)
    space = niwaki.search_space(net, x)
    assert [sorted(tie.steps) for tie in space.ties] == [sorted(steps)]
    assert "removed together" in str(space)
    for seed in range(5):
        plan = random_plan(space, np.random.default_rng(seed))
        found = deviations(net, plan, x)
        assert found["eval"] <= 1e-10
        assert found["train"] <= 1e-8


def test_a_choice_out_of_step_is_refused() -> None:
    net = Halves()
    space = niwaki.search_space(net, torch.randn(2, 4))
    keep = np.ones(space.num_units, dtype=bool)
    keep[space.groups[0].first] = False
    with pytest.raises(
        niwaki.NiwakiError, match=r"cannot be built: the size of a split needs .* to follow the cut, at "
    ):
        space.plan(keep)


@pytest.mark.parametrize("model", [model for model, _ in TIED], ids=str)
def test_what_is_chosen_respects_ties(model: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(2, 4)
    space = niwaki.search_space(net, x)
    budgets = [niwaki.Budget(**{measure: share}) for measure in ("units", "params", "macs") for share in (0.6, 0.8)]
    for budget in (*budgets, niwaki.Budget(params=0.8, round_to=2), niwaki.Budget(macs=0.8, min_units=2)):
        plan = niwaki.choose(space, niwaki.score(space, "magnitude"), budget)
        assert any(len(kept) < group.units for kept, group in zip(plan.kept.values(), space.groups, strict=True))
        _in_step(space, plan)
        assert niwaki.check(net, plan, x).holds


def test_what_is_trained_respects_ties() -> None:
    torch.manual_seed(0)
    net, x = PassedDown(), torch.randn(8, 4)
    space = niwaki.search_space(net, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(params=0.7), niwaki.Schedule(start=1, until=8, periods=2))
    for _ in range(8):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    _in_step(space, method.plan())
    before = net(x)
    assert torch.allclose(niwaki.cut(net, method.plan())(x), before, atol=1e-5)


def _in_step(space: niwaki.SearchSpace, plan: niwaki.Plan) -> None:
    gone = [group.units - len(plan.kept[group.name]) for group in space.groups]
    for tie in space.ties:
        assert len({gone[group] / step for group, step in zip(tie.groups, tie.steps, strict=True)}) == 1


class Steps(nn.Module):
    """Twelve heads, of which there must be as many as a condition in Python asks for."""

    def __init__(self, condition: Callable[[Any], object]) -> None:
        super().__init__()
        self.heads, self.condition = 12, condition
        self.first, self.second = nn.Linear(4, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(len(x), self.heads, 2).tanh()
        y = y if self.condition(self) else y * 2
        return self.second(y.transpose(1, 2).reshape(len(x), -1))


@pytest.mark.parametrize(
    ("condition", "step", "most"),
    [
        (lambda m: m.heads > 1, 1, 10),
        (lambda m: m.heads >= 8, 1, 4),
        (lambda m: m.heads % 2 == 0, 2, 5),
        (lambda m: not m.heads % 3, 3, 3),
        (lambda m: m.heads % 4 == 0 and m.heads > 4, 4, 1),
        (lambda m: m.heads // 3 * 3 == m.heads, 3, 3),
    ],
)
def test_a_condition_on_one_number_is_a_step_or_a_least_size(
    condition: Callable[[Any], object], step: int, most: int
) -> None:
    torch.manual_seed(0)
    net, x = Steps(condition), torch.randn(2, 4)
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [12]
    assert [(tie.steps, tie.most) for tie in space.ties] == [((step,), most)]
    assert f"removed in steps: {step} of first, {most} times at most" in str(space)
    assert space.least_units() == [12 - step * most]
    for seed in range(4):
        assert deviations(net, random_plan(space, np.random.default_rng(seed)), x)["eval"] <= 1e-10
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.9))
    assert (12 - len(plan.kept["first"])) % step == 0
    assert niwaki.check(net, plan, x).holds


@pytest.mark.parametrize("condition", [lambda m: m.heads > 11, lambda m: m.heads in (12, 13)])
def test_a_condition_that_only_the_whole_meets_pins(condition: Callable[[Any], object]) -> None:
    space = niwaki.search_space(Steps(condition), torch.randn(2, 4))
    assert not space.groups
    (pin,) = [pin for pin in space.pins if (pin.parameter, pin.dim) == ("first.weight", 0)]
    assert re.match(
        r"a number that is part of the computed function is computed as \(heads [>-] 1\d\), which", pin.reason
    )


def test_indivisible_parts_stay() -> None:
    """Where no tie exists, the axis is pinned with the number and its line."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y.view(len(x), y.shape[1] // 3, 3).transpose(1, 2).reshape(len(x), -1))

    space = niwaki.search_space(Net(), torch.randn(2, 4))
    x = torch.randn(2, 4)
    for seed in range(5):
        net = space.model
        assert deviations(net, random_plan(space, np.random.default_rng(seed)), x)["eval"] <= 1e-10
