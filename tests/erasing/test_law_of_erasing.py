"""Erasing is exact: random valid sets of structures, alone and with random widths, in networks of every kind.

`python -m benchmarks.erasing law --plans 200` is the long version.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.erasing.networks import NETWORKS
from niwaki.erasing.passing import Passing
from niwaki.program import erase
from niwaki.testing import check_erasing


@pytest.mark.parametrize("name", NETWORKS)
def test_of_programs(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name].build()
    found = check_erasing(model.eval(), inputs, plans=20, as_graph=True, least_erasable=NETWORKS[name].least)
    assert found.plans == 20 and found.forward < 1e-10 and (found.backward or 0.0) < 1e-8
    if found.erasable > 2:
        assert found.erased > 1 and found.kept < 0.8, str(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_of_classes(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name].build()
    found = check_erasing(model.eval(), inputs, plans=20, least_erasable=0)
    assert found.plans == 20 and found.forward < 1e-10 and (found.backward or 0.0) < 1e-8


class Branches(nn.Module):
    """Two branches beside a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + torch.relu(self.a(h))
        return self.head(h + torch.relu(self.b(h)))


def test_an_operand_taken_for_the_other_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    dissolve = erase._dissolve

    def wrong(module: Any, join: Any, left: Any, taken: Any) -> None:
        gone = min(taken)
        dissolve(module, join, erase._operands(join)[gone], {1 - gone})

    monkeypatch.setattr(erase, "_dissolve", wrong)
    with pytest.raises(AssertionError, match=r"Random plan \d \(seed 0\), which erases (a|b|a, b):? "):
        check_erasing(Branches(), torch.randn(2, 3), as_graph=True)


def test_a_term_that_is_not_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left without it is not the network whose producers are zero."""

    class Passed(Branches):
        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.head(h + self.b(h) + (self.a(h) + h).clone())

    monkeypatch.setattr(Passing, "vanishes", lambda *_: True)
    with pytest.raises(AssertionError, match="the outputs of the cut network are .* from those of the zeroed one"):
        check_erasing(Passed(), torch.randn(2, 3), as_graph=True, share=1.0)


def test_too_few_structures() -> None:
    expected = r"Only 2 of 2 structures can be erased, and 3 are asked for\. The most frequent reasons: none\."
    with pytest.raises(AssertionError, match=expected):
        check_erasing(Branches(), torch.randn(2, 3), as_graph=True, least_erasable=3)


def test_the_model_is_as_it_was() -> None:
    model = Branches().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = check_erasing(model, torch.randn(2, 3), as_graph=True, plans=2)
    assert model.training and all(torch.equal(before[name], it) for name, it in model.state_dict().items())
    assert str(report).startswith("Exact for 2 random plans over 2 of 2 structures (")


class Scaled(nn.Module):
    """A block that asks for one of its scales, or of what it adds, and then takes both for given."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds, self.a, self.b = adds, nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale_a, self.scale_b = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, h: Tensor) -> Tensor:
        if self.scale_a is None:
            h = h + self.a(h)
            return h + self.b(h)
        if self.adds:
            h = h + torch.add(self.a(h), self.scale_a)
            return h + torch.add(self.b(h), self.scale_b)
        h = h + self.scale_a * self.a(h)
        return h + self.scale_b * self.b(h)


@pytest.mark.parametrize("adds", [False, True])
def test_code_that_asks_for_a_parameter_keeps_it_in_a_class(adds: bool) -> None:
    """A scale stays. Without both of what it adds the block runs; without one of them it computes something else, or
    nothing."""
    net, x = nn.Sequential(nn.Linear(3, 4), Scaled(adds), Scaled(adds), nn.Linear(4, 2)), torch.randn(2, 3)
    assert check_erasing(net, x, plans=6, least_erasable=0).erasable == (0 if adds else 4)
    assert check_erasing(net, x, plans=6, as_graph=True).erasable == 4
