"""The projected steps of Auto-Train-Once on a convex problem: the generalised gradient mapping falls like 1 / T.

    G(x) = (x - prox(x - lr * gradient)) / lr,    where prox is that of lr * penalty * (sum of the norms of all units)

It is zero at the minimum of loss + penalty, and nowhere else. A step from x goes to x - lr * G(x). Each lowers the
objective by at least lr / 2 * ||G||^2 if lr is at most 1 / L, so that the mean of ||G||^2 over T steps is at most
2 (F(first) - F(minimum)) / (lr T). With noise of variance s^2 in the gradient of a batch of b, s^2 / b remains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.methods.metric_prox import FastProx

PENALTY = 0.05


class Convex:
    """Least squares in the first layer of a network whose other layer does not learn, with a penalty on its units."""

    def __init__(self, build: Any, batch: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.Linear(12, 12, bias=False)).double()
        self.x = torch.randn(400, 6, dtype=torch.float64)
        with torch.no_grad():
            self.model[1].weight.copy_(torch.eye(12))
        true = torch.randn(12, 6, dtype=torch.float64) * (torch.arange(12) < 5)[:, None]
        self.y = self.x @ true.T + 0.3 * torch.randn(400, 12, dtype=torch.float64)
        self.weight = self.model[0].weight
        self.rate = 1 / float(torch.linalg.eigvalsh(self.x.T @ self.x / len(self.x))[-1])  # 1 / L
        self.optimizer = build([self.weight, self.model[1].weight], self.rate)
        self.model[1].weight.requires_grad_(False)
        space = niwaki.search_space(self.model, self.x[:1])
        self.prox = FastProx(space, self.optimizer, np.ones(space.num_units, dtype=bool), penalty=True)
        self.batch, self.draw = batch, torch.Generator().manual_seed(1)

    def objective(self) -> float:
        with torch.no_grad():
            loss = (self.model(self.x) - self.y).square().sum(1).mean() / 2
            return float(loss + PENALTY * self.weight.norm(dim=1).sum())

    def mapping(self) -> float:
        """||G||^2 of all examples, where no optimizer scales."""
        w = self.weight.detach()
        gradient = (self.x @ w.T - self.y).T @ self.x / len(self.x)
        y = w - self.rate * gradient
        z = y * (1 - self.rate * PENALTY / y.norm(dim=1, keepdim=True)).clamp(min=0)
        return float(((w - z) / self.rate).square().sum())

    @torch.no_grad()
    def step(self) -> Tensor:
        """What the step subtracted."""
        rows = slice(None) if self.batch is None else torch.randint(400, (self.batch,), generator=self.draw)
        before = self.weight.clone()
        with torch.enable_grad():
            self.optimizer.zero_grad()
            loss: Tensor = (self.model(self.x[rows]) - self.y[rows]).square().sum(1).mean() / 2
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.prox.act(lambda lengths: torch.full_like(lengths.norm, PENALTY))
        return before - self.weight


def sgd(parameters: list[Tensor], rate: float, share: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=share * rate)


def adagrad(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(parameters, lr=1.0)


def test_each_step_lowers_the_objective_and_the_mapping_falls_like_one_over_t() -> None:
    run = Convex(sgd)
    squares, values = [], [run.objective()]
    for _ in range(300):
        expected = run.mapping()
        squares.append(float((run.step() / run.rate).square().sum()))
        values.append(run.objective())
        assert squares[-1] == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert values[-1] <= values[-2] - run.rate / 2 * squares[-1] + 1e-12
    for steps in (10, 30, 100, 300):
        assert np.mean(squares[:steps]) <= 2 * (values[0] - values[-1]) / (run.rate * steps) + 1e-12
    assert squares[-1] < 1e-12 * squares[0]
    assert bool((run.weight[5:] == 0).all()) and not bool((run.weight[:5] == 0).all(dim=1).any())


def test_the_step_in_the_metric_of_an_adaptive_optimizer_comes_to_the_same_minimum() -> None:
    plain, adaptive = Convex(sgd), Convex(adagrad)
    first = adaptive.mapping()
    for _ in range(300):
        plain.step()
    for _ in range(100):
        adaptive.step()
    assert adaptive.mapping() < 1e-12 * first
    torch.testing.assert_close(adaptive.weight, plain.weight, atol=1e-6, rtol=0)
    assert bool((adaptive.weight[5:] == 0).all())


def test_with_noise_it_falls_to_a_floor_that_shrinks_with_the_batch() -> None:
    floors = []
    for batch in (4, 64):
        run = Convex(lambda parameters, rate: sgd(parameters, rate, 0.1), batch)
        early = np.mean([(run.step(), run.mapping())[1] for _ in range(10)])
        for _ in range(100):
            run.step()
        floors.append(np.mean([(run.step(), run.mapping())[1] for _ in range(200)]))
        assert floors[-1] < 0.05 * early
    assert 8 < floors[0] / floors[1] < 32, "sixteen times the batch, a sixteenth of the floor"
