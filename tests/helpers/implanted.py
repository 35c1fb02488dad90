"""A network for implants, and random plans that keep, implant or remove each unit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.plan import Plan
from niwaki.implants import ImplantLayers
from niwaki.implants.hap import planned_with


class Block(nn.Module):
    """A residual block of kernels of 5 and 3, with a 1x1 projection beside."""

    def __init__(self, channels: int, hidden: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 5, stride, 2 * dilation, dilation)
        self.norm = nn.BatchNorm2d(hidden)
        self.second = nn.Conv2d(hidden, channels, 3, padding="same", bias=False)
        self.out = nn.BatchNorm2d(channels)
        self.beside = nn.Conv2d(channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.beside(x) + self.out(self.second(self.norm(self.first(x)).relu()))).relu()


class Blocks(nn.Module):
    """A stem, a block of stride 1, one of stride 2 and dilation 2, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.blocks = nn.Sequential(Block(10, 12, 1), Block(10, 14, 2, 2))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """Attention and a hidden layer before a narrower one, all of linear layers."""

    def __init__(self, width: int = 24, heads: int = 4, hidden: int = 40) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.up, self.middle, self.down = nn.Linear(width, hidden), nn.Linear(hidden, 30, bias=False), nn.Linear(30, 5)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.mix(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.down(self.middle(self.up(x).relu()).relu())


def tokens(number: int = 3) -> Tensor:
    """Inputs of `Attention`, in float64."""
    return torch.randn(number, 6, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def attention_space(rank: int = 3) -> tuple[nn.Module, ImplantLayers]:
    """A network and the linear layers of it that can have implants."""
    network = randomised(Attention())
    return network, ImplantLayers.of(niwaki.search_space(network, tokens()), rank)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """``network`` in float64 and eval mode, with random statistics of its norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.double().state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else 0.3 * drawn)
    return network.eval()


def random_plan(layers: ImplantLayers, seed: int) -> Plan:
    """Each unit is kept, implanted or removed at random; of each group, one stays as it is and one does not."""
    space, rng = layers.space, np.random.default_rng(seed)
    state = rng.integers(0, 3, space.num_units)
    state[[group.first for group in space.groups]] = 0
    state[[group.first + 1 for group in space.groups if group.units > 1 and layers.can[group.first]]] = 1
    state[(state == 1) & ~layers.can] = 0
    return planned_with(layers, state < 2, state == 1, seed=seed)


def images(number: int = 2) -> Tensor:
    """Images for `Blocks`, in float64."""
    return torch.randn(number, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def blocks_space() -> tuple[nn.Module, ImplantLayers]:
    """A network and the layers of it that can have implants."""
    network = randomised(Blocks())
    return network, ImplantLayers.of(niwaki.search_space(network, images()))


class Residual(nn.Module):
    """A stream of four blocks that can be erased, the second of which leaves its list when it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Branch() for _ in range(4))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Branch(nn.Module):
    """What is added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())
