"""HSPG, AdaHSPG+ and DHSPG on group-sparse least squares, against an independent solver and the known support.

1 / (2 n) ||X w - y||^2 + penalty * sum over groups ||w_g||
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from handmade import handmade
from scipy.optimize import minimize
from torch import Tensor, nn

from niwaki.methods import DHSPG, HSPG, AdaHSPG, Schedule
from niwaki.methods.method import Method
from niwaki.methods.proximal import group_soft_threshold
from niwaki.selection.budget import Budget

GROUPS, SIZE, SAMPLES, PENALTY = 10, 3, 80, 0.1
SUPPORT = np.array([0, 3, 7])


class Sum(nn.Module):
    """The prediction is a sum over groups of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(GROUPS, SIZE, dtype=torch.float64) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum((1, 2))


@dataclass
class Problem:
    """Data of a known support with a little noise, and a model to fit."""

    seed: int
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    model: Sum = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.x = torch.randn(SAMPLES, GROUPS, SIZE, dtype=torch.float64)
        truth = torch.zeros(GROUPS, SIZE, dtype=torch.float64)
        truth[SUPPORT] = torch.randn(len(SUPPORT), SIZE, dtype=torch.float64).sign() + 0.3
        self.y = (self.x * truth).sum((1, 2)) + 0.1 * torch.randn(SAMPLES, dtype=torch.float64)
        self.model = Sum()

    def loss(self, rows: Tensor | slice = slice(None)) -> Tensor:
        return (self.model(self.x[rows]) - self.y[rows]).square().mean() / 2

    def objective(self) -> float:
        return float(self.loss().detach() + PENALTY * self.model.weight.detach().norm(dim=1).sum())

    def gradient(self) -> Tensor:
        return torch.autograd.grad(self.loss(), self.model.weight)[0]

    def mapping(self, step: float = 0.1) -> float:
        """The norm of the generalised gradient (w - prox(w - step * gradient)) / step: 0 at minima only."""
        w, moved = self.model.weight.detach(), self.model.weight.detach() - step * self.gradient()
        return float((w - torch.stack([group_soft_threshold(row, step * PENALTY) for row in moved])).norm() / step)

    def support(self) -> list[int]:
        return np.flatnonzero((self.model.weight != 0).any(1).numpy()).tolist()

    def train(
        self, kind: Callable[..., Method], steps: int, batch: int = SAMPLES, lr: float = 0.1, **options: Any
    ) -> list[list[int]]:
        """The support after each step."""
        space = handmade(self.model, {"g": (GROUPS, [("weight", 0, 0, 1, True, True)])}, [(1.0, [("weight", 0)])])
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 if batch == SAMPLES else 0.02, steps)
        schedule = options.pop("schedule", Schedule(start=steps // 4, until=steps + 1, periods=20))
        self.method = kind(space, optimizer, options.pop("budget", None), schedule, **options)
        draw, supports = torch.Generator().manual_seed(self.seed), []
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(torch.randperm(SAMPLES, generator=draw)[:batch]).backward()
            optimizer.step()
            scheduler.step()
            supports.append(self.support())
        return supports


def lower_bound(problem: Problem) -> float:
    """The dual problem, solved by SciPy's SLSQP: no prox, no support, and no value above the primal minimum.

    max over v  (||y||^2 - ||y - v||^2) / (2 n)   subject to   ||X_g' v|| / n <= penalty   for each group g
    """
    x, y = problem.x.numpy(), problem.y.numpy()
    columns = np.swapaxes(x, 0, 1)  # [groups, samples, size]
    found = minimize(
        lambda v: ((y - v) ** 2).sum() / (2 * SAMPLES),
        np.zeros(SAMPLES),
        jac=lambda v: (v - y) / SAMPLES,
        constraints={
            "type": "ineq",
            "fun": lambda v: PENALTY**2 - ((np.einsum("gns,n->gs", columns, v) / SAMPLES) ** 2).sum(1),
            "jac": lambda v: -2 * np.einsum("gns,gs->gn", columns, np.einsum("gns,n->gs", columns, v)) / SAMPLES**2,
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert found.success, found.message
    return float((y**2).sum() / (2 * SAMPLES) - found.fun)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "options"), [(HSPG, {"epsilon": 0.1}), (AdaHSPG, {})], ids=["hspg", "adahspg"])
def test_the_minimum_of_the_group_lasso(kind: Callable[..., Method], options: dict[str, Any], seed: int) -> None:
    problem = Problem(seed)
    before, least = problem.mapping(), lower_bound(problem)
    supports = problem.train(kind, 700, penalty=PENALTY, **options)
    assert problem.objective() == pytest.approx(least, rel=1e-6)
    assert problem.mapping() < 1e-5 * before
    assert supports[-1] == SUPPORT.tolist()
    assert all(support == supports[-1] for support in supports[len(supports) // 2 :])  # found early, and kept


@pytest.mark.parametrize(("kind", "options"), [(HSPG, {"epsilon": 0.1}), (AdaHSPG, {})], ids=["hspg", "adahspg"])
def test_the_generalised_gradient_falls_to_the_noise(kind: Callable[..., Method], options: dict[str, Any]) -> None:
    """With mini-batches and a falling rate: the smaller the last rate, the nearer."""
    problem = Problem(2)
    before, least = problem.mapping(), lower_bound(problem)
    problem.train(kind, 800, batch=16, penalty=PENALTY, **options)
    assert problem.mapping() < 0.02 * before
    assert problem.objective() <= 1.01 * least
    assert problem.support() == SUPPORT.tolist()


@pytest.mark.parametrize("compare", ["group", "space"])
@pytest.mark.parametrize("batch", [SAMPLES, 16])
def test_dhspg_finds_the_support(batch: int, compare: str) -> None:
    problem = Problem(3)
    schedule = Schedule(start=60, until=400)
    options = {"schedule": schedule, "penalty": 0.02, "epsilon": 0.5, "tolerance": 0.0, "compare": compare}
    supports = problem.train(DHSPG, 700, batch, budget=Budget(units=len(SUPPORT)), **options)
    # With exact gradients <x, d> soon leaves no room between shrinking and descending: what is left goes at `until`.
    assert (
        problem.method.selector.ended_at == schedule.until
        if batch == SAMPLES
        else problem.method.selector.ended_at < schedule.until
    )
    assert problem.support() == SUPPORT.tolist()
    assert all(set(after) <= set(before) for before, after in zip(supports[60:], supports[61:], strict=False))
    chosen = problem.x[:, SUPPORT].flatten(1).numpy()
    exact, (left, *_) = (result for result in np.linalg.lstsq(chosen, problem.y.numpy())[:2])
    found = problem.model.weight.detach()[SUPPORT].flatten().numpy()
    if batch == SAMPLES:
        np.testing.assert_allclose(found, exact, rtol=1e-6)
        assert float(problem.loss().detach()) == pytest.approx(left / (2 * SAMPLES), rel=1e-6)
    else:  # the gradient of what is left falls to the noise
        assert float(problem.gradient()[SUPPORT].norm()) < 0.02


def test_a_half_space_step_of_dhspg_descends() -> None:
    """With the full gradient and a small step the loss falls on every step until a unit is projected."""
    problem = Problem(4)
    space = handmade(problem.model, {"g": (GROUPS, [("weight", 0, 0, 1, True, True)])}, [(1.0, [("weight", 0)])])
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    method = DHSPG(space, optimizer, Budget(units=3), Schedule(start=1, until=200), window=1, epsilon=0.0, penalty=0.0)
    compared = 0
    for _ in range(100):
        optimizer.zero_grad()
        before = problem.loss()
        before.backward()
        x, d = problem.model.weight.detach().clone(), problem.gradient()
        phase = method.progress.phase
        optimizer.step()
        if phase == "half-space" and method.progress.phase != "done":
            opposed = (
                method.selector.choice.units & ((x * d).sum(1) < 0).numpy() & (problem.model.weight != 0).any(1).numpy()
            )
            step = problem.model.weight.detach() - x
            assert ((step * d).sum(1)[opposed] < 0).all()
            compared += int(opposed.sum())
            if (problem.model.weight != 0).any(1).all():
                assert problem.loss() < before
    assert compared > 20
