"""Code that knows the place of a layer, or how many there are: nothing is deleted from such lists; cuts are exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.testing.models import randomised

X = torch.randn(3, 6, dtype=torch.float64)


class Layer(nn.Module):
    """A residual layer, which knows its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        """[B, 6]."""
        branch = self.down(torch.relu(self.up(x)))
        return x + (branch if scale is None else scale * branch)  # type: ignore[no-any-return]


class Layers(nn.Module):
    """Four layers between two others; ``walk`` is what runs them."""

    def __init__(self, walk: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head, self.walk = nn.Linear(6, 6), nn.Linear(6, 2), walk
        self.layers = nn.ModuleList(Layer(number) for number in range(4))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.mix = nn.ParameterList(nn.Parameter(torch.randn(6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2]."""
        return self.head(self.walk(self, self.stem(x)))  # type: ignore[no-any-return]


def plainly(net: Layers, x: Tensor) -> Tensor:
    for layer in net.layers:
        x = layer(x)
    return x


def and_the_sum_of_all(net: Layers, x: Tensor) -> Tensor:
    total = x
    for layer in net.layers:
        x = layer(x)
        total = total * 0.5 + x
    return total


def scaled_by_place(net: Layers, x: Tensor) -> Tensor:
    for place, layer in enumerate(net.layers):
        x = layer(x) * 0.9**place
    return x


def told_its_place(net: Layers, x: Tensor) -> Tensor:
    for place, layer in enumerate(net.layers):
        x = layer(x, 0.9**place)
    return x


def between_layers(net: Layers, x: Tensor) -> Tensor:
    for place, layer in enumerate(net.layers):
        x = layer(x)
        if place < len(net.layers) - 1:
            x = torch.tanh(x)
    return x


def after_the_second(net: Layers, x: Tensor) -> Tensor:
    for place, layer in enumerate(net.layers):
        x = layer(x)
        x = torch.relu(x) if place == 1 else x
    return x


def after_one_of_its_number(net: Layers, x: Tensor) -> Tensor:
    for layer in net.layers:
        x = layer(x)
        x = torch.relu(x) if layer.number == 1 else x
    return x


def in_turn(net: Layers, x: Tensor) -> Tensor:
    for place, layer in enumerate(net.layers):
        x = layer(x.roll(1 if place % 2 else -1, 1))
    return x


def over_the_number(net: Layers, x: Tensor) -> Tensor:
    return plainly(net, x) / len(net.layers) ** 0.5


def mixed(net: Layers, x: Tensor) -> Tensor:
    made = []
    for layer in net.layers:
        x = layer(x)
        made.append(x)
    return sum(weight * x for weight, x in zip(net.mix, made, strict=False))  # type: ignore[return-value]


def long_skips(net: Layers, x: Tensor) -> Tensor:
    made: list[Tensor] = []
    for place, layer in enumerate(net.layers):
        if place >= len(net.layers) // 2:
            x = x + 0.5 * made[len(net.layers) - 1 - place]
        x = layer(x)
        made.append(x)
    return x


def from_the_end(net: Layers, x: Tensor) -> Tensor:
    """Without the first layer, and without all, it is the same network; without the last it is another."""
    made = [x]
    for layer in net.layers:
        made.append(layer(made[-1]))
    return torch.tanh(made[-1]) * made[-min(2, len(made))]


def noted(net: Layers, x: Tensor) -> Tensor:
    for place, layer in enumerate(net.layers):
        x = layer(x)
        net.seen.add_(place + 1.0)
    return x


COUNTING = (
    from_the_end,
    noted,
    and_the_sum_of_all,
    scaled_by_place,
    told_its_place,
    between_layers,
    after_the_second,
    after_one_of_its_number,
    in_turn,
    over_the_number,
    mixed,
    long_skips,
)


@pytest.mark.parametrize("walk", [plainly, *COUNTING], ids=lambda walk: walk.__name__)
def test_any_layers_can_leave(walk: Callable[[Layers, Tensor], Tensor]) -> None:
    """Entries are deleted only where code does nothing but call one after the other."""
    model = randomised(Layers(walk)).double().eval()
    space = niwaki.search_space(model, X, erase=True)
    own = {
        number: group.first
        for number, group in ((group.structure, group) for group in space.groups)
        if number is not None and {name.split(".")[0] for name in space.structures[number].parameters} == {"layers"}
    }
    branches = [number for number in own if len(space.structures[number].parameters) == 4]
    assert len(branches) == 4
    for gone in itertools.combinations(branches, 2):
        keep = np.ones(space.num_units, dtype=bool)
        keep[[own[number] for number in gone]] = False
        plan = space.plan(keep)
        outcome = niwaki.check(model, plan, X)
        assert outcome.holds, f"{gone}: {outcome}"
        (edit,) = plan.edits_of(EraseModules)
        assert bool(edit.entries) == (walk is plainly)
