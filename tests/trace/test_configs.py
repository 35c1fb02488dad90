"""Sizes that hang on modules indirectly: in configs, containers, partials, closures, classes. They follow the cut."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.core.numbers import Attribute
from niwaki.core.paths import Field, describe, replaced, where_from_json, where_to_json
from niwaki.errors import FileFormatError
from niwaki.testing.models import random_plan
from niwaki.trace.attributes import Tracking
from niwaki.trace.extent import EVERYTHING
from niwaki.trace.inventory import Inventory
from niwaki.trace.tracer import example_calls, trace
from niwaki.trace.tracked import TrackedInt


class Attention(nn.Module):
    """Whatever ``heads(self)`` reads is the number of heads."""

    def __init__(self, config: Any, heads: Callable[[Any], int]) -> None:
        super().__init__()
        self.config, self.heads = config, heads
        self.query, self.key, self.value = (nn.Linear(8, 24) for _ in range(3))
        self.out = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).view(*x.shape[:-1], self.heads(self), 6).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) * 0.4).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(*x.shape[:-1], -1))


class Model(nn.Module):
    """Layers that share one config, which the model reads too."""

    def __init__(self, config: Any, heads: Callable[[Any], int], layers: int = 2) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Attention(config, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@dataclass
class Settings:
    heads: int = 4


@dataclass(frozen=True, slots=True)
class Frozen:
    heads: int = 4


class Slots:
    __slots__ = ("__hidden", "extra")

    def __init__(self) -> None:
        self.__hidden = 4

    @property
    def heads(self) -> int:
        return self.__hidden


class Watchful:
    """Refuses to be written to, and knows its number by another name only."""

    def __init__(self) -> None:
        self.__dict__["n_head"] = 4

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("read-only")

    def __getattr__(self, name: str) -> Any:
        if name == "heads":
            return self.n_head
        raise AttributeError(name)


class Named(NamedTuple):
    width: int
    heads: int


def _heads(module: Any) -> int:
    heads: int = module.config.heads
    return heads


CONFIGS: dict[str, tuple[Callable[[], Any], Callable[[Any], int]]] = {
    "dataclass": (Settings, _heads),
    "frozen dataclass with slots": (Frozen, _heads),
    "slots": (Slots, _heads),
    "hooks": (Watchful, _heads),
    "namespace": (lambda: argparse.Namespace(heads=4), _heads),
    "simple namespace": (lambda: SimpleNamespace(heads=4, name="x"), _heads),
    "named tuple": (lambda: Named(8, 4), _heads),
    "dict": (lambda: {"heads": 4, "name": "x"}, lambda m: m.config["heads"]),
    "ordered dict": (lambda: OrderedDict(heads=4), lambda m: m.config["heads"]),
    "dict of numbers": (lambda: {1: 4}, lambda m: m.config[1]),
    "list of lists": (lambda: [[1, 2], [3, 4]], lambda m: m.config[1][1]),
    "tuple in a dict in an object": (
        lambda: SimpleNamespace(sizes={"stages": (Settings(), Settings())}),
        lambda m: m.config.sizes["stages"][1].heads,
    ),
    "partial": (lambda: partial(dict, heads=4), lambda m: m.config()["heads"]),
    "partial with an argument": (lambda: partial(max, 4), lambda m: m.config(1)),
    "closure": (lambda: _closure(4), lambda m: m.config()),
    "default argument": (lambda: lambda n=4: n, lambda m: m.config()),
    "keyword default": (lambda: _default, lambda m: m.config()),
}


def _closure(number: int) -> Callable[[], int]:
    return lambda: number


def _default(*, number: int = 4) -> int:
    return number


@pytest.mark.parametrize("name", CONFIGS)
def test_each_module_gets_its_own_number(name: str) -> None:
    torch.manual_seed(0)
    make, heads = CONFIGS[name]
    net, x = Model(make(), heads), torch.randn(2, 5, 8)
    config = net.config
    before = dict(net.layers[0].__dict__)
    space = niwaki.search_space(net, x)
    assert net.layers[0].__dict__ == before
    assert [layer.config is config for layer in net.layers] == [True, True]
    assert [group.units for group in space.groups] == [4, 4]  # no tie between the layers
    assert not space.ties
    for seed in range(4):
        plan = random_plan(space, np.random.default_rng(seed))
        plan = niwaki.Plan.from_json(plan.to_json())
        found = deviations(net, plan, x)
        assert found["eval"] <= 1e-10
        assert found["train"] <= 1e-8
    keep = np.ones(space.num_units, dtype=bool)
    keep[:2] = False
    small = niwaki.cut(net, space.plan(keep))
    assert [heads(layer) for layer in small.layers] == [2, 4]
    assert heads(small) == 4
    assert small.layers[1].config is small.config
    assert [heads(layer) for layer in net.layers] == [4, 4]
    assert type(small.layers[0].config) is type(config)


def test_a_cut_with_configs_is_saved_and_loaded(tmp_path: Path) -> None:
    net, x = Model({"heads": [4]}, lambda m: m.config["heads"][0]), torch.randn(2, 5, 8)
    space = niwaki.search_space(net, x)
    small = niwaki.cut(net, random_plan(space, np.random.default_rng(0)))
    niwaki.save(small, tmp_path)
    loaded = niwaki.load(Model({"heads": [4]}, lambda m: m.config["heads"][0]), tmp_path)
    assert torch.equal(loaded(x), small(x))
    with pytest.raises(
        FileFormatError, match=r"sets 'config\['heads'\]\[0\]' of the module 'layers.0', which has no such"
    ):
        niwaki.load(Model({"width": 4}, lambda m: m.config["heads"][0]), tmp_path)


class ClassLevel(nn.Module):
    heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(len(x), self.heads, 3).relu()
        return self.second(y.transpose(1, 2).reshape(len(x), -1))


def test_a_number_of_the_class_becomes_one_of_the_module() -> None:
    torch.manual_seed(0)
    net, x = ClassLevel(), torch.randn(2, 8)
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [4]
    assert "heads" not in net.__dict__
    plan = random_plan(space, np.random.default_rng(0))
    assert deviations(net, plan, x)["eval"] <= 1e-10
    small = niwaki.cut(net, plan)
    assert (ClassLevel.heads, small.heads) == (4, len(plan.kept["first"]))


class Counting(nn.Module):
    """Modules that write to what they share, or to what hangs on them."""

    def __init__(self, shared: Any) -> None:
        super().__init__()
        self.shared, self.lin = shared, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.shared["calls"] = self.shared.get("calls", 0) + 1
        return self.lin(x) * self.shared["calls"]


def test_what_a_model_writes_to_is_seen_by_all_that_share_it() -> None:
    shared = {"n": 3}
    net = nn.Sequential(Counting(shared), Counting(shared))
    graph = trace(net, example_calls(torch.randn(2, 4)), modes=(False,))
    scalars = [node.args[1] for node in graph.runs[0].nodes if node.operator is torch.ops.aten.mul.Tensor]
    assert scalars == [1, 2]
    assert shared == {"n": 3}


class Particular(nn.Module):
    """Runs with the very object it was given and with no copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Settings()
        self.same, self.lin = id(self.config), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if id(self.config) != self.same:
            raise ValueError("who is this?")
        return self.lin(x)


