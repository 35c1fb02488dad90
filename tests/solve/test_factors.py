"""Dimensions that are products in several ways: refined to common factors, or pinned with both ways as the reason."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from exactness import deviations
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import niwaki
from niwaki.solve.factorise import common_sizes, connected_rows
from niwaki.testing.models import random_plan


class Viewed(nn.Module):
    """One hidden dimension, viewed as outer x inner in several ways, each with work of its own on both factors."""

    def __init__(self, ways: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        width = ways[0][0] * ways[0][1]
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.ways = [list(way) for way in ways]
        self.outer = nn.ParameterList(torch.randn(outer, 1) for outer, _ in ways)
        self.inner = nn.ParameterList(torch.randn(1, inner) for _, inner in ways)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for (outer, inner), left, right in zip(self.ways, self.outer, self.inner, strict=True):
            y = (y.view(len(x), outer, inner) * left * right).tanh().reshape(len(x), -1)
        result: Tensor = self.last(y)
        return result


class Repeated(nn.Module):
    """Grouped queries: (2 heads x 3 times x 8) of the keys meet (6 x 8), which another view takes as (12 x 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.kv, self.groups, self.size, self.twelve, self.quarter = 2, 3, 8, 12, 4
        self.query, self.key, self.out = nn.Linear(5, 48), nn.Linear(5, 16), nn.Linear(48, 3)
        self.gate = nn.Parameter(torch.randn(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        keys = self.key(x).view(len(x), self.kv, 1, self.size).expand(-1, -1, self.groups, -1)
        y = self.query(x) * keys.reshape(len(x), -1)
        y = (y.view(len(x), self.twelve, self.quarter) * self.gate).reshape(len(x), -1)
        result: Tensor = self.out(y.tanh())
        return result


class Fused(nn.Module):
    """Two parts side by side, each a product in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = 4, 6, 8, 3
        self.first, self.second, self.out = nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(48, 3)
        self.gates = nn.ParameterList(torch.randn(*shape) for shape in ((4, 1), (1, 6), (8, 1), (1, 3)))

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, low = self.gates
        parts = [
            (linear(x).view(len(x), self.a, self.b) * left * right).reshape(len(x), -1)
            for linear in (self.first, self.second)
        ]
        y = torch.cat([(part.view(len(x), self.c, self.d) * top * low).reshape(len(x), -1) for part in parts], 1)
        result: Tensor = self.out(y.tanh())
        return result


def _holds(net: nn.Module, space: niwaki.SearchSpace, x: Tensor) -> None:
    for seed in range(4):
        plan = random_plan(space, np.random.default_rng(seed))
        found = deviations(net, plan, x)
        assert found["eval"] <= 1e-10
        assert found["train"] <= 1e-8
        assert space.cost(plan).params == sum(p.numel() for p in niwaki.cut(net, plan).parameters())


@pytest.mark.parametrize(
    ("ways", "factors"),
    [
        (ways, factors)
        for given, factors in (
            (((6, 8), (12, 4)), [6, 2, 4]),
            (((6, 8), (12, 4), (24, 2)), [6, 2, 2, 2]),
            (((4, 12), (24, 2), (8, 6)), [4, 2, 3, 2]),
        )
        for ways in itertools.permutations(given)
    ],
    ids=str,
)
def test_ways_that_nest(ways: Sequence[tuple[int, int]], factors: list[int]) -> None:
    torch.manual_seed(0)
    net, x = Viewed(ways), torch.randn(2, 5)
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [factors[0]]
    _holds(net, space, x)
    space = niwaki.search_space(net, x, inner=True)
    assert sorted(group.units for group in space.groups) == sorted(factors)
    _holds(net, space, x)


@pytest.mark.parametrize(
    ("ways", "units"),
    [(((3, 8), (8, 3)), []), (((8, 3), (3, 8)), []), (((6, 8), (8, 6)), [2]), (((16, 3), (12, 4)), [4])],
    ids=str,
)
def test_ways_without_common_factors(ways: Sequence[tuple[int, int]], units: list[int]) -> None:
    """3 x 8 and 8 x 3 have nothing in common, 6 x 8 and 8 x 6 only their halves."""
    torch.manual_seed(0)
    net, x = Viewed(ways), torch.randn(2, 5)
    for inner in (False, True):
        space = niwaki.search_space(net, x, inner=inner)
        assert [group.units for group in space.groups] == units
        (pin,) = [pin for pin in space.pins if (pin.parameter, pin.dim) == ("inner.0", 1)]
        assert pin.reason == "it is a product in two ways that have no common factors"
        assert pin.location is not None and pin.location.file.endswith("test_factors.py")
        _holds(net, space, x)


def test_repeats() -> None:
    torch.manual_seed(0)
    net, x = Repeated(), torch.randn(2, 5)
    for inner, units in ((False, [2]), (True, [2, 2, 3, 4])):
        space = niwaki.search_space(net, x, inner=inner)
        assert sorted(group.units for group in space.groups) == units
        _holds(net, space, x)


def test_parts_are_refined_one_by_one() -> None:
    torch.manual_seed(0)
    net, x = Fused(), torch.randn(2, 5)
    space = niwaki.search_space(net, x, inner=True)
    assert sorted(group.units for group in space.groups) == [2, 3, 4]
    _holds(net, space, x)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 4), min_size=2, max_size=5), st.data())
def test_common_sizes_are_found(sizes: list[int], data: st.DataObject) -> None:
    n = int(np.prod(sizes))
    columns, bounds = [], {1, n}
    for _ in range(data.draw(st.integers(1, 4))):
        first = data.draw(st.integers(0, len(sizes) - 1))
        last = data.draw(st.integers(first + 1, len(sizes)))
        inner, period = int(np.prod(sizes[last:])), int(np.prod(sizes[first:]))
        columns.append(1 + np.arange(n) // inner % (period // inner))
        bounds |= {inner, period}
    found = common_sizes(columns)
    assert found is not None
    assert {int(np.prod(found[i:])) for i in range(len(found) + 1)} == bounds


def test_rows_without_a_common_id_are_apart() -> None:
    table = np.array([[1, 5], [2, 6], [1, 7], [0, 0], [6, 0]])
    assert [block.tolist() for block in connected_rows(table)] == [[0, 2], [1, 4], [3]]
    many = np.arange(1, 201).reshape(100, 2)
    assert [len(block) for block in connected_rows(many)] == [100]
