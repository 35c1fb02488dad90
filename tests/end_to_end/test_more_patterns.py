"""Patterns of networks that neither the zoos nor the random ones have: exact, or refused with a reason that says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exactness import deviations
from patterns import Pattern, do, exact_or_refused, images, of
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.testing.models import random_plan


class Calls(nn.Module):
    """A function of a module and its inputs, with what it is given as parts."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *given: Any) -> Tensor:
        return self.function(self, *given)


def unflattened(self: Any, x: Tensor) -> Tensor:
    """As many heads as positions in a head."""
    q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
    return self.head(((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))


class PackedSequences(nn.Module):
    """Sequences of different lengths, packed."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.start, self.head = nn.Linear(3, 6), nn.Linear(10, 2)
        self.rnn = kind(6, 5, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.start(x), lengths, batch_first=True, enforce_sorted=False)
        made, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(made).sum(1)


def lengths() -> Any:
    return torch.randn(3, 6, 3), torch.tensor([6, 3, 4])


def unpooled(x: Tensor) -> Tensor:
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y.sqrt(), places, 2)


class Transformer(nn.Module):
    """A spatial transformer: where to look is found by a network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.Conv2d(8, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 6))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(x).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


class Neighbours(nn.Module):
    """Messages along the edges of a sparse graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        ones = torch.ones(edges.shape[1], dtype=x.dtype)
        graph = torch.sparse_coo_tensor(edges, ones, (len(x), len(x)))
        h = torch.relu(torch.sparse.mm(graph, self.a(x)))
        return self.head(torch.relu(torch.sparse.mm(graph, self.b(h))))


def graph() -> Any:
    return torch.randn(5, 3), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])


def refreshed(x: Tensor) -> Tensor:
    """What is there is written over zeros that were made by `full`."""
    y = torch.full(x.shape, 0.0, dtype=x.dtype)
    y[:, :, 1:] = x[:, :, :-1]
    return y


def every_pair(x: Tensor) -> Tensor:
    """Bilinear pooling: all products of two channels, on their own scale."""
    y = x.flatten(2)
    pairs = ((y @ y.transpose(1, 2)) / y.shape[2]).flatten(1)
    return F.normalize(pairs.sign() * (pairs.abs() + 1e-5).sqrt())[:, :, None, None]


def turned(self: Any, x: Tensor) -> Tensor:
    """Features are multiplied by a matrix that is found from them, near the identity."""
    x = torch.relu(self.first(x))
    matrix = self.found(x.amax(1)).view(-1, self.k, self.k) + torch.eye(self.k, dtype=x.dtype)
    return self.head(x @ matrix)


def turning() -> nn.Module:
    found = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 36))
    return Calls(turned, k=6, first=nn.Linear(3, 6), found=found, head=nn.Linear(6, 2))


def depthwise(self: Any, x: Tensor) -> Tensor:
    """A depthwise layer whose weight is computed, and arranged by the number of groups."""
    x = torch.relu(self.first(x))
    channels = x.size(1)
    weight = (self.inner.weight.flatten(1) @ self.matrix).view(channels, channels // self.inner.groups, 3, 3)
    return self.last(torch.relu(F.conv2d(x, weight, padding=1, groups=channels))).mean((2, 3))


def computed_depthwise() -> nn.Module:
    inner = nn.Conv2d(10, 10, 3, groups=10, bias=False)
    matrix = nn.Parameter(torch.randn(9, 9))
    return Calls(depthwise, first=nn.Conv2d(3, 10, 3), inner=inner, matrix=matrix, last=nn.Conv2d(10, 4, 1))


class Equalised(nn.Conv2d):
    """A convolution whose weight is scaled by what reaches an output."""

    def __init__(self, inputs: int, outputs: int, fan_in: Callable[[Tensor], Any]) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.fan_in = fan_in

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * math.sqrt(2 / self.fan_in(self.weight)), self.bias, padding=self.padding)


def equalised(fan_in: Callable[[Tensor], Any]) -> Pattern:
    def build() -> tuple[nn.Module, Any]:
        layers = Equalised(3, 8, fan_in), nn.LeakyReLU(0.2), Equalised(8, 4, fan_in)
        return nn.Sequential(*layers), torch.randn(2, 3, 6, 6)

    return Pattern(build, least=8)


PATTERNS: dict[str, Pattern] = {
    "equalised, by the entries of an output": equalised(lambda w: w[0].numel()),
    "equalised, by sizes": equalised(lambda w: w.shape[1] * w.shape[2] * w.shape[3]),
    "equalised, by torch": equalised(lambda w: nn.init._calculate_fan_in_and_fan_out(w)[0]),
    "depthwise weights that are computed": Pattern(lambda: (computed_depthwise(), torch.randn(2, 3, 6, 6)), least=13),
    "unflatten into as many heads as positions": Pattern(
        of(lambda: Calls(unflattened, heads=4, qkv=nn.Linear(3, 48), head=nn.Linear(16, 2))), least=4
    ),
    "packed sequences, gru": Pattern(of(lambda: PackedSequences(nn.GRU), lengths), least=11),
    "packed sequences, lstm": Pattern(of(lambda: PackedSequences(nn.LSTM), lengths), least=11),
    "circular padding": Pattern(images(lambda: nn.Conv2d(8, 8, 3, padding=(0, 1), padding_mode="circular")), least=16),
    "circular padding of one side": Pattern(do(lambda x: F.pad(x, (2, 1, 0, 0), mode="circular")), least=8),
    "unpooling": Pattern(do(unpooled), least=8),
    "spatial transformer": Pattern(images(Transformer), least=13),
    "rotated images": Pattern(do(lambda x: torch.rot90(x, 1, (2, 3)) * x), least=8),
    "logsigmoid": Pattern(do(F.logsigmoid), least=8),
    "sparse times dense": Pattern(of(Neighbours, graph), least=15),
    "written over full": Pattern(do(refreshed), least=8),
    "every pair of channels": Pattern(do(every_pair, out=64), least=8),
    "features turned by a matrix": Pattern(of(turning), least=15),
    "fake quantisation": Pattern(do(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)), least=8),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_exact_or_refused(name: str) -> None:
    exact_or_refused(name, PATTERNS[name])


def test_the_graph_keeps_a_scale_by_the_fan_in() -> None:
    net, x = equalised(lambda w: w[0].numel()).build()
    space = niwaki.search_space(net, x, as_graph=True)
    assert space.num_units == 8
    plan = random_plan(space, np.random.default_rng(0))
    assert deviations(space.model, plan, x, train=False)["eval"] < 1e-10
