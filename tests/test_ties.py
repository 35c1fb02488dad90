"""Sizes that depend on one another: groups leave in a common rhythm, and the law holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from tests.law import deviations, random_plan


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


@pytest.mark.parametrize(
    ("model", "steps"), [(Halves, (1, 1)), (OneNumberForTwo, (1, 1)), (Unequal, (1, 2))], ids=lambda v: str(v)
)
def test_groups_leave_together(model: type[nn.Module], steps: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(2, 4)
    space = niwaki.search_space(net, x)
    assert [sorted(tie.steps) for tie in space.ties] == [sorted(steps)]
    assert "leaving together" in str(space)
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


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_choose_respects_ties(share: float) -> None:
    torch.manual_seed(0)
    net, x = Halves(), torch.randn(2, 4)
    space = niwaki.search_space(net, x)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=share))
    assert len(set(map(len, plan.kept.values()))) == 1
    assert niwaki.check(net, plan, x).holds


def test_indivisible_parts_stay() -> None:
    """Where no rhythm exists, the axis is pinned with the number and its line."""

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
