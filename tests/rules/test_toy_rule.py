"""A new rule is one new file: the operator of a library, what is said of it, a sample, and a version that is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.rules import registry
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.testing import check_rule


@torch.library.custom_op("toy::rotated_sum", mutates_args=())
def rotated_sum(x: Tensor, y: Tensor) -> Tensor:
    """``x`` plus the rows of ``y`` in reverse order."""
    return x + y.flip(0)


@rotated_sum.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


def summed(call: Call) -> Label:
    """Row i of one argument meets the last row but i of the other."""
    x, y = call["x"], call["y"]
    call.equate(x.axes[0], y.axes[0].take(slice(None, None, -1)))
    call.equate(x.axes[1], y.axes[1])
    return call.label(x.axes, [a and b for a, b in zip(x.zero, y.zero, strict=True)], x.weight and y.weight)


def in_order(call: Call) -> Label:
    """Wrong: row i meets row i."""
    x, y = call["x"], call["y"]
    call.equate(x.axes[0], y.axes[0])
    call.equate(x.axes[1], y.axes[1])
    return call.label(x.axes, [a and b for a, b in zip(x.zero, y.zero, strict=True)], x.weight and y.weight)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6, 5))

    def forward(self) -> Tensor:
        return torch.ops.toy.rotated_sum(self.x, self.y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.ops.toy.rotated_sum(self.one(x).T, self.two(x).T).T)


@pytest.fixture
def known() -> Iterator[None]:
    registry.named("toy::rotated_sum")(summed)
    yield
    del registry.NAMED["toy::rotated_sum"]


def test_without_a_rule_everything_that_it_touches_is_pinned() -> None:
    space = niwaki.search_space(Net(), torch.randn(3, 4))
    assert not space.groups
    assert any("niwaki has no rule for the operator toy.rotated_sum" in pin.reason for pin in space.pins)


def test_the_rule_keeps_the_law_and_its_mutant_does_not(known: None) -> None:
    sample = registry.Sample("two", Two)
    report = check_rule(summed, sample)
    assert report.called and report.lawful and report.units == 11
    assert not check_rule(summed, sample, instead=in_order).lawful


def test_a_network_with_the_operator_is_cut_exactly(known: None) -> None:
    net, x = Net(), torch.randn(3, 4)
    space = niwaki.search_space(net, x)
    (group,) = space.groups
    assert {piece.tensor: piece.index[0].tolist() for piece in group.slices} == {
        "one.weight": [0],
        "one.bias": [0],
        "two.weight": [7],
        "two.bias": [7],
        "last.weight": [0],
    }
    plan = space.plan([True, False, True, False, True, True, True, True])
    assert niwaki.check(net, plan, x).holds
