"""Small networks that are saved and loaded, and plans for them."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import niwaki
from niwaki.core.plan import Plan
from niwaki.io.tree import encode


class Net(nn.Module):
    """A convolutional network with a buffer of its own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x))))).mean((2, 3)))


class Tied(nn.Module):
    """An embedding whose weight is the output projection too."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 16)
        self.down = nn.Linear(16, 6)
        self.out = nn.Linear(6, 11, bias=False)
        if tie:
            self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.out(x + self.down(torch.relu(self.up(x))))


class Everything(nn.Module):
    """Its plans have an edit of every kind: norms whose weights and epsilons follow their width, a layer with a weight
    norm, and a size that the code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed = nn.Embedding(11, 12)
        self.norm1, self.norm2 = nn.RMSNorm(12), nn.RMSNorm(12, eps=1e-2)
        self.up, self.down = parametrizations.weight_norm(nn.Linear(12, 16)), nn.Linear(16, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h = self.up(self.norm1(x)).unflatten(-1, (self.heads, 4)).relu().flatten(-2)
        return self.out(self.norm2(x + self.down(h)))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.arange(10).reshape(2, 5)


def plan_for(model: nn.Module, inputs: Tensor, share: float = 0.5) -> Plan:
    space = niwaki.search_space(model, inputs)
    return niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(params=share))


def die_at(moment: int) -> None:
    """Kill this process at its disk operation number ``moment``."""

    left = [moment]

    def watch(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(watch)


def assert_same(mine: Any, theirs: Any) -> None:
    one, other = dict[str, Tensor](), dict[str, Tensor]()
    assert encode(mine, "x", one) == encode(theirs, "x", other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name
