"""Sizes in Python, one idiom after the other: each follows the cut exactly, or pins with the line it is written in."""

from __future__ import annotations

import enum
import math
import re
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.testing.models import random_plan

HEADS = 4


class AttrDict(dict[str, Any]):
    """What many projects use for a config."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Numbers(enum.IntEnum):
    HEADS = 4


class Scaled:
    """A callable object with a number inside."""

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def __call__(self, y: Tensor) -> Tensor:
        return y.view(len(y), self.heads, -1)


@dataclass
class Inner:
    heads: int = 4
    sizes: list[int] = field(default_factory=lambda: [4, 6])


@dataclass
class Config:
    """Fields, nested ones, and what is computed from them."""

    inner: Inner = field(default_factory=Inner)
    width: int = 24
    layers: ClassVar[int] = 1

    @property
    def heads(self) -> int:
        return self.width // self.inner.sizes[1]

    @cached_property
    def cached_heads(self) -> int:
        return self.width // self.inner.sizes[1]


Pair = namedtuple("Pair", "heads size")


@lru_cache
def half(number: int) -> int:
    return number // 2


class Net(nn.Module):
    """24 features between two layers; ``shape(self, y)`` gives [batch, 4, 6], of which the 6 are scaled."""

    kinds = 4
    pair = (4, 6)
    table: ClassVar[dict[str, int]] = {"heads": 4}
    settings = Config()

    def __init__(self, shape: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.shape = shape
        self.heads, self.size, self.width = 4, 6, 24
        self.array = np.int64(4)
        self.buffer: Tensor
        self.register_buffer("buffer", torch.tensor(4))
        self.both = torch.Size((4, 6))
        self.nested = {"stages": [{"heads": (1, 4)}], 3: 4}
        self.config = Config()
        self.attr, self.user = AttrDict(heads=4, inner=AttrDict(heads=4)), UserDict(heads=4)
        self.space = SimpleNamespace(of=SimpleNamespace(heads=[4]))
        self.named = Pair(4, 6)
        self.member = Numbers.HEADS
        self.partial = partial(_viewed, heads=4)
        self.nested_partial = partial(partial(_viewed, size=6), heads=4)
        self.closure = _closing(4)
        self.default = lambda y, heads=4: y.view(len(y), heads, 6)
        self.scaled = Scaled(4)
        self.unflatten = nn.Unflatten(1, (4, 6))
        self.first, self.last = nn.Linear(5, 24), nn.Linear(24, 3)
        self.gate = nn.Parameter(torch.rand(6) + 0.5)

    @property
    def rows(self) -> int:
        return self.width // self.size

    @cached_property
    def cached(self) -> int:
        return self.width // self.size

    def forward(self, x: Tensor) -> Tensor:
        y = self.shape(self, self.first(x).tanh())
        result: Tensor = self.last((y * self.gate).transpose(1, 2).flatten(1))
        return result


def _viewed(y: Tensor, heads: int, size: int = -1) -> Tensor:
    return y.view(len(y), heads, size)


def _closing(heads: int) -> Callable[[Tensor], Tensor]:
    return lambda y: y.view(len(y), heads, -1)


# fmt: off
FOLLOWS: dict[str, Callable[[Any, Any], Tensor]] = {
    "attribute": lambda m, y: y.view(len(y), m.heads, 6),
    "nested containers": lambda m, y: y.view(len(y), m.nested["stages"][0]["heads"][1], -1),
    "key that is a number": lambda m, y: y.view(len(y), m.nested[3], -1),
    "dataclass in a dataclass": lambda m, y: y.view(len(y), m.config.inner.heads, -1),
    "list in a dataclass": lambda m, y: y.view(len(y), *m.config.inner.sizes),
    "property of a config": lambda m, y: y.view(len(y), m.config.heads, -1),
    "cached property of a config": lambda m, y: y.view(len(y), m.config.cached_heads, -1),
    "property": lambda m, y: y.view(len(y), m.rows, -1),
    "cached property": lambda m, y: y.view(len(y), m.cached, -1),
    "attribute dict": lambda m, y: y.view(len(y), m.attr.heads, -1),
    "attribute dict in another": lambda m, y: y.view(len(y), m.attr.inner.heads, 6),
    "user dict": lambda m, y: y.view(len(y), m.user["heads"], -1),
    "namespace": lambda m, y: y.view(len(y), m.space.of.heads[0], -1),
    "named tuple": lambda m, y: y.view(len(y), m.named.heads, m.named.size),
    "torch.Size attribute": lambda m, y: y.view(len(y), *m.both),
    "partial": lambda m, y: m.partial(y),
    "partial of a partial": lambda m, y: m.nested_partial(y),
    "closure": lambda m, y: m.closure(y),
    "callable object": lambda m, y: m.scaled(y),
    "class attribute": lambda m, y: y.view(len(y), m.kinds, -1),
    "tuple of the class": lambda m, y: y.view(len(y), *m.pair),
    "dict of the class": lambda m, y: y.view(len(y), m.table["heads"], -1),
    "config of the class": lambda m, y: y.view(len(y), m.settings.inner.heads, -1),
    "unflatten module": lambda m, y: m.unflatten(y),
    "integer division": lambda m, y: y.view(len(y), m.width // m.size, m.size),
    "division of a shape": lambda m, y: y.view(len(y), y.shape[1] // 6, 6),
    "out_features": lambda m, y: y.view(len(y), m.first.out_features // 6, 6),
    "size of a weight": lambda m, y: y.view(len(y), m.first.weight.shape[0] // 6, -1),
    "numel": lambda m, y: y.view(len(y), y.numel() // (len(y) * 6), 6),
    "prod": lambda m, y: y.view(len(y), math.prod(y.shape[1:]) // 6, 6),
    "negated ceiling division": lambda m, y: y.view(len(y), -(-m.width // 6), 6),
    "shift": lambda m, y: y.view(len(y), (m.width >> 1) // 3, 6),
    "divmod": lambda m, y: y.view(len(y), divmod(m.width, 6)[0], 6),
    "sum": lambda m, y: y.view(len(y), sum([m.heads]), 6),
    "sum and difference": lambda m, y: y.view(len(y), m.heads + 3 - 3, 6),
    "Size added to a tuple": lambda m, y: y.view(y.shape[:-1] + (m.heads, -1)),
    "Size unpacked": lambda m, y: y.view(*y.size()[:-1], m.heads, -1),
    "Size built": lambda m, y: y.view(torch.Size([*y.shape[:1], m.heads, 6])),
    "Size sliced and joined": lambda m, y: y.view(y.shape).view(y.shape[:1] + torch.Size((m.heads, 6))),
    "list of sizes": lambda m, y: y.view([*list(y.shape[:1]), m.heads, 6]),
    "keyword": lambda m, y: torch.reshape(input=y, shape=(len(y), m.heads, 6)),
    "unflatten": lambda m, y: y.unflatten(-1, (m.heads, -1)),
    "unflatten by shape": lambda m, y: y.unflatten(1, (y.shape[1] // 6, 6)),
    "chunk": lambda m, y: torch.stack(y.chunk(2, dim=1), 1).view(len(y), m.heads, 6),
    "chunk of heads": lambda m, y: torch.stack(y.view(len(y), m.heads, 6).chunk(2, 1), 1).flatten(1, 2),
    "split by attribute": lambda m, y: torch.stack(y.split(m.width // 2, dim=1), 1).view(len(y), m.heads, 6),
    "split by shape": lambda m, y: torch.stack(torch.split(y, y.shape[1] // 2, 1), 1).view(len(y), m.heads, 6),
    "split by sizes": lambda m, y: torch.cat(y.split((m.width - m.size * 2, m.size * 2), 1), 1).view(len(y), -1, 6),
    "narrow": lambda m, y: y.narrow(1, 0, m.width).view(len(y), m.heads, 6),
    "slice": lambda m, y: y[:, : m.width].view(len(y), m.heads, 6),
    "slice from half": lambda m, y: torch.cat([y[:, m.width // 2 :], y[:, : m.width // 2]], 1).view(len(y), -1, 6),
    "new tensor": lambda m, y: (y + y.new_zeros(len(y), m.width)).view(len(y), m.heads, 6),
    "einops": lambda m, y: _rearrange(y, "b (h d) -> b h d", h=m.heads),
    "einops, the other": lambda m, y: _rearrange(y, "b (h d) -> b h d", d=6),
    "einops by a shape": lambda m, y: _rearrange(y, "b (h d) -> b h d", h=y.shape[-1] // 6),
    "einsum": lambda m, y: torch.einsum("bhd,bhd->bhd", y.view(len(y), m.heads, 6), y.view(len(y), -1, 6)),
    "comparison": lambda m, y: y.view(len(y), m.heads, 6) if m.heads * 6 == y.shape[1] else y,
    "assertion": lambda m, y: _asserted(m, y),
    "view as another": lambda m, y: y.view_as(torch.cat([y[:, :m.width].view(len(y), m.heads, 6)], 2)),
    "reshape as another": lambda m, y: y.reshape_as(other=y.view(len(y), m.heads, 6) * 2),
    "expand as another": lambda m, y: (z := y.view(len(y), m.heads, 6)) * m.gate[:1].sigmoid().expand_as(z),
    "size of a repetition": lambda m, y: y.view(len(y), m.heads, 6) * _gates(m, m.heads),
    "default": lambda m, y: m.default(y),
    "float on the left": lambda m, y: y[:, : int(1.0 * m.width)].view(len(y), m.heads, 6),
    "replaced config": lambda m, y: y.view(len(y), SimpleNamespace(**vars(m.config.inner)).heads, 6),
}

# Two halves, or two pairs of halves, that lose equally many of their two rows of six.
HALVES = {"chunk", "chunk of heads", "split by attribute", "split by shape"}
PAIRS = {"split by sizes", "slice from half"}

WRITTEN = r"is written as the number \d+$"
GIVEN = r"^after a cut, aten\.\w+\.Tensor is given [\d.]+ instead of [\d.]+$"
FACTOR = "^a number that enters a computation that niwaki does not follow is computed as heads, which cannot"
PART = "^a number that is part of the computed function is computed as heads, which cannot follow a cut"
PINS: dict[str, tuple[Callable[[Any, Any], Tensor], str]] = {
    "literal": (lambda m, y: y.view(len(y), 4, 6), WRITTEN),
    "global": (lambda m, y: y.view(len(y), HEADS, 6), WRITTEN),
    "enumeration": (lambda m, y: y.view(len(y), m.member.value, 6), WRITTEN),
    "number of numpy": (lambda m, y: y.view(len(y), int(m.array), 6), WRITTEN),
    "number in a tensor": (lambda m, y: y.view(len(y), int(m.buffer), 6), WRITTEN),
    "float": (lambda m, y: y.view(len(y), int(m.width / 6), 6), WRITTEN),
    "string": (lambda m, y: y.view(len(y), int(f"{m.heads}"), 6), WRITTEN),
    "cache": (lambda m, y: y.view(len(y), half(8), 6), WRITTEN),
    "Size.numel": (lambda m, y: y.view(len(y), y.shape[1:].numel() // 6, 6), WRITTEN),
    "repetitions": (lambda m, y: torch.stack([y[:, 6 * i : 6 * i + 6] for i in range(m.heads)], 1), WRITTEN),
    "einops, a number": (lambda m, y: _rearrange(y, "b (h d) -> b h d", h=4, d=6), WRITTEN),
    "factor": (lambda m, y: y.view(len(y), m.heads, 6) * m.heads, FACTOR),
    "divisor": (lambda m, y: y.view(len(y), m.heads, 6) / math.sqrt(m.heads), PART),
    "divisor of numpy": (lambda m, y: y.view(len(y), m.heads, 6) / np.sqrt(m.heads), GIVEN),
    "array": (lambda m, y: y.view(len(y), m.heads, 6) * float(np.array([m.heads])[0]), GIVEN),
    "factor in a string": (lambda m, y: y.view(len(y), m.heads, 6) * int(f"{m.heads}"), GIVEN),
    "length of a range": (lambda m, y: y.view(len(y), m.heads, 6) * len(range(m.heads)), GIVEN),
    "table": (lambda m, y: y.view(len(y), m.heads, 6) * {4: 2.0}.get(m.heads, 1.0), r"is computed as \(heads - 4\)"),
    "size of a repetition": (lambda m, y: y.view(len(y), m.heads, 6) * _gates(m, 4), r"computed as \(4 - \(heads \* "),
    "loop": (lambda m, y: _repeated(y.view(len(y), m.heads, 6), m.heads), "is replaced by another operator$"),
    "values": (lambda m, y: y.view(len(y), m.heads, 6) * torch.arange(m.heads)[:, None], "anew in every call$"),
}
# fmt: on


def _rearrange(y: Tensor, pattern: str, **sizes: int) -> Tensor:
    result: Tensor = pytest.importorskip("einops").rearrange(y, pattern, **sizes)
    return result


def _gates(m: Any, total: int) -> Tensor:
    return m.gate[:1].sigmoid().repeat_interleave(m.heads, dim=0, output_size=total)[:, None]  # type: ignore[no-any-return]


def _repeated(y: Tensor, times: int) -> Tensor:
    for _ in range(times):
        y = y * y.abs()
    return y


def _asserted(m: Any, y: Tensor) -> Tensor:
    assert y.shape[1] == m.width, f"{y.shape[1]} is not {m.width}"
    if m.width % m.size:
        raise ValueError(f"{m.width} is not a multiple of {m.size}")
    return y.view(len(y), m.heads, 6)


@pytest.mark.parametrize("name", FOLLOWS)
def test_a_size_follows(name: str) -> None:
    torch.manual_seed(0)
    net, x = Net(FOLLOWS[name]), torch.randn(2, 5)
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [2] if name in HALVES else [2, 2] if name in PAIRS else [4]
    for seed in range(2):
        plan = niwaki.Plan.from_json(random_plan(space, np.random.default_rng(seed)).to_json())
        found = deviations(net, plan, x)
        assert found["eval"] <= 1e-10
        assert found["train"] <= 1e-8


@pytest.mark.parametrize("name", PINS)
def test_a_size_pins(name: str) -> None:
    function, reason = PINS[name]
    space = niwaki.search_space(Net(function), torch.randn(2, 5))
    assert not space.groups
    assert not space.notes
    pins = [pin for pin in space.pins if (pin.parameter, pin.dim) == ("first.weight", 0)]
    assert sum(pin.count for pin in pins) == 24
    for pin in pins:
        assert re.search(reason, pin.reason), pin
        assert pin.location is not None
        places = ((function, 0), (_rearrange, 1), (_repeated, 2), (_gates, 1))
        lines = {given.__code__.co_firstlineno + inside for given, inside in places}
        assert pin.location.file == __file__ and pin.location.line in lines


def test_a_shared_config_is_one_object_for_all_but_the_cut_module() -> None:
    """The class's and the other modules' stay what they are."""

    def shape(module: Any, y: Tensor) -> Tensor:
        return _viewed(y, module.settings.inner.heads)

    torch.manual_seed(0)
    net: Any = nn.Sequential(Net(shape), nn.Linear(3, 5), Net(shape))
    x = torch.randn(2, 5)
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups if group.units == 4] == [4, 4]
    assert not space.ties
    keep = np.ones(space.num_units, dtype=bool)
    keep[space.groups[0].first : space.groups[0].first + 2] = False
    small = niwaki.cut(net, space.plan(keep))
    assert [module.settings.inner.heads for module in (small[0], small[2], net[0], Net)] == [2, 4, 4, 4]
    assert small[2].settings is Net.settings


class Width(nn.Module):
    """Attention's usual last lines: the width to come back to is read from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.first, self.last = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        batch, width = x.shape
        y = self.first(x).view(batch, self.heads, -1).tanh()
        return self.last(y.reshape(batch, width))


def test_a_width_read_from_the_input_is_left_to_the_graph_level_cut() -> None:
    torch.manual_seed(0)
    net, x = Width(), torch.randn(2, 24)
    space = niwaki.search_space(net, x)
    assert not space.groups
    reasons = {pin.reason for pin in space.pins if (pin.parameter, pin.dim) == ("first.weight", 0)}
    assert reasons == {
        "a size given to view is computed as size(24), which cannot follow a cut: size(24) is read from a shape that "
        "no attribute decides. The graph-level cut can change it (as_graph=True)"
    }
    space = niwaki.search_space(net, x, as_graph=True)
    assert [group.units for group in space.groups] == [4]
    assert niwaki.check(net, random_plan(space, np.random.default_rng(0)), x, as_graph=True).holds
