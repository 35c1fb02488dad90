"""A network with terms that no parameters make, and trainings of it in which these may leave."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from niwaki.methods.method import Method

STEPS = 24
X = torch.randn(4, 3, 4, 4, dtype=torch.float64)


class Edge(nn.Module):
    """What is added of it has weights and has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.pool = nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.pool(x)
        return result


class Net(nn.Module):
    """A shortcut, a pooling and a branch; then two edges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.skip, self.largest = nn.Identity(), nn.MaxPool2d(3, 1, 1)
        self.edges, self.head = nn.ModuleList([Edge(), Edge()]), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.skip(x) + self.largest(x) + self.norm(self.branch(x)))
        x = torch.tanh(self.edges[0](x) + self.edges[1](x))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def hesso(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    schedule = niwaki.Schedule(start=3, until=STEPS - 4, periods=2)
    budget = more.pop("budget", niwaki.Budget(units=space.num_units - 3))
    return niwaki.HESSO(space, optimizer, budget, schedule, **{"remove": "structures", "window": 3} | more)


def cric(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    schedule = niwaki.Schedule(start=3, until=STEPS - 4, periods=2)
    budget = niwaki.Budget(units=space.num_units - 3)
    more = {"remove": "structures", "window": 2, "cycle": 3, "cycles": 2, "layers": 0.0} | more
    return niwaki.CRIC(space, optimizer, budget, schedule, **more)


def h2spg(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    budget = more.pop("budget", niwaki.Budget(units=space.num_units - 3))
    schedule = niwaki.Schedule(start=3, until=STEPS - 4)
    return niwaki.H2SPG(space, optimizer, budget, schedule, **{"window": 3, "epsilon": 0.5} | more)


METHODS: dict[str, Callable[..., Method]] = {
    "hesso": hesso,
    "cric": cric,
    "h2spg": h2spg,
    "h2spg by criteria": partial(h2spg, criteria=niwaki.HESSO.CRITERIA),
}


class Run:
    def __init__(self, kind: str | None, adam: bool = False, **more: Any) -> None:
        torch.manual_seed(0)
        self.model: Any = Net().double()
        self.space = niwaki.search_space(self.model, X, erase=True)
        make = torch.optim.AdamW if adam else torch.optim.SGD
        self.optimizer = make(self.model.parameters(), lr=0.02)
        self.method = None if kind is None else METHODS[kind](self.space, self.optimizer, **more)

    def loss(self, step: int) -> Tensor:
        x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step)).double()
        result: Tensor = (self.model(x) - x.mean((2, 3)).sin()).square().mean()
        return result

    def train(self, first: int = 0, last: int = STEPS) -> Run:
        for step in range(first, last):
            self.optimizer.zero_grad()
            self.loss(step).backward()
            self.optimizer.step()
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}

    @property
    def gates(self) -> dict[str, float]:
        assert self.method is not None and self.method.units.gates is not None
        gates = self.method.units.gates
        names = [self.space.structures[number].name for number in gates.structures]
        return dict(zip(names, gates.values.tolist(), strict=True))

    @property
    def erased(self) -> set[str]:
        assert self.method is not None
        kept = self.space.keep_of(self.method.plan())
        groups = [group for group in self.space.groups if group.structure is not None]
        return {self.space.structures[g.structure].name for g in groups if not kept[g.first]}  # type: ignore[index]

    def hooks(self) -> int:
        return sum(len(module._forward_hooks) for module in self.model.modules())


def agrees(run: Run) -> None:
    """The law: the network that was trained, its gates as they are, is the cut one, in eval and in train mode."""
    assert run.method is not None
    small: Any = niwaki.cut(run.model, run.method.plan())
    assert not any(module._forward_hooks for module in small.modules())
    for train in (False, True):
        run.model.train(train)
        small.train(train)
        with torch.no_grad():
            assert torch.allclose(small(X), run.model(X), atol=1e-12)


def only(space: niwaki.SearchSpace, names: set[str]) -> np.ndarray[Any, Any]:
    """Scores by which these structures go first, the other ones never, of 1 each."""
    values = np.ones(space.num_units)
    for group in space.groups:
        if group.structure is not None and space.structures[group.structure].name in names:
            values[group.first] = 1e-3
    return values


def unit_of(run: Run, name: str) -> int:
    numbers = {run.space.structures[g.structure].name: g.first for g in run.space.groups if g.structure is not None}
    return numbers[name]


EDGES = {"edges.0", "largest", "edges.1.pool"}
WITH_EDGES = EDGES | {"edges.0.layer", "edges.0.pool"}


def with_edges(**more: Any) -> Run:
    """HESSO that is told what goes: functions say themselves what terms are worth."""
    run = Run(None)
    budget = niwaki.Budget(units=run.space.num_units - len(WITH_EDGES))
    run.method = hesso(run.space, run.optimizer, criteria=lambda space: only(space, EDGES), budget=budget, **more)
    return run
