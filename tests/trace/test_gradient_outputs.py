"""Networks whose output is a gradient: forces of an energy, the flow of a Hamiltonian, the score of a density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.testing.models import random_plan


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.glu(x, -1)


class Forces(nn.Module):
    """The slope of an energy; of a sum over hidden units where there is no last layer."""

    def __init__(self, activation: nn.Module, last: bool = True) -> None:
        super().__init__()
        width = 8 if isinstance(activation, Gated) else 16
        layers = [nn.Linear(4, 16), activation, nn.Linear(width, 14), activation]
        self.energy = nn.Sequential(*layers, *([nn.Linear(width - 2 if width == 16 else 7, 1)] if last else []))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.training)[0]


ACTIVATIONS = [
    nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.ReLU6(), nn.Softplus(), nn.Softsign(),
    nn.ELU(), nn.CELU(), nn.SELU(), nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.Mish(), nn.Hardswish(), nn.Hardtanh(),
    nn.Hardsigmoid(), nn.LogSigmoid(), nn.Softshrink(), nn.Hardshrink(), nn.Tanhshrink(),
    nn.Threshold(0.1, 0.0), Gated(),
]  # fmt: skip


SUMMED = [nn.Softplus(), nn.ELU(), nn.PReLU(), Gated()]  # softplus(0) is not zero: a sum over its units is not exact


@pytest.mark.parametrize(
    ("activation", "last"), [*((one, True) for one in ACTIVATIONS), *((one, False) for one in SUMMED)], ids=str
)
def test_hidden_units_of_a_slope_can_leave_exactly(activation: nn.Module, last: bool) -> None:
    net, x = Forces(activation, last), torch.randn(5, 4)
    space = niwaki.search_space(net, x)
    zero_at_zero = isinstance(activation, Gated) or bool(activation(torch.zeros(1)) == 0)
    hidden = 15 if isinstance(activation, Gated) else 30
    assert space.num_units == (hidden if last or zero_at_zero else 16)
    found = deviations(net, random_plan(space, np.random.default_rng(0)), x, train=False)
    assert found["eval"] < 1e-10 and found["float32"] < 1e-5
