"""``allow_inexact``: units whose removal changes the result are offered on request, and named as such."""

from __future__ import annotations

import numpy as np
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.testing.models import random_plan, randomised


class _Block(nn.Module):
    """Two residual branches on one width, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        result: Tensor = self.head(x)
        return result


def _space(allow: bool) -> tuple[nn.Module, Tensor, SearchSpace]:
    torch.manual_seed(0)
    model, x = randomised(_Block()), torch.randn(4, 5)
    return model, x, niwaki.search_space(model, x, allow_inexact=allow)


def test_width_across_a_layer_norm_is_offered_on_request_and_says_so() -> None:
    _, _, strict = _space(False)
    assert {group.name: group.inexact for group in strict.groups} == {"up": None}
    assert any("a norm averages over this dimension" in pin.reason for pin in strict.pins)
    _, _, space = _space(True)
    by_name = {group.name: group for group in space.groups}
    assert by_name["up"].inexact is None and by_name["up"].units == 20
    width = next(group for name, group in by_name.items() if name != "up")
    assert width.units == 12 and width.inexact is not None
    assert "a norm averages over this dimension" in width.inexact and "test_inexact.py" in width.inexact
    assert "12 units" in str(space) and "inexact: a norm averages" in str(space)
    assert space.coverage > 0.95 > strict.coverage


def test_a_cut_across_a_layer_norm_runs_and_plans_without_it_stay_exact() -> None:
    model, x, space = _space(True)
    small = niwaki.cut(model, random_plan(space, np.random.default_rng(0)))
    assert small(x).shape == model(x).shape
    assert small.norm.normalized_shape[0] < 12
    keep = np.ones(space.num_units, dtype=bool)
    up = next(group for group in space.groups if group.inexact is None)
    keep[up.first : up.first + 9] = False
    assert max(deviations(model, space.plan(keep), x).values()) < 1e-6
    assert deviations(model, space.plan(keep), x)["eval"] < 1e-12


def test_groups_inside_a_group_norm_and_softmaxed_widths() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3), nn.GroupNorm(1, 12), nn.Linear(12, 2)
            self.gate = nn.Linear(3, 7)
            self.out = nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(self.norm(self.conv(x)).mean((2, 3)))
            result: Tensor = y + self.out(self.gate(x.mean((2, 3))).softmax(-1))
            return result

    model, x = Net(), torch.randn(2, 3, 6, 6)
    assert niwaki.search_space(model, x).groups == ()
    space = niwaki.search_space(model, x, allow_inexact=True)
    assert sorted(group.units for group in space.groups) == [7, 12]
    assert all(group.inexact for group in space.groups)
    assert niwaki.cut(model, random_plan(space, np.random.default_rng(1)))(x).shape == (2, 2)
