"""HESSO-CRIC on structures: it keeps one that looks dispensable where it is, and without which nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki


class Branches(nn.Module):
    """Four terms. ``quiet`` reads what is large, with small weights or none: nearly all of the output is its own. The
    others read what is small, with large weights."""

    def __init__(self, quiet: nn.Module) -> None:
        super().__init__()
        self.quiet = quiet
        self.loud = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:  # [samples, 16]
        y: Tensor = self.quiet(10 * x[:, :4])
        for number, branch in enumerate(self.loud):
            y = y + branch(0.03 * x[:, 4 * number + 4 : 4 * number + 8])
        return y


def small_weights() -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    nn.init.orthogonal_(layer.weight, 0.1)
    return layer


QUIET: dict[str, Callable[[], nn.Module]] = {"small weights": small_weights, "no weights": lambda: nn.AvgPool1d(1)}


class Trained:
    """A network at the minimum of its loss, where no gradient says what anything is worth, and a method on it that is
    to erase one structure of four."""

    def __init__(self, quiet: str, kind: Callable[..., Any], **options: Any) -> None:
        torch.manual_seed(0)
        self.model = Branches(QUIET[quiet]()).double()
        self.x = torch.randn(128, 16, dtype=torch.float64)
        with torch.no_grad():
            for layer in self.model.loud:
                nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
            self.y = self.model(self.x)
        self.space = niwaki.search_space(self.model, self.x[:2], erase=True)
        units = {self.space.structures[g.structure].name: g.first for g in self.space.groups if g.structure is not None}
        self.unit = units["quiet"]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        budget = niwaki.Budget(units=self.space.num_units - 1)
        schedule = niwaki.Schedule(start=2, until=60)
        self.method = kind(self.space, self.optimizer, budget, schedule, remove="structures", window=3, **options)

    def loss(self) -> Tensor:
        """As a share of the variance of what is to be predicted."""
        return (self.model(self.x) - self.y).square().mean() / self.y.var()

    def train(self, steps: int = 120) -> Trained:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        return self

    @property
    def stays(self) -> bool:
        """Whether the quiet term does."""
        return bool(self.space.keep_of(self.method.plan())[self.unit])


@pytest.mark.parametrize("quiet", QUIET)
def test_a_structure_that_looks_dispensable_but_is_not(quiet: str) -> None:
    """Magnitudes and gradients say that it goes first, and no training repairs that; a cycle sees what it takes away
    with it, along the way."""
    hesso = Trained(quiet, niwaki.HESSO).train()
    assert not hesso.stays and hesso.loss().item() > 0.5
    cric = Trained(quiet, niwaki.CRIC, cycle=8, cycles=3, tolerance=0.0).train()
    assert cric.stays and cric.loss().item() < 1e-3
    for run in (hesso, cric):
        small = niwaki.cut(run.model, run.method.plan())
        assert run.method.progress.zero == 1 and torch.allclose(small(run.x), run.model(run.x), atol=1e-12)