def test_objects_that_must_not_be_copied_are_left_alone() -> None:
    (note,) = niwaki.search_space(Particular(), torch.randn(2, 4)).notes
    assert "in 'lin'" in note and note.endswith("written in the source: config.heads.")


class Closing:
    """Must not be forgotten: it would close what others use."""

    def __init__(self) -> None:
        self.number, self.closed = 3, [False]

    def __del__(self) -> None:
        self.closed[0] = True


def test_things_with_an_identity_are_not_copied() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.closing = Closing()
            self.things = np.zeros(3, dtype=int), {1, 2}, torch.Generator(), nn.ReLU, self.extra_repr
            self.itself: list[Any] = [3]
            self.itself.append(self.itself)

    net = Net()
    before = dict(net.__dict__)
    tracking = Tracking(Inventory.of(net), EVERYTHING)
    assert all(net.__dict__[name] is before[name] for name in ("closing", "things"))
    assert isinstance(net.itself[0], TrackedInt)
    assert net.itself[1] is before["itself"]
    assert not tracking.unfit()
    net.itself.append(1)
    assert tracking.unfit() == {id(before["itself"])}
    assert not net.closing.closed[0]


def test_paths_print_and_are_data() -> None:
    where = (Field("stages"), 1, "heads")
    assert str(Attribute("layers.0", "config", where, 4)) == "layers.0.config.stages[1]['heads']"
    assert describe("", "shape", (0,)) == "shape[0]"
    for path in ((), (3,), where, ("key",)):
        assert where_from_json(where_to_json(path)) == path
    assert (where_to_json(()), where_to_json((3,))) == (None, 3)
    with pytest.raises(TypeError, match="is not a step of a path"):
        where_from_json([None])


def test_replacing_copies_what_lies_on_the_way() -> None:
    inner = {"heads": 4}
    outer = SimpleNamespace(stages=[inner, inner], other=[1])
    changed = replaced(outer, (Field("stages"), 1, "heads"), 2)
    assert outer.stages == [{"heads": 4}, {"heads": 4}]
    assert changed.stages == [{"heads": 4}, {"heads": 2}]
    assert changed.other is outer.other and changed.stages[0] is inner
    with pytest.raises(LookupError):
        replaced(outer, (Field("steps"), 1), 2)
    with pytest.raises(LookupError):
        replaced(outer, (Field("other"), 7), 2)


class Einops(nn.Module):
    """Attention as it is written with einops: sizes by name, in functions and in layers."""

    def __init__(self) -> None:
        super().__init__()
        layers = pytest.importorskip("einops.layers.torch")
        self.heads, self.extra = 4, 3
        self.qkv, self.out = nn.Linear(8, 72), nn.Linear(24, 8)
        self.together = layers.Rearrange("b h n d -> b n (h d)", h=4)

    def forward(self, x: Tensor) -> Tensor:
        einops = pytest.importorskip("einops")
        q, k, v = (einops.rearrange(y, "b n (h d) -> b h n d", h=self.heads) for y in self.qkv(x).chunk(3, dim=-1))
        weights = einops.einsum(q, k, "b h i d, b h j d -> b h i j").softmax(-1)
        mean = einops.reduce(weights, "b h i j -> b h 1 1", "mean")
        gate = einops.repeat(mean, "b h 1 1 -> b h n d", n=x.shape[1], d=v.shape[-1])
        y: Tensor = self.out(self.together(weights @ v * gate))
        return y


def test_einops() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Einops(), Einops()), torch.randn(2, 5, 8)
    for _ in range(2):  # einops remembers sizes; those of another trace or layer must not come back
        space = niwaki.search_space(net, x)
        assert not space.ties
        assert {4} <= {group.units for group in space.groups}
        assert sum(group.units == 4 for group in space.groups) == 2
        plan = random_plan(space, np.random.default_rng(0))
        found = deviations(net, plan, x)
        assert found["eval"] <= 1e-10
        assert found["train"] <= 1e-8
