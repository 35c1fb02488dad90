"""What is tried before a structure is offered: one module of each kind, in the network itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.absent import Given
from niwaki.core.edits import EraseModules
from niwaki.erasing import trial_runs
from niwaki.erasing.edited import edited
from niwaki.testing import check_erasing


class Block(nn.Module):
    """``how``: what it asks of its module."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.inner, self.outer, self.how = nn.Linear(6, 8), nn.Linear(8, 6), how

    def forward(self, x: Tensor) -> Tensor:  # [B, 6]
        y = torch.relu(self.inner(x))
        if self.how == "type":
            y = y.to(self.outer.weight.dtype)
        if self.how == "literal":
            y = y.view(-1, 8)
        return torch.tanh(x + self.outer(y))


class Stack(nn.Module):
    def __init__(self, *hows: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(Block(how) for how in hows)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3]
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many operators each trial runs."""
    found: list[int] = []
    trace = trial_runs.trace

    def counted(*args: Any, **options: Any) -> Any:
        graph = trace(*args, **options)
        found.append(len(graph.runs[0].nodes))
        return graph

    monkeypatch.setattr(trial_runs, "trace", counted)
    return found


def test_a_deep_network_is_tried_as_a_flat_one(operators: list[int]) -> None:
    """Each other block costs the two operators that make its zeros."""
    spent = {}
    for depth in (2, 12):
        operators.clear()
        space = niwaki.search_space(Stack(*[""] * depth), torch.randn(2, 3), erase=True)
        assert [one.erasable for one in space.structures] == [True] * depth
        (spent[depth],) = operators
    assert spent[12] == spent[2] + 10 * 2


def test_a_block_of_another_kind_is_tried_for_itself() -> None:
    hows = ["", "", "type", "", "type"]
    space = niwaki.search_space(Stack(*hows), torch.randn(2, 3), erase=True)
    whys = [one.refused for one in space.structures]
    assert [why is not None for why in whys] == [how == "type" for how in hows]
    assert {why for why in whys if why} == {
        "its code fails without it: AttributeError: 'Absent' object has no attribute 'weight'; use as_graph=True"
    }


class Held(Stack):
    """It calls the last layer of its last block by a name that no module has."""

    def __init__(self) -> None:
        super().__init__("", "")
        self.known = [self.blocks[1].outer]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        return self.head(x + self.known[0](torch.relu(self.blocks[1].inner(x))))


def test_what_is_called_by_another_name_is_not_absent() -> None:
    space = niwaki.search_space(Held(), torch.randn(2, 3), erase=True)
    whys = {one.name: one.refused for one in space.structures}
    assert whys["blocks.0"] is None
    (why,) = [why for name, why in whys.items() if name != "blocks.0"]
    assert why == ("its code fails without it: RuntimeError: it is called although it is not there; use as_graph=True")


LAYERS: dict[str, nn.Module] = {}


class Registered(Stack):
    """Its first layer is found under a global name, so that a copy runs the first layer of the model."""

    def forward(self, x: Tensor) -> Tensor:
        x = LAYERS.get("stem", self.stem)(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def forgotten() -> Iterator[None]:
    yield
    LAYERS.clear()


@pytest.mark.parametrize("how", ["", "literal"])
def test_nothing_is_erased_where_a_copy_is_another_network(forgotten: None, how: str) -> None:
    """``literal``: where no unit can be cut, either, so that no cut is rehearsed."""
    model, x, ignored = Registered(how, how), torch.randn(2, 3), ("stem*",) if how else ()
    space = niwaki.search_space(model, x, erase=True, ignored=ignored)
    assert [one.erasable for one in space.structures] == [True, True]
    assert bool(niwaki.search_space(model, x, ignored=ignored).groups) is (not how)
    LAYERS["stem"] = model.stem
    space = niwaki.search_space(model, x, erase=True, ignored=ignored)
    assert len(space.structures) == 2 and not any(one.erasable for one in space.structures)
    assert all((one.refused or "").startswith("a copy of the model is another network: ") for one in space.structures)
    assert [note for note in space.notes if note.startswith("A copy of the model computes something else")]


def test_the_network_is_restored() -> None:
    model = Stack("", "")
    before = {path: dict(module.__dict__) for path, module in model.named_modules()}
    children = {path: dict(module._modules) for path, module in model.named_modules()}
    weights = dict(model.named_parameters())
    edit = EraseModules(
        ("one",),
        {"blocks.0.outer": Given((0,))},
        entries=("blocks.1",),
        unset=("stem.bias",),
        numbers={("head", "in_features"): 5},
    )
    with pytest.raises(ZeroDivisionError), edited(model, edit):
        assert len(model.blocks) == 1 and model.stem.bias is None and model.head.in_features == 5
        assert torch.equal(model.blocks[0].outer(torch.ones(3)), torch.ones(3))
        1 / 0  # noqa: B018
    assert {path: dict(module.__dict__) for path, module in model.named_modules()} == before
    assert {path: dict(module._modules) for path, module in model.named_modules()} == children
    now = dict(model.named_parameters())
    assert now.keys() == weights.keys() and all(now[name] is weights[name] for name in now)


def test_a_kind_that_fails_is_refused_after_few_trials(operators: list[int]) -> None:
    """All at once, then the first and the last of the kind, each with and without what stands for others."""
    space = niwaki.search_space(Stack(*["type"] * 12), torch.randn(2, 3), erase=True)
    assert not any(one.erasable for one in space.structures)
    assert len(operators) <= 6


class Reading(nn.Module):
    """Numbers that its code reads from a tensor are sizes: those of parts, which a linear layer is run on in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        return torch.cat([self.linear(part) for part in x.split((2 * sizes).tolist())])


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = nn.Linear(3, 6), Reading(), Reading(), nn.Linear(6, 2)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:  # [B, 3], B is twice the sum of the sizes
        x = self.stem(x)
        x = x + self.first(x, sizes)
        x = x + self.second(x, sizes)
        halves = [part.mean(0, keepdim=True) for part in x[::2].split(sizes.tolist())]
        return self.head(torch.cat(halves))


def test_numbers_that_what_is_erased_would_have_read() -> None:
    """The code that lives on reads its own, of as many entries."""
    torch.manual_seed(0)
    model, inputs = Parts(), (torch.randn(6, 3), torch.tensor([1, 2]))
    space = niwaki.search_space(model, inputs, erase=True)
    assert [one.name for one in space.structures if one.erasable] == ["first", "second"], str(space)
    assert check_erasing(model, inputs, plans=4, least_erasable=2).erased > 0
