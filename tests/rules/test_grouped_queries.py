"""Attention in which several queries share a key: all numbers of heads, however the keys are copied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import niwaki
from niwaki.testing.models import random_plan


class Attention(nn.Module):
    """``heads`` queries for ``keys`` keys of ``size``, which ``copied`` makes as many."""

    def __init__(self, heads: int, keys: int, size: int, copied: Callable[[Attention, Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.keys, self.size, self.copied = heads, keys, size, copied
        self.q, self.k = nn.Linear(12, heads * size), nn.Linear(12, keys * size)
        self.v, self.o = nn.Linear(12, keys * size), nn.Linear(heads * size, 12)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q = self.q(x).view(rows, length, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).view(rows, length, self.keys, self.size).transpose(1, 2) for f in (self.k, self.v))
        y = scaled_dot_product_attention(q, self.copied(self, k), self.copied(self, v), is_causal=True)
        return self.o(y.transpose(1, 2).reshape(rows, length, self.heads * self.size))


def interleaved(self: Attention, x: Tensor) -> Tensor:
    return x.repeat_interleave(self.heads // self.keys, dim=1)


def interleaved_by_position(self: Attention, x: Tensor) -> Tensor:
    return torch.repeat_interleave(x, self.heads // self.keys, 1)


def interleaved_from_behind(self: Attention, x: Tensor) -> Tensor:
    return torch.repeat_interleave(x, dim=-3, repeats=self.heads // self.keys)


def expanded(self: Attention, x: Tensor) -> Tensor:
    rows, keys, length, size = x.shape
    times = self.heads // self.keys
    return x[:, :, None].expand(rows, keys, times, length, size).reshape(rows, keys * times, length, size)


NUMBERS = [(4, 2), (9, 3), (16, 4), (64, 8), (8, 2), (12, 4), (6, 2), (6, 3), (5, 5)]


@pytest.mark.parametrize("copied", [interleaved, interleaved_by_position, interleaved_from_behind, expanded])
@pytest.mark.parametrize(("heads", "keys"), NUMBERS)
def test_a_key_leaves_with_its_queries(heads: int, keys: int, copied: Callable[[Attention, Tensor], Tensor]) -> None:
    torch.manual_seed(heads)
    rows, length, size = (int(torch.randint(1, 5, ())) for _ in range(3))  # any of them may be a number of heads too
    net, x = Attention(heads, keys, size, copied), torch.randn(rows, length + 1, 12)
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [keys], [pin.reason for pin in space.pins]
    plan = random_plan(space, np.random.default_rng(0))
    assert deviations(net, plan, x, train=False)["eval"] < 1e-10
    small = niwaki.cut(net, plan)
    assert (small.heads, small.keys) == (heads * small.keys // keys, len(plan.kept[space.groups[0].name]))


class Copied(nn.Module):
    """Channels, each copied as often as a batch has rows, and as there are channels."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.first, self.last = times, nn.Linear(6, 3), nn.Linear(3 * times, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).repeat_interleave(self.times, -1))


@pytest.mark.parametrize("times", [1, 2, 3, 6])
def test_the_number_of_copies_is_no_other_dimension(times: int) -> None:
    net, x = Copied(times), torch.randn(times, 6)
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [3]
    assert deviations(net, random_plan(space, np.random.default_rng(0)), x, train=False)["eval"] < 1e-10
