"""Branches that are stacked, and then summed or averaged: the term of an absent one is zero, and a divisor stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.compose import composed
from niwaki.core.space import SearchSpace
from niwaki.program import erase
from niwaki.testing.erasing import check_erasing
from niwaki.testing.models import randomised

X = torch.randn(2, 3, 8, 8)


class Branches(nn.Module):
    """Three convolutions and a pooling, joined by ``join``."""

    def __init__(self, join: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.stem, self.head, self.join = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 2), join
        self.branches = nn.ModuleList(nn.Conv2d(6, 6, size, padding=size // 2) for size in (1, 3, 5))
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        made = [torch.relu(branch(h)) for branch in self.branches]
        return self.head(self.join([*made, self.pool(h)]).mean((2, 3)))


JOINS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "sum": lambda made: torch.stack(made).sum(0),
    "mean": lambda made: torch.stack(made).mean(0),
    "mean of the last": lambda made: torch.mean(torch.stack(made, -1), -1),
    "mean of the second": lambda made: torch.stack(made, 1).mean(dim=1, keepdim=True).squeeze(1),
    "both": lambda made: (lambda s: s.mean(0) * s.sum(dim=(0,)))(torch.stack(made)),
}


def erased(space: SearchSpace, *names: str) -> np.ndarray[Any, Any]:
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.structure is not None and space.structures[group.structure].name in names:
            keep[group.first] = False
    return keep


@pytest.mark.parametrize("name", JOINS)
def test_the_law(name: str) -> None:
    torch.manual_seed(0)
    report = check_erasing(Branches(JOINS[name]), X, plans=6, as_graph=True, least_erasable=4)
    assert report.erasable == report.listed == 4 and report.erased > 1


@pytest.mark.parametrize("name", JOINS)
def test_the_term_is_zero_and_the_divisor_stays(name: str) -> None:
    """By hand: zeros are stacked in place of the first and of the pooling."""
    torch.manual_seed(0)
    model, x = randomised(Branches(JOINS[name]).eval()).double(), X.double()
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    small = niwaki.cut(model, space.plan(erased(space, "branches.0", "pool")), as_graph=True, example_inputs=x)
    join = JOINS[name]
    model.join = lambda made: join([made[0] * 0, *made[1:3], made[3] * 0])
    assert torch.allclose(small.module()(x), model(x), atol=1e-12)
    assert sum(parameter.numel() for parameter in small.parameters()) == sum(
        parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("branches.0")
    )


def test_one_after_the_other() -> None:
    """Three of four leave in two cuts, and what is left is still a quarter."""
    torch.manual_seed(0)
    model, x = randomised(Branches(JOINS["mean"]).eval()).double(), X.double()
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    first = space.plan(erased(space, "branches.0"))
    small = niwaki.cut(model, first, as_graph=True, example_inputs=x)
    again = niwaki.search_space(small, erase=True)
    later = again.plan(erased(again, "branches.1", "pool"))
    both = niwaki.cut(model, composed(first, later), as_graph=True, example_inputs=x).module()(x)
    model.join = lambda made: made[2] / 4
    assert torch.allclose(both, model(x), atol=1e-12)
    assert torch.allclose(niwaki.cut(small, later).module()(x), model(x), atol=1e-12)


def test_a_stack_that_is_read_otherwise_is_no_sum() -> None:
    ways: list[Callable[[list[Tensor]], Tensor]] = [
        lambda made: torch.stack(made).amax(0),
        lambda made: torch.stack(made).sum((0, 1))[:, None].expand(-1, 6, -1, -1) * torch.ones(1, 6, 1, 1),
        lambda made: (lambda s: s.sum(0) + s[0])(torch.stack(made)),
    ]
    for way in ways:
        space = niwaki.search_space(Branches(way), X, erase=True)
        assert not [one for one in space.structures if one.name.startswith("branches.")], way


def test_a_divisor_that_follows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase, "_divide_as_before", lambda *_: None)
    with pytest.raises(AssertionError, match="which erases"):
        check_erasing(Branches(JOINS["mean"]), X, plans=2, as_graph=True)
