"""Gates of terms without parameters: what they multiply, their gradients, and a model that is left as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import MethodError, PlanError
from niwaki.per_unit.gates import TermGates
from niwaki.program.entry import program_of
from niwaki.surgery.zero import zeroed

X = torch.randn(2, 3, 6, 6, dtype=torch.float64)


class Net(nn.Module):
    """A convolution, a pooling and a shortcut, added up; then a pooling that is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.pool, self.skip, self.largest = nn.AvgPool2d(3, 1, 1), nn.Identity(), nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.tanh(self.pool(x) + self.skip(x) + self.branch(x))
        y = self.largest(x)
        y += self.branch(x)
        result: Tensor = self.head(torch.tanh(y))
        return result


def model_of(form: str) -> Any:
    torch.manual_seed(0)
    model = Net().eval().double()
    return model if form == "class" else program_of(model, ((X,), {}), True)


@pytest.mark.parametrize("form", ["class", "program"])
def test_values_and_gradients(form: str) -> None:
    model = model_of(form)
    space = niwaki.search_space(model, X if form == "class" else None, erase=True)
    gates = TermGates(space)
    assert len(gates) == len(gates.names) >= 2 and (form == "program" or {"pool", "skip", "largest"} < {*gates.names})
    before = model(X)
    with gates.attached(model):
        assert torch.equal(model(X), before)
        gates.values.data.uniform_(0.3, 1.0)
        model(X).square().sum().backward()
        gradient = gates.values.grad
        assert gradient is not None and bool((gradient != 0).all())
        gates.values.data = gates.values.data.double()
        with torch.no_grad():
            for number, expected in enumerate(gradient.tolist()):
                ends = []
                for step in (1e-5, -2e-5):
                    gates.values[number] += step
                    ends.append(float(model(X).square().sum()))
                gates.values[number] += 1e-5
                assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("form", ["class", "program"])
def test_at_zero_it_is_the_reference(form: str) -> None:
    model = model_of(form)
    space = niwaki.search_space(model, X if form == "class" else None, erase=True)
    gates = TermGates(space)
    units = {group.structure: group.first for group in space.groups if group.structure is not None}
    for place, number in enumerate(gates.structures):
        keep = np.ones(space.num_units, dtype=bool)
        keep[units[number]] = False
        with gates.attached(model), torch.no_grad():
            gates.values.fill_(1)[place] = 0
            assert torch.allclose(model(X), zeroed(space.model, space.plan(keep))(X))


def test_copies_keep_the_gates_that_they_had() -> None:
    model = model_of("class")
    gates = TermGates(niwaki.search_space(model, X, erase=True))
    gates.attach(model)
    with torch.no_grad():
        gates.values.fill_(0.5)
        halved = model(X)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), niwaki.cut(model, plain(model))):
            assert torch.equal(other(X), halved)
            gates.values.fill_(0.25)
            assert torch.equal(other(X), halved) and not torch.equal(model(X), halved)
            gates.values.fill_(0.5)
        copied = copy.deepcopy(gates)
        copied.detach()
        assert torch.equal(model(X), halved)
    gates.detach()
    assert not any(module._forward_hooks for module in model.modules())


def plain(model: nn.Module) -> niwaki.Plan:
    space = niwaki.search_space(Net().eval().double(), X)
    return space.plan(np.ones(space.num_units, dtype=bool))


def test_errors() -> None:
    model = model_of("class")
    gates = TermGates(niwaki.search_space(model, X, erase=True))
    with gates.attached(model), pytest.raises(MethodError, match="attached to a model already"):
        gates.attach(model)
    with pytest.raises(PlanError, match="the model has no module 'pool'"):
        gates.attach(nn.Linear(3, 3))
    assert len(TermGates(niwaki.search_space(model, X))) == 0
