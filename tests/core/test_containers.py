"""Settings in containers of all kinds: a copy of one, made for a trace or by a cut, holds what the original holds."""

from __future__ import annotations

import json
import typing
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import niwaki
from niwaki.core.paths import Field, Step, parts, rebuilt
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import random_plan


class Ordered(OrderedDict[str, Any]):
    pass


class Slotted(OrderedDict[str, Any]):
    __slots__ = ("extra",)


class Plain(dict[str, Any]):
    pass


class Default(defaultdict[str, Any]):
    pass


class AttrDict(dict[str, Any]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class OrderedAttrDict(OrderedDict[str, Any]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "__dict__", self)


class Both(dict[str, Any]):
    """Keeps each number as an item and as an attribute, as an EasyDict does."""

    def __init__(self, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        super().__setitem__(name, value)


class Careful(dict[str, Any]):
    """Would notice if its own code ran."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError("read-only")

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("read-only")


Point = namedtuple("Point", "depth heads")


class Annotated(Point):
    pass


class Wrapped(partial[Any]):
    pass


def _with(make: Callable[..., Any], **attributes: Any) -> Callable[..., Any]:
    def made(**items: Any) -> Any:
        thing = make(**items)
        for name, value in attributes.items():
            object.__setattr__(thing, name, value)
        return thing

    return made


def _moved(**items: Any) -> Any:
    made = Ordered(items)
    made.move_to_end("depth")
    return made


def _referring(**items: Any) -> Any:
    made = Plain(items)
    made["itself"] = made
    return made


MAPPINGS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "a subclass of dict": Plain,
    "one that forbids writing": Careful,
    "one with attributes": _with(Plain, source="file.yaml", number=3),
    "OrderedDict": OrderedDict,
    "OrderedDict with attributes": _with(OrderedDict, source="file.yaml", number=3),
    "a subclass of OrderedDict": Ordered,
    "one in another order": _moved,
    "one with a slot": _with(Slotted, extra=5),
    "typing.OrderedDict": lambda **items: typing.OrderedDict[str, Any](items),
    "defaultdict": lambda **items: defaultdict(list, items),
    "a subclass of defaultdict": lambda **items: Default(list, items),
    "Counter": lambda **items: Counter(items),
    "one that is its own dictionary": AttrDict,
    "an OrderedDict that is its own dictionary": OrderedAttrDict,
    "items and attributes": Both,
}


@pytest.mark.parametrize("kind", MAPPINGS)
@settings(max_examples=12)
@given(
    names=st.lists(st.sampled_from(["depth", "heads", "a", "b", "c"]), unique=True, min_size=2),
    data=st.data(),
)
def test_copies_hold_what_the_original_holds(kind: str, names: list[str], data: st.DataObject) -> None:
    original = MAPPINGS[kind](**{name: number for number, name in enumerate(dict.fromkeys([*names, "depth"]))})
    changed = data.draw(st.sampled_from([step for step, _ in parts(original)]))
    new = tuple if changed == Field("default_factory") else -1
    expected = {key: new if key == changed else value for key, value in original.items()}
    copy = rebuilt(original, {changed: new})
    assert type(copy) is type(original) and copy is not original
    assert [*copy] == [*original] and [*copy.items()] == [*expected.items()]
    assert [*copy.values()] == [*expected.values()] and len(copy) == len(original)
    assert json.dumps(copy) == json.dumps(expected)
    assert "default" in kind or repr(copy) == repr(original) if isinstance(changed, Field) else "-1" in repr(copy)
    own, other = vars_of(original), vars_of(copy)
    assert (
        other is copy
        if own is original
        else other == {name: -1 if changed == Field(name) else item for name, item in own.items()}
    )
    if isinstance(original, defaultdict):
        assert copy.default_factory is (tuple if new is tuple else list)
    if isinstance(original, Slotted):
        assert copy.extra == (-1 if changed == Field("extra") else 5)


def vars_of(value: Any) -> Any:
    return getattr(value, "__dict__", {})


def test_a_copy_that_refers_to_itself() -> None:
    for make in (_referring, _with(Plain)):
        original = make(depth=1)
        original.owner = original
        copy = rebuilt(original, {"depth": 2})
        assert copy.owner is copy and copy.get("itself", copy) is copy
        assert original["depth"] == 1 and original.owner is original


def test_copies_of_what_is_no_mapping_keep_their_attributes() -> None:
    point = Annotated(2, 3)
    point.unit = "layers"
    copy = rebuilt(point, {1: 5})
    assert type(copy) is Annotated and copy == (2, 5) and copy.unit == "layers"
    wrapped = Wrapped(dict, depth=1)
    wrapped.unit = "layers"
    copy = rebuilt(wrapped, {Field("keywords"): {"depth": 2}})
    assert type(copy) is Wrapped and copy() == {"depth": 2} and copy.unit == "layers"
    keys: dict[Any, Any] = {(1, 2): 3, None: 4, True: 5, "depth": 6}
    assert [*rebuilt(keys, {"depth": 7}).items()] == [((1, 2), 3), (None, 4), (True, 5), ("depth", 7)]


def test_what_python_itself_puts_on_an_object_is_no_setting() -> None:
    made = typing.OrderedDict[str, int](depth=2)
    assert [step for step, _ in parts(made)] == ["depth"]
    assert "__orig_class__" in vars(rebuilt(made, {"depth": 3}))


class Heads(nn.Module):
    """Multiplies by all of its numbers but two, and reads how many heads there are."""

    def __init__(self, config: Any, heads: Step) -> None:
        super().__init__()
        self.config, self.read = config, heads
        self.qkv, self.o = nn.Linear(8, 48), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for name, number in self.config.items():
            x = x * number if name not in ("heads", "size", "itself") else x
        heads = self.config["heads"] if self.read == "heads" else self.config.heads
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, heads, self.config["size"]).permute(2, 0, 3, 1, 4)
        return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", [kind for kind in MAPPINGS if kind != "items and attributes"])  # one place is read
def test_a_trace_and_a_cut_see_all_items(kind: str) -> None:
    torch.manual_seed(0)
    made = MAPPINGS[kind](depth=2, heads=4, size=4, scale=3)
    by_attribute = isinstance(made, (AttrDict, OrderedAttrDict))
    net, x = Heads(made, Field("heads") if by_attribute else "heads").double().eval(), torch.randn(2, 3, 8).double()
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [4]
    plan = random_plan(space, np.random.default_rng(0))
    small = niwaki.cut(net, plan)
    expected = zeroed(net, plan)(x)
    assert (small(x) - expected).abs().max() <= 1e-10 * expected.abs().max()
    left = len(plan.kept[space.groups[0].name])
    like = MAPPINGS[kind](depth=2, heads=left, size=4, scale=3)
    assert left < 4 and type(small.config) is type(made)
    assert [*small.config.items()] == [*like.items()] and [*small.config.values()] == [*like.values()]
    assert json.dumps(small.config) == json.dumps(like) and repr(small.config) == repr(like)
