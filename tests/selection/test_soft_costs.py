"""The cost of learnt gates: exact for masks, the prices as gradients, a budget as a loss with two sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, Overlap, conv_space, mlp_space, overlap_space
from small import Small, images
from torch import Tensor

from niwaki.core.space import SearchSpace
from niwaki.networks.small import ResNet
from niwaki.search import search_space
from niwaki.selection.budget import Budget
from niwaki.selection.soft_costs import budget_loss, soft_costs

MEASURES = ("macs", "params", "memory", "units")

SPACES = {
    "mlp": lambda: mlp_space(MLP(16, 40, 30)),
    "conv": lambda: conv_space(ConvNet(16, 24)),
    "overlap": lambda: overlap_space(Overlap()),
    "small": lambda: search_space(Small(), images()),
    "resnet": lambda: search_space(ResNet(3, 3, (8, 8), (6, 8)), images()),
}


def drawn(space: SearchSpace, seed: int) -> Tensor:
    return torch.rand(space.num_units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SPACES)
def test_masks_cost_what_the_cost_model_says(name: str) -> None:
    space = SPACES[name]()
    for seed in range(5):
        mask = drawn(space, seed) < 0.6
        cost = space.cost_of(mask.numpy())
        expected = [cost.macs, cost.params, cost.memory, int(mask.sum())]
        for dtype in (torch.float64, torch.float32):
            assert soft_costs(space.cost_model, mask.to(dtype), MEASURES).tolist() == expected


@pytest.mark.parametrize("name", SPACES)
def test_gradients_are_those_of_the_relaxed_cost(name: str) -> None:
    """A cost is linear in each gate, so that a difference between 0 and 1 is the derivative itself."""
    space = SPACES[name]()
    gates = drawn(space, 1).requires_grad_()
    for place, measure in enumerate(MEASURES):
        (found,) = torch.autograd.grad(soft_costs(space.cost_model, gates, MEASURES)[place], gates)
        for unit in range(0, space.num_units, 5):
            ends = gates.detach().repeat(2, 1)
            ends[0, unit], ends[1, unit] = 0.0, 1.0
            without, beside = (float(soft_costs(space.cost_model, end, (measure,))) for end in ends)
            assert float(found[unit]) == pytest.approx(beside - without, rel=1e-9, abs=1e-6), (measure, unit)


def test_the_largest_activations_have_a_gradient_too() -> None:
    space = search_space(Small(), images())
    gates = drawn(space, 2).requires_grad_()
    cost = soft_costs(space.cost_model, gates, ("activations",))
    (found,) = torch.autograd.grad(cost.sum(), gates)
    direction = torch.randn(space.num_units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [
        soft_costs(space.cost_model, gates.detach() + sign * 1e-6 * direction, ("activations",)) for sign in (1, -1)
    ]
    assert float(found @ direction) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-6)
    mask = drawn(space, 3) < 0.5
    assert (
        float(soft_costs(space.cost_model, mask.float(), ("activations",))) == space.cost_of(mask.numpy()).activations
    )


def test_a_gradient_has_the_type_of_its_gates() -> None:
    space = mlp_space(MLP(16, 40, 30))
    gates = torch.rand(space.num_units, dtype=torch.bfloat16, requires_grad=True)
    budget_loss(space.cost_model, gates, {"macs": 100.0}).backward()
    assert gates.grad is not None and gates.grad.dtype == torch.bfloat16 and bool((gates.grad > 0).any())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_loss_grows_on_both_sides_of_one_limit(share: float) -> None:
    space = conv_space(ConvNet(16, 24))
    limits = Budget(macs=share).absolute(space)
    for keep in (0.1, 0.5, 1.0):
        gates = torch.full((space.num_units,), keep, dtype=torch.float64, requires_grad=True)
        cost = float(soft_costs(space.cost_model, gates.detach(), ("macs",)))
        loss = budget_loss(space.cost_model, gates, limits)
        assert loss.item() == pytest.approx(abs(np.log(cost / limits["macs"])))
        (gradient,) = torch.autograd.grad(loss, gates)
        assert bool((gradient >= 0).all()) == (cost > limits["macs"])
        assert bool((gradient <= 0).all()) == (cost < limits["macs"])


def test_of_several_limits_all_that_are_exceeded_count() -> None:
    space = conv_space(ConvNet(16, 24))
    ones = torch.ones(space.num_units, dtype=torch.float64)
    macs, params = soft_costs(space.cost_model, ones, ("macs", "params")).tolist()

    def loss(macs_limit: float, params_limit: float) -> float:
        return float(budget_loss(space.cost_model, ones, {"macs": macs_limit, "params": params_limit}))

    assert loss(macs / 2, params / 4) == pytest.approx(np.log(2) + np.log(4))
    assert loss(macs / 2, params * 4) == pytest.approx(np.log(2)), "what is met does not outweigh what is not"
    assert loss(macs * 2, params * 4) == pytest.approx(np.log(2)), "it may grow until it meets the first"
    assert loss(macs, params * 4) == 0


def test_a_network_of_nothing_is_infinitely_far_but_finite() -> None:
    space = mlp_space(MLP(16, 40, 30))
    gates = torch.zeros(space.num_units, requires_grad=True)
    assert torch.isfinite(budget_loss(space.cost_model, gates, {"units": 10.0}))
