"""What hangs on a model comes out as it was: containers, objects, notes; their own code does not run."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.trace.contents import Contents
from niwaki.trace.model_state import preserved


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


class Plain:
    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


class Slotted:
    __slots__ = ("later", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


class Numbered(list):  # type: ignore[type-arg]
    count = 0


def counter(kept: list[int]) -> Callable[[], int]:
    count = 0

    def count_up() -> int:
        nonlocal count
        count += 1
        kept.append(count)
        return count

    return count_up


def looped() -> Plain:
    one = Plain(value=1)
    one.other = Plain(other=one, value=1)  # type: ignore[attr-defined]
    return one


def change(thing: Any) -> None:
    """Whatever a forward pass may do to an object."""
    thing.value = 2
    thing.new = torch.ones(2)


# What hangs on a module, how a pass changes it, and what is to be seen of it before and after.
HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], object], Callable[[Any], object]]] = {
    "object": (lambda: Plain(value=1), change, lambda held: sorted(vars(held).items())),
    "slots": (
        lambda: Slotted(1),
        lambda held: (setattr(held, "value", 2), setattr(held, "later", 3)),
        lambda held: (held.value, getattr(held, "later", None)),
    ),
    "empty slot": (lambda: Slotted(1), lambda held: delattr(held, "value"), lambda held: held.value),
    "nested": (
        lambda: {"a": [Plain(value=Slotted([1]))]},
        lambda held: held["a"][0].value.value.append(2),
        lambda held: list(held["a"][0].value.value),
    ),
    "cycle": (looped, lambda held: change(held.other), lambda held: (held.other.value, sorted(vars(held.other)))),
    "tensor": (
        lambda: Plain(value=torch.zeros(2)),
        lambda held: held.value.add_(1),
        lambda held: held.value.tolist(),
    ),
    "array": (lambda: Plain(value=np.zeros(2)), lambda held: held.value.fill(1), lambda held: held.value.tolist()),
    "closure": (lambda: counter([]), lambda held: held(), lambda held: [c.cell_contents for c in held.__closure__]),
    "subclass of a container": (
        lambda: Plain(value=Numbered([1])),
        lambda held: (held.value.append(2), setattr(held.value, "count", 3)),
        lambda held: (list(held.value), held.value.count),
    ),
    "partial": (
        lambda: partial(change, Plain(value=1)),
        lambda held: held(),
        lambda held: sorted(vars(held.args[0]).items()),
    ),
    "module out of sight": (
        lambda: [nn.BatchNorm1d(4)],
        lambda held: held[0](torch.randn(3, 4)),
        lambda held: (held[0].running_mean.tolist(), int(held[0].num_batches_tracked)),
    ),
    "generator": (
        lambda: Plain(value=torch.Generator()),
        lambda held: torch.rand(1, generator=held.value),
        lambda held: held.value.get_state().tolist(),
    ),
    "numpy's generator": (
        lambda: Plain(value=np.random.default_rng(0)),
        lambda held: held.value.random(),
        lambda held: str(held.value.bit_generator.state),
    ),
    "Python's generator": (
        lambda: Plain(value=random.Random(0)),
        lambda held: held.value.random(),
        lambda held: held.value.getstate(),
    ),
}


@pytest.mark.parametrize("kind", HELD)
def test_what_hangs_on_a_module_is_put_back(kind: str) -> None:
    made, changed, shown = HELD[kind]
    model = Network(made())
    held, before = model.held, copy.deepcopy(shown(model.held))
    with preserved(model):
        changed(held)
    assert model.held is held and shown(held) == before


@pytest.mark.parametrize("name", ["weight", "mean"])
def test_notes_on_parameters_and_buffers_are_put_back(name: str) -> None:
    model = Network(None)
    model.register_buffer("mean", torch.zeros(2))
    noted: Any = model.first.weight if name == "weight" else model.mean
    noted.marks = [1]
    with preserved(model):
        noted.marks.append(2)
        noted.calls = 1
    assert noted.marks == [1] and not hasattr(noted, "calls")


def test_memory_of_buffers_is_theirs_again() -> None:
    model = Network(None)
    model.register_buffer("mean", torch.zeros(2))
    memory = model.mean.data_ptr()
    with preserved(model):
        model.mean.data = torch.ones(5)
    assert model.mean.tolist() == [0, 0] and model.mean.data_ptr() == memory


def test_what_is_followed_is_bounded() -> None:
    """A model that refers to a whole program, or to much data, does not take its size in time."""
    model = Network([Plain(value=[Plain(value=number)]) for number in range(20_000)])
    contents = Contents()
    contents.note(model.held)
    assert len(contents) < 40_000
