"""The group soft threshold in the metric of an optimizer: against numerical minimisation, and plain against fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from training import Training, adamw, sgd, two_rates

from niwaki.errors import MethodError
from niwaki.methods.metric_prox import FastProx, PlainProx, UnitLengths
from niwaki.methods.proximal import group_soft_threshold, metric_soft_threshold
from niwaki.per_unit.metric import metric, metric_of, metrics


def vector(seed: int, size: int = 4) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_it_is_the_prox_in_its_metric(seed: int, threshold: float, spread: float) -> None:
    y, h = vector(seed), torch.exp(spread * vector(100 + seed))
    z = metric_soft_threshold(y, h, threshold)

    def objective(at: np.ndarray) -> float:
        return threshold * float(np.linalg.norm(at)) + float((h.numpy() * (at - y.numpy()) ** 2).sum()) / 2

    options = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-12, "fatol": 1e-15}
    found = [
        minimize(objective, start, method="Nelder-Mead", options=options).fun for start in (y, z + 0.1, np.zeros(4))
    ]
    assert objective(z.numpy()) <= min(found) + 1e-9
    assert bool((z == 0).all()) == (float((h * y).norm()) <= threshold)
    if (z != 0).any():  # the first order condition
        torch.testing.assert_close(h * (z - y) + threshold * z / z.norm(), torch.zeros_like(y), atol=1e-9, rtol=0)


def test_where_all_entries_have_one_metric_it_is_the_plain_one() -> None:
    y = vector(0)
    for scale in (1e-4, 1.0, 50.0):
        z = metric_soft_threshold(y, torch.full_like(y, scale), 0.5 * scale)
        torch.testing.assert_close(z, group_soft_threshold(y, 0.5))
    assert torch.equal(metric_soft_threshold(y, torch.rand_like(y), 0.0), y)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "amsgrad": lambda parameters: adamw(parameters, amsgrad=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True),
    "radam": lambda parameters: torch.optim.RAdam(parameters, lr=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.05),
    "adadelta": lambda parameters: torch.optim.Adadelta(parameters, lr=0.5),
    "two rates": lambda parameters: two_rates(parameters, adamw),
}


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("penalty", [False, True])
def test_the_fast_path_does_what_the_plain_loop_does(net: str, name: str, penalty: bool) -> None:
    runs = [Training(net, OPTIMIZERS[name], dtype=torch.float64) for _ in range(2)]
    units = np.random.default_rng(0).random(runs[0].space.num_units) < 0.6
    units[-1] = True
    zeros = []

    def strength(lengths: UnitLengths) -> Tensor:
        share = torch.linspace(0.0, 1.3, len(units), dtype=lengths.norm.dtype)
        return share * lengths.weighted * (lengths.entries / lengths.entries.clamp(min=1))

    for run, kind in zip(runs, (PlainProx, FastProx), strict=True):
        run.step(3)
        prox = kind(run.space, run.optimizer, units, penalty)
        with torch.no_grad():
            before = run.parameters()
            zeros.append(prox.act(strength))
    mine, other = runs[1].parameters(), runs[0].parameters()
    for parameter in mine:
        torch.testing.assert_close(mine[parameter], other[parameter], rtol=1e-9, atol=1e-12)
    assert torch.equal(zeros[0], zeros[1]) and zeros[0].any() and not zeros[0][torch.from_numpy(~units)].any()
    inside = runs[1].driven(units)
    for parameter, value in mine.items():
        assert torch.equal(value[~inside[parameter]], before[parameter][~inside[parameter]])


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "adagrad"])
def test_its_fixed_point_minimises_loss_and_penalty(name: str) -> None:
    """Steps of the optimizer on a quadratic, each followed by its prox with h / lr, end where f + penalty * ||x|| is
    least, however differently the entries are scaled. A metric that grows, as Adagrad's, gets there as well."""
    torch.manual_seed(0)
    scale, target, penalty = torch.tensor([1.0, 9.0, 0.3], dtype=torch.float64), vector(3, 3), 0.4
    x = torch.nn.Parameter(target.clone())
    optimizer = {
        "sgd": lambda: torch.optim.SGD([x], lr=0.05),
        "adamw": lambda: torch.optim.AdamW([x], lr=2e-3, weight_decay=0, betas=(0.0, 0.999)),
        "rmsprop": lambda: torch.optim.RMSprop([x], lr=2e-3),
        "adagrad": lambda: torch.optim.Adagrad([x], lr=0.3),
    }[name]()
    for _ in range(1500):
        optimizer.zero_grad()
        (scale * (x - target).square()).sum().div(2).backward()
        optimizer.step()
        with torch.no_grad():
            h = metric_of(optimizer, optimizer.param_groups[0], x)
            h = torch.ones_like(x) if h is None else h
            x.copy_(metric_soft_threshold(x, h / optimizer.param_groups[0]["lr"], penalty))
    exact = metric_soft_threshold(target, scale, penalty)
    torch.testing.assert_close(x.detach(), exact, atol=2e-3, rtol=0)


def test_what_is_not_known_has_no_metric() -> None:
    x = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([x])
    assert metric_of(optimizer, optimizer.param_groups[0], x) is None, "before the first step"
    other = torch.optim.Adadelta([x])
    x.sum().backward()
    other.step()
    assert metric_of(other, other.param_groups[0], x) is None
    with pytest.raises(MethodError, match="The metric of SGD is known already. Register another class."):
        metric(torch.optim.SGD)(metrics()[torch.optim.SGD])


def test_the_metric_is_what_the_step_divides_by() -> None:
    """Without momentum, an optimizer's step is lr * gradient / h."""
    for build in (
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9)),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9), amsgrad=True),
        lambda p: torch.optim.NAdam(p, lr=0.1, betas=(0.0, 0.9)),
        lambda p: torch.optim.RAdam(p, lr=0.1, betas=(0.0, 0.9)),
        lambda p: torch.optim.RAdam(p, lr=0.1, betas=(0.0, 0.999)),
        lambda p: torch.optim.Adamax(p, lr=0.1, betas=(0.0, 0.9)),
        lambda p: torch.optim.RMSprop(p, lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ):
        x = torch.nn.Parameter(vector(1))
        optimizer = build([x])
        for seed in range(12):
            before = x.detach().clone()
            x.grad = vector(seed)
            optimizer.step()
        h = metric_of(optimizer, optimizer.param_groups[0], x)
        assert h is not None and bool((h > 0).all())
        torch.testing.assert_close(before - x.detach(), 0.1 * x.grad / h)
