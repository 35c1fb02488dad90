"""What slips past the tracker of whole numbers is caught when the cut is rehearsed, and pinned with its line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from tests.law import deviations, random_plan


class Escaping(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width = how, 8
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(len(x), self.width)
        if self.how == "float on the left":
            y = y * (1.0 / self.width)
        elif self.how == "branch":
            y = y.relu() if self.width == 8 else y.tanh()
        elif self.how == "check" and y.shape[1] != 8:
            raise ValueError("expected eight")
        elif self.how == "int of float":
            y = y * int(0.5 * y.shape[1])
        elif self.how == "loop":
            for _ in range(self.width // 4):
                y = y * 2
        return self.third(self.second(y).relu())


@pytest.mark.parametrize("how", ["float on the left", "branch", "check", "int of float", "loop"])
def test_escaped_numbers_are_pinned(how: str) -> None:
    torch.manual_seed(0)
    net, x = Escaping(how), torch.randn(2, 4)
    space = niwaki.search_space(net, x)
    assert [group.name for group in space.groups] == ["second"]
    pin = next(pin for pin in space.pins if pin.parameter == "first.weight" and pin.dim == 0)
    assert pin.count == 8
    assert "after a cut, aten." in pin.reason
    assert pin.location is not None
    assert pin.location.file == __file__
    for seed in range(3):
        assert deviations(net, random_plan(space, np.random.default_rng(seed)), x)["eval"] <= 1e-10


def test_without_an_escape_both_widths_are_free() -> None:
    assert len(niwaki.search_space(Escaping("not at all"), torch.randn(2, 4)).groups) == 2
