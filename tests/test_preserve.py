"""Containers on a model whose classes forbid writing, or do more than that, come out as they were."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.trace.preserve import preserved


def forbidden(self: Any, *_: Any, **__: Any) -> Any:
    raise TypeError(f"A {type(self).__qualname__} cannot be written to.")


class FrozenDict(OrderedDict):  # type: ignore[type-arg]
    """As the configuration of each network of diffusers."""

    def __init__(self, *given: Any, **named: Any) -> None:
        for name, value in dict(*given, **named).items():
            OrderedDict.__setitem__(self, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(self)

    __setitem__ = __delitem__ = update = clear = pop = setdefault = copy = forbidden


class FrozenList(list):  # type: ignore[type-arg]
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(self)

    append = extend = clear = insert = copy = __setitem__ = __delitem__ = __iadd__ = forbidden


class Network(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("held", [FrozenDict(width=8, names=["a"]), FrozenList([8, {"a": 1}])])
def test_containers_that_forbid_writing_are_left_alone(held: Any) -> None:
    model = Network(held)
    space = niwaki.search_space(model, torch.randn(1, 4))
    assert space.num_units == 8
    assert model.held is held and type(model.held) is type(held)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    assert niwaki.check(model, plan, torch.randn(1, 4)).holds


def test_what_was_written_all_the_same_is_taken_back() -> None:
    held = {
        "frozen": FrozenDict(a=1, b=2),
        "ordered": OrderedDict(a=1, b=2, c=3),
        "list": FrozenList([1, 2]),
        "set": {1, 2},
        "deque": deque([1, 2], maxlen=2),
    }
    model = Network(held)
    with preserved(model):
        OrderedDict.__setitem__(held["frozen"], "c", 3)  # type: ignore[arg-type]
        held["ordered"].move_to_end("a")  # type: ignore[attr-defined]
        list.append(held["list"], 3)  # type: ignore[arg-type]
        held["set"].discard(1)  # type: ignore[attr-defined]
        held["deque"].append(3)  # type: ignore[attr-defined]
    assert held["frozen"] == {"a": 1, "b": 2}
    assert list(held["ordered"]) == ["a", "b", "c"]  # type: ignore[call-overload]
    assert held["list"] == [1, 2] and held["set"] == {1, 2}
    assert held["deque"] == deque([1, 2]) and held["deque"].maxlen == 2  # type: ignore[attr-defined]
