"""Weights that are multiplied by a number which Python computes from their sizes: a cut rescales them, and is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import sqrt as c_sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
import niwaki.testing.models as kit
from niwaki.core.edits import Rescale


def _kaiming(weight: Tensor) -> int:
    return nn.init._calculate_fan_in_and_fan_out(weight)[0]


FACTORS: dict[str, Callable[[Tensor], float]] = {
    "root of a quotient": lambda w: math.sqrt(2 / (w.shape[1] * w.shape[2] * w.shape[3])),
    "quotient by a root": lambda w: 3.0 / math.sqrt(w.shape[1]),
    "power": lambda w: w.shape[1] ** -0.5,
    "power of a quotient": lambda w: (2 / w.shape[1]) ** 0.5,
    "quotient": lambda w: 2 / w.size(1),
    "products": lambda w: 2.0 * (w.shape[0] ** 0.25) * (1 / w.shape[1]) / 3,
    "entries of a row": lambda w: math.sqrt(2 / w[0].numel()),
    "torch's own fan": lambda w: math.sqrt(2 / _kaiming(w)),
    "times a size": lambda w: 0.1 * math.sqrt(w.shape[1]) * w.shape[1] ** -1,
}


class Equalised(nn.Module):
    """Convolutions whose weights are multiplied by a number that is computed from their sizes."""

    def __init__(self, factor: Callable[[Tensor], float], how: str = "weight") -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 2, 1)])
        self.factor, self.how = factor, how

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            factor = self.factor(layer.weight)
            bias = layer.bias * factor if self.how == "weight and bias" else layer.bias
            weight = factor * layer.weight if self.how == "from the left" else layer.weight * factor
            if self.how == "division":
                weight = layer.weight / factor
            x = F.leaky_relu(F.conv2d(x, weight, bias), 0.2)
            if self.how == "elsewhere too":
                x = x + factor
            if self.how == "raw weight too":
                x = x + layer.weight.square().sum()
        return x


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, "weight") for name in FACTORS),
        *(("root of a quotient", how) for how in ("from the left", "division", "weight and bias")),
    ],
)
def test_weights_take_up_factors_that_are_computed_from_sizes(name: str, how: str) -> None:
    net, x = kit.randomised(Equalised(FACTORS[name], how)).double().eval(), torch.randn(2, 3, 7, 7).double()
    space = niwaki.search_space(net, x)
    assert space.num_units == 20
    rng = np.random.default_rng(0)
    for _ in range(3):
        plan = kit.random_plan(space, rng)
        outcome = niwaki.check(net, plan, x)
        assert outcome.holds, outcome
        assert plan.edits_of(Rescale)


@pytest.mark.parametrize("how", ["elsewhere too", "raw weight too"])
def test_factors_and_weights_that_are_used_otherwise_too_hold_the_sizes(how: str) -> None:
    net, x = Equalised(FACTORS["root of a quotient"], how).eval(), torch.randn(2, 3, 7, 7)
    for rehearse in (True, False):
        space = niwaki.search_space(net, x, rehearse=rehearse)
        held = {pin.parameter for pin in space.pins if "part of the computed function" in pin.reason}
        assert "layers.1.weight" in held and not any(group.name == "layers.0" for group in space.groups)


@pytest.mark.parametrize(
    "factor", [lambda w: c_sqrt(2 / w.shape[1]), lambda w: 1.5 / w.shape[1]], ids=["root", "float on the left"]
)
def test_factors_that_are_not_followed_hold_the_sizes(factor: Callable[[Tensor], float]) -> None:
    """A C function, or a float on the left, computes with the bare value."""
    space = niwaki.search_space(Equalised(factor).eval(), torch.randn(2, 3, 7, 7))
    assert not any(group.name == "layers.0" for group in space.groups)
