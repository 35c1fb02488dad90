"""H2SPG on least squares with branches inside of branches, where the best valid choice of each size can be computed."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.dying import structure_units
from niwaki.errors import PlanError

TERMS = ("first", "second", "outer", "inner", "third")
PLACES = {"first": 0, "second": 1, "outer": 2, "third": 4}
SAMPLES = 200


class Tree(nn.Module):
    """first x0 + second x1 + outer (x2 + inner x3) + third x4: without ``outer`` neither x2 nor x3 counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.outer, self.inner = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [samples, 5, 3]
        y = self.first(x[:, 0]) + self.second(x[:, 1])
        y = y + self.outer(x[:, 2] + self.inner(x[:, 3]))
        result: Tensor = y + self.third(x[:, 4])
        return result


class Problem:
    """Targets that come from ``support`` alone, with a little noise."""

    def __init__(self, seed: int, support: tuple[str, ...]) -> None:
        torch.manual_seed(seed)
        self.x = torch.randn(SAMPLES, 5, 3, dtype=torch.float64)
        teacher, self.model = Tree().double(), Tree().double()
        with torch.no_grad():
            for name in TERMS:
                weight = nn.init.orthogonal_(teacher.get_submodule(name).weight)  # type: ignore[arg-type]
                weight *= float(name in support)
            self.y = teacher(self.x) + 0.01 * torch.randn(SAMPLES, 3, dtype=torch.float64)
        self.space = niwaki.search_space(self.model, self.x, erase=True, as_graph=True)
        self.within = {
            unit: {name for name in TERMS if f"{name}.weight" in self.space.structures[number].parameters}
            for number, unit in structure_units(self.space).items()
        }
        whole = {name: {name, "inner"} if name == "outer" else {name} for name in TERMS}
        self.units = {name: unit for name in TERMS for unit, inside in self.within.items() if inside == whole[name]}

    def keep(self, support: tuple[str, ...]) -> np.ndarray:
        """Without all structures, sums of terms among them, that have nothing of ``support``."""
        keep = np.ones(self.space.num_units, dtype=bool)
        keep[[unit for unit, names in self.within.items() if names and names.isdisjoint(support)]] = False
        return keep

    def least_loss(self, support: tuple[str, ...]) -> float:
        """Of all weights with this support: ``outer`` is square, so that its products are any weights."""
        used = [place for name, place in PLACES.items() if name in support]
        used += [3] if {"outer", "inner"} <= {*support} else []
        features = self.x[:, used].flatten(1).numpy()
        if not used:
            return float(self.y.square().mean())
        weights = np.linalg.lstsq(features, self.y.numpy(), rcond=None)[0]
        return float(np.square(features @ weights - self.y.numpy()).mean())

    def best(self, macs: float) -> set[str]:
        """The valid support of at most so many MACs that fits best, of all there are."""
        fits = {}
        for support in chain.from_iterable(combinations(TERMS, size) for size in range(len(TERMS) + 1)):
            try:
                cost = self.space.cost(self.space.plan(self.keep(support))).macs
            except PlanError:  # nothing would reach the output
                continue
            if cost <= macs:
                fits[support] = self.least_loss(support)
        return {*min(fits, key=lambda support: (round(fits[support], 9), len(support)))}

    def loss(self) -> Tensor:
        return (self.model(self.x) - self.y).square().mean()

    def train(self, steps: int, **options: float) -> niwaki.H2SPG:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2)
        schedule = niwaki.Schedule(start=1, until=steps - 100)  # while it learns: at the optimum directions are noise
        method = niwaki.H2SPG(self.space, optimizer, self.budget, schedule, **options)  # type: ignore[arg-type]
        self.losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            optimizer.step()
            self.losses.append(float(loss.detach()))
        return method

    budget: niwaki.Budget


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "support", [("first", "outer"), ("outer", "inner"), ("second", "third"), ("first", "outer", "inner"), ("third",)]
)
def test_the_best_valid_support_is_found(seed: int, support: tuple[str, ...]) -> None:
    problem = Problem(seed, support)
    macs = problem.space.cost(problem.space.plan(problem.keep(support))).macs
    assert problem.best(macs) == {*support}
    problem.budget = niwaki.Budget(macs=macs / problem.space.cost().macs)
    method = problem.train(300, epsilon=0.0, penalty=0.01)
    kept = problem.space.keep_of(method.plan())
    assert {name for name, unit in problem.units.items() if kept[unit]} == {*support}
    assert problem.losses[-1] < 2 * problem.least_loss(support)


def test_a_step_on_what_was_chosen_descends() -> None:
    """With the full gradient and a small rate: until something is projected the loss falls on every step, and what was
    chosen moves against its gradient wherever that does not shrink it anyway."""
    problem = Problem(3, ("first", "outer", "third"))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    method = niwaki.H2SPG(
        problem.space,
        optimizer,
        niwaki.Budget(macs=0.25),  # some that are needed have to go as well
        niwaki.Schedule(start=1, until=400),
        window=1,
        epsilon=0.0,
        penalty=0.0,
    )
    compared = 0
    for _ in range(100):
        optimizer.zero_grad()
        before = problem.loss()
        before.backward()
        weights = dict(problem.model.named_parameters())
        old = {name: weight.detach().clone() for name, weight in weights.items()}
        phase = method.progress.phase
        optimizer.step()
        if phase == "half-space" and all((weight != 0).any() for weight in weights.values()):
            assert problem.loss() < before
            for name, unit in problem.units.items():
                x, weight = old[f"{name}.weight"], weights[f"{name}.weight"]
                assert weight.grad is not None
                if method.units.leaving[unit] and float((x * weight.grad).sum()) < 0:
                    assert float(((weight.detach() - x) * weight.grad).sum()) < 0
                    compared += 1
    assert compared > 20
