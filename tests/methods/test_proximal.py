"""Proximal maps against numerical minimisation, and the penalty of DHSPG against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from niwaki.methods.proximal import (
    dual_penalty,
    group_soft_threshold,
    half_space_projection,
    hard_threshold,
    left_half_space,
    soft_length,
)


def vector(seed: int, size: int = 4) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least(objective: object, starts: list[np.ndarray]) -> float:
    """The least value that a derivative-free and a quasi-Newton search find."""
    options = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-12, "fatol": 1e-15}
    found = [minimize(objective, start, method="Nelder-Mead", options=options).fun for start in starts]
    return float(min([*found, *(minimize(objective, start, method="BFGS").fun for start in starts)]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.5, 4.0])
def test_group_soft_threshold_is_the_prox_of_the_norm(seed: int, threshold: float) -> None:
    y = vector(seed)

    def objective(z: np.ndarray) -> float:
        return threshold * float(np.linalg.norm(z)) + float(((z - y.numpy()) ** 2).sum()) / 2

    z = group_soft_threshold(y, threshold)
    assert objective(z.numpy()) <= least(objective, [y.numpy(), 0.1 * y.numpy(), np.zeros(4)]) + 1e-9
    assert (z == 0).all() == (y.norm() <= threshold)
    if (z != 0).any():  # the first order condition: z + threshold z / ||z|| = y
        torch.testing.assert_close(z + threshold * z / z.norm(), y)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.3, 1.5, 4.0])
def test_hard_threshold_is_the_prox_of_counting(seed: int, threshold: float) -> None:
    y = vector(seed)

    def objective(z: Tensor) -> Tensor:
        return threshold**2 / 2 * (z != 0).any() + (z - y).square().sum() / 2

    z = hard_threshold(y, threshold)
    for other in (y, torch.zeros(4).double(), 0.9 * y, *(vector(100 + k) for k in range(20))):
        assert objective(z) <= objective(other) + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_the_prox_in_a_metric_of_several_learning_rates(seed: int) -> None:
    """soft_length gives the norm of argmin sum_a ||z_a - y_a||^2 / (2 t_a) + ||z||."""
    y, part = 2 * vector(seed, 6), np.array([0, 0, 1, 1, 1, 2])
    for t in (torch.tensor([0.1, 0.7, 2.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 9.0, 30.0])):
        t = t.double()

        def objective(z: np.ndarray, t: Tensor = t) -> float:
            return float(((z - y.numpy()) ** 2 / (2 * t.numpy()[part])).sum() + np.linalg.norm(z))

        square = torch.stack([y[torch.from_numpy(part == a)].square().sum() for a in range(3)])
        r = soft_length(square.unsqueeze(1), t).squeeze()
        z = y * r / (r + t[torch.from_numpy(part)]) if r > 0 else torch.zeros_like(y)
        torch.testing.assert_close(z.norm(), r, rtol=1e-9, atol=1e-12)
        assert objective(z.numpy()) <= least(objective, [y.numpy(), np.zeros(6), 0.1 * y.numpy()]) + 1e-9
        assert bool(r == 0) == bool((square / t.square()).sum() <= 1)


def test_one_learning_rate_is_the_group_soft_threshold() -> None:
    for seed in range(5):
        y, t = vector(seed), torch.tensor([0.8]).double()
        length = soft_length(y.square().sum().view(1, 1), t).squeeze()
        torch.testing.assert_close(length, group_soft_threshold(y, 0.8).norm())


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 0.95])
def test_the_half_space_projection(epsilon: float) -> None:
    """Inside the half-space nothing happens; outside zero is what is left, and zero is nearer to the trial than x is
    whenever the trial has turned by more than a right angle."""
    for seed in range(30):
        x, trial = vector(seed), vector(1000 + seed)
        inside = float(trial @ x) >= epsilon * float(x @ x)
        projected = half_space_projection(trial, x, epsilon)
        assert torch.equal(projected, trial if inside else torch.zeros_like(trial))
        assert bool(left_half_space(trial @ x, x @ x, epsilon)) != inside
        if trial @ x < 0:
            assert trial.norm() < (trial - x).norm()
    assert torch.equal(half_space_projection(x, x, epsilon), x)  # a step of zero length leaves nothing


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    penalty=st.floats(1e-6, 10),
    amplify=st.floats(1, 50),
    most=st.floats(1, 1e4),
    size=st.floats(1e-3, 1e3),
)
def test_the_penalty_of_dhspg_keeps_the_descent(
    seed: int, penalty: float, amplify: float, most: float, size: float
) -> None:
    """The step -(d + penalty_g x / ||x||) descends along d wherever <x, d> < 0; it shrinks x if its cap allows."""
    x, d = vector(seed), size * vector(seed + 1)
    d = d if x @ d < 0 else -d
    least, largest = float(-(x @ d) / x.norm()), float(-(d @ d) * x.norm() / (x @ d))
    found = float(dual_penalty(x @ d, x.norm(), d @ d, penalty, amplify, most))
    assert found < largest or largest - least < 1e-9 * largest
    step = -(d + found * x / x.norm())
    assert float(step @ d) < 1e-9 * float(d @ d)
    if penalty * most >= amplify * least:  # not capped
        assert float(step @ x) <= 1e-9 * float(x.norm() * d.norm())
    assert float(dual_penalty(-(x @ d), x.norm(), d @ d, penalty, amplify, most)) == pytest.approx(penalty)
