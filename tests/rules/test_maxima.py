"""The largest of entries that cannot be negative does not miss what is removed, at zero; any other does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.testing.models import random_plan


class Gated(nn.Module):
    """Twelve channels behind ``activation``, weighed by something that is found from all of them."""

    def __init__(self, activation: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.activation, self.gate = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), activation, gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        return self.last(x * self.gate(x).sigmoid())


class Rounded(nn.Module):
    """A layer whose weights are rounded to a grid as fine as the largest of them asks for."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), scale

    def forward(self, x: Tensor) -> Tensor:
        w, grid = self.last.weight, self.scale(self.last.weight) / 127
        return F.conv2d(torch.relu(self.first(x)), w + ((w / grid).round() * grid - w).detach(), self.last.bias)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu in place, later": lambda x: F.relu_(x * 1.0).view_as(x),
    "relu6": F.relu6,
    "square": torch.square,
    "product with itself": lambda x: x * x,
    "squared relu": lambda x: F.relu(x) ** 2,
    "pooled": lambda x: F.avg_pool2d(F.max_pool2d(F.relu(x), 2, 1), 2, 1),
    "joined": lambda x: torch.cat([F.relu(x), x.abs()], 3).flip(3),
    "sum": lambda x: F.relu(x) + x.abs() * 0.5,
    "clamped": lambda x: x.clamp(0, 3),
    "dropped": nn.Sequential(nn.ReLU(), nn.Dropout(0.1)),
}
SIGNED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "leaky relu": F.leaky_relu,
    "nothing": lambda x: x,
    "relu and less": lambda x: F.relu(x) * -1.0,
    "difference": lambda x: F.relu(x) - x.abs() * 2,
    "written through a view": lambda x: [y := F.relu(x), y[:, :, 1:].mul_(-1.0)][0],
    "angle": lambda x: torch.fft.fft2(x).angle(),
    "pooled, divided by less than zero": lambda x: F.avg_pool2d(F.relu(x), 2, divisor_override=-3),
    "a little below": lambda x: (F.relu(x) * 1e-3).sub(1e-9) * (x != 0),
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda x: x.amax(1, True),
    "max and place": lambda x: x.max(1, keepdim=True)[0],
    "over everything": lambda x: x.amax((1, 2, 3), True),
}


def exact(net: nn.Module, space: niwaki.SearchSpace, x: Tensor) -> bool:
    rng = np.random.default_rng(0)
    return all(deviations(net, random_plan(space, rng, 0.3), x, train=False)["eval"] < 1e-10 for _ in range(3))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_largest_of_what_is_not_negative_misses_nothing(name: str) -> None:
    torch.manual_seed(0)
    for gate in GATES.values() if name == "relu" else [GATES["amax"]]:
        net, x = Gated(ACTIVATIONS[name], gate), torch.randn(2, 3, 8, 8)
        space = niwaki.search_space(net, x)
        assert space.num_units == 12, [pin.reason for pin in space.pins]
        assert exact(net, space, x)


@pytest.mark.parametrize("name", SIGNED)
def test_the_largest_of_what_may_be_negative_counts_its_entries(name: str) -> None:
    space = niwaki.search_space(Gated(SIGNED[name], GATES["amax"]), torch.randn(2, 3, 8, 8))
    assert not space.num_units
    assert any("amax.default depends on how many entries" in pin.reason for pin in space.pins)


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x.amin(1, True),
        lambda x: x.median(1, keepdim=True)[0],
        lambda x: (x + 1).amax(1, True),
        lambda x: x.max(1, keepdim=True)[1] * 0.1,
        lambda x: x.argmax(1, keepdim=True) * 0.1,
    ],
)
def test_other_extremes_stay_pinned(gate: Callable[[Tensor], Tensor]) -> None:
    assert not niwaki.search_space(Gated(torch.relu, gate), torch.randn(2, 3, 8, 8)).num_units


@pytest.mark.parametrize(
    "scale",
    [
        lambda w: w.abs().amax(),
        lambda w: w.abs().max(),
        lambda w: w.abs().amax(1, True),
        lambda w: w.square().amax().sqrt(),
    ],
    ids=["amax", "max", "of each channel", "root of squares"],
)
def test_a_grid_as_fine_as_the_largest_weight_asks_for_stays(scale: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, x = Rounded(scale), torch.randn(2, 3, 8, 8)
    space = niwaki.search_space(net, x)
    assert space.num_units == 12, [pin.reason for pin in space.pins]
    assert exact(net, space, x)
