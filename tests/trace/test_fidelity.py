"""The network that is analysed is the one that runs, whatever its code asks of its settings beside their values."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import niwaki
from niwaki.core.numbers import Attribute
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import random_plan
from niwaki.trace.attributes import Tracking
from niwaki.trace.extent import NOTHING
from niwaki.trace.graph import Graph
from niwaki.trace.matching import departure
from niwaki.trace.tracer import trace
from niwaki.trace.tracked import TrackedInt


@dataclass(eq=False)
class Config:
    """Equal to nothing but itself."""

    mode: int = 1
    width: int = 12


class Mark:
    """A sentinel, with a number on it."""

    def __init__(self) -> None:
        self.size = 5


ONE = 1  # people write `is 1`, of which Python warns
MARK = Mark()
KNOWN = Config()
TABLE: dict[Any, bool] = {KNOWN: True}


def _is_one(number: object) -> bool:
    return number is ONE


LOOKS: dict[str, Callable[[Any], bool]] = {
    "is": lambda m: _is_one(m.mode),
    "is not": lambda m: not (m.mode is not ONE),
    "type is": lambda m: type(m.mode) is int,
    "type ==": lambda m: type(m.mode) == int,  # noqa: E721
    "type in": lambda m: type(m.mode) in (int, float),
    "class": lambda m: m.mode.__class__ is int,
    "class ==": lambda m: m.mode.__class__ == int,  # noqa: E721
    "name of the class": lambda m: type(m.mode).__name__ == "int",
    "table of classes": lambda m: {int: True}.get(type(m.mode), False),
    "id": lambda m: id(m.mode) == id(1),
    "item of a tuple": lambda m: type(m.pair[0]) is int,
    "item of a dict": lambda m: type(m.table["mode"]) is int,
    "number of an object": lambda m: type(m.config.mode) is int,
    "object is": lambda m: m.config is KNOWN,
    "object in": lambda m: m.config in [KNOWN],
    "object as a key": lambda m: TABLE.get(m.config, False),
    "object ==": lambda m: m.config == KNOWN,
    "id of an object": lambda m: id(m.config) == id(KNOWN),
    "sentinel": lambda m: m.mark is MARK,
    "tuple is": lambda m: m.pair is m.same[0],
    "shared by modules": lambda m: m.config is m.conv.config,
    "fraction": lambda m: type(m.rate) is float,
    "class of a fraction": lambda m: m.rate.__class__ is float,
}
FAILS: dict[str, Callable[[Any], bool]] = {
    "key": lambda m: TABLE[m.config],
    "subscript": lambda m: bool(m.mode) if type(m.mode) is int else m.mode[0],
    "match": lambda m: {int: True}[type(m.mode)],
    "assertion": lambda m: _insists(type(m.mode) is int),
}


def _insists(holds: bool) -> bool:
    assert holds
    return True


class Block(nn.Module):
    """Adds its input if it finds what it looks for, and must be pruned together with what comes before then."""

    def __init__(self, width: int, look: str) -> None:
        super().__init__()
        self.look, self.mode, self.rate, self.config, self.mark = look, 1, 0.5, KNOWN, MARK
        self.pair = (1, 2)
        self.same, self.table = [self.pair], {"mode": 1, "other": 2}
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.conv.config = KNOWN

    def forward(self, x: Tensor) -> Tensor:
        looks = (LOOKS | FAILS)[self.look](self)
        return x + self.conv(x) if looks else self.conv(x)


def _between(*blocks: nn.Module) -> nn.Sequential:
    """In a network of 8 channels."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
    return nn.Sequential(first, *blocks, nn.ReLU(), last).double().eval()


def _image() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _lawful(net: nn.Module, space: niwaki.SearchSpace, x: Tensor) -> bool:
    plan = random_plan(space, np.random.default_rng(0))
    expected = zeroed(net, plan)(x)
    return bool((niwaki.cut(net, plan)(x) - expected).abs().max() <= 1e-10 * expected.abs().max())


@pytest.mark.parametrize("look", [*LOOKS, *FAILS])
def test_code_that_looks_at_more_than_values_goes_its_own_way(look: str) -> None:
    net, x = _between(Block(8, look), Block(8, look)), _image()
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [8]
    assert _lawful(net, space, x)


class Attention(nn.Module):
    """Looks at one of its numbers, uses the others, and needs both of its heads' numbers to be pruned."""

    def __init__(self, look: Callable[[Any], bool], holder: Callable[..., Any]) -> None:
        super().__init__()
        self.look, self.settings = [look], holder(mode=1, heads=4, size=4)
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert self.look[0](self.settings)
        number = vars(self.settings)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, number["heads"], number["size"]).permute(2, 0, 3, 1, 4)
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layers(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_what_need_not_be_given_up_is_tracked_and_all_layers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []
    plain = niwaki.trace.fidelity.Tracer.attempt
    monkeypatch.setattr(
        "niwaki.trace.tracer.Tracer.attempt", lambda *given, **named: attempts.append(0) or plain(*given, **named)
    )
    net = Layers(lambda: Attention(lambda config: type(config.mode) is int, SimpleNamespace)).double().eval()
    x = torch.randn(2, 3, 8).double()
    space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [4] * 5
    assert _lawful(net, space, x)
    assert len(attempts) < 16
    (note,) = space.notes
    assert f"{__file__}:" in note and "(in 'layers.0" in note
    assert note.endswith(
        "these count as numbers written in the source: layers.0.settings.mode, layers.1.settings.mode, "
        "layers.2.settings.mode and 2 more."
    )


class Asks(nn.Module):
    """Says what it finds, and calls no operator."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 1

    def forward(self) -> bool:
        return type(self.number) is int


class Elsewhere(nn.Module):
    """Does what another module says."""

    def __init__(self) -> None:
        super().__init__()
        self.asks, self.conv = Asks(), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.asks() else self.conv(x)


class Sizes(nn.Module):
    """Asks what a size is."""

    def __init__(self, attribute: bool) -> None:
        super().__init__()
        self.attribute, self.number, self.conv = attribute, 1, nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found = type(x.shape[0]) is int and (not self.attribute or type(self.number) is int)
        return x + self.conv(x) if found else self.conv(x)


class Wires(nn.Module):
    """Calls the same operators on tensors of the same shapes either way."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.number = of, 1
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found = type(self.number) is int
        if self.of == "tensor":
            y = self.a(x)
            return self.b(y) + (x if found else y)
        if self.of == "parameter":
            return torch.cat([x, (self.a if found else self.b)(x)])
        if self.of == "argument":
            return self.a(x.sum(1 if found else 0, keepdim=True).expand(2, 8, 6, 6))
        return self.b(torch.cat([self.a(x)[:, :4], x[:, 4:] if found else x[:, :4]], 1))


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (Elsewhere, "1.asks.number"),
        (lambda: Sizes(attribute=False), "the sizes of tensors in 1"),
        (lambda: Sizes(attribute=True), "1.number and the sizes of tensors in 1"),
        *((functools.partial(Wires, of), "1.number") for of in ("tensor", "parameter", "argument", "slice")),
    ],
)
def test_wherever_the_cause_lies(block: Callable[[], nn.Module], what: str) -> None:
    net, x = _between(block()), _image()
    space = niwaki.search_space(net, x)
    plain = trace(net, [((x,), {})], extent=NOTHING)
    assert space.notes[0].endswith(f"numbers written in the source: {what}.") or what == "1.asks.number"
    assert departure(niwaki.search.faithful_trace(net, [((x,), {})]), plain) is None
    assert not space.groups or _lawful(net, space, x)


def test_the_model_itself_is_named() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x.relu() if type(x.shape[1]) is int else x.tanh())

    (note,) = niwaki.search_space(Asks(), torch.randn(3, 4)).notes
    assert note.endswith("the sizes of tensors in the model itself.")


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_trace_that_lies_is_found_out(data: st.DataObject) -> None:
    """Tracking is broken on purpose: some numbers are not what they are."""
    torch.manual_seed(0)
    net, x = _numbers().eval(), torch.randn(2, 16)
    names = data.draw(st.sets(st.sampled_from(["0.times", "2.shift", "3.times", "3.shift"]), min_size=1))
    tell = Tracking._tracked

    def lie(self: Tracking, path: str, name: str, where: Any, value: Any) -> Any:
        told = tell(self, path, name, where, value)
        if isinstance(told, TrackedInt) and f"{path}.{name}" in names:
            return TrackedInt(told + 1, Attribute(path, name, where, value + 1))
        return told

    honest = niwaki.search_space(net, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracking, "_tracked", lie)
        space = niwaki.search_space(net, x)
    assert [group.units for group in space.groups] == [group.units for group in honest.groups]
    (note,) = space.notes
    assert "these count as numbers written in the source" in note and honest.notes == ()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.times, self.shift, self.lin = 2, 3, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * self.times + self.shift


def _numbers() -> nn.Sequential:
    return nn.Sequential(Scaled(), nn.ReLU(), Scaled(), Scaled(), nn.ReLU(), nn.Linear(16, 2))


class Growing(nn.Module):
    """Does more in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.number = nn.Linear(4, 8), 1

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(x)
        return functools.reduce(lambda y, _: y.abs(), RUNS, self.lin(x))


RUNS: list[Any] = []


def test_a_model_that_is_another_in_every_run_is_noted() -> None:
    space = niwaki.search_space(nn.Sequential(Growing(), nn.Linear(8, 2)).eval(), torch.randn(2, 4))
    RUNS.clear()
    assert "The model does not compute the same in every run: two that began alike differ at '1'." in space.notes


class Alternating(nn.Module):
    """Draws its activation from an iterator that it keeps."""

    def __init__(self, drawn: Iterator[Any]) -> None:
        super().__init__()
        self.first, self.drawn, self.last = nn.Linear(4, 8), drawn, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(next(self.drawn)(self.first(x)))
        return out


def _chained(kinds: Sequence[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(kinds))


@pytest.mark.parametrize("repeated", [itertools.cycle, _chained])
@pytest.mark.parametrize("kinds", [(torch.relu, torch.tanh), (torch.relu, torch.tanh, torch.sigmoid)])
def test_a_model_that_draws_from_an_iterator_is_noted(repeated: Any, kinds: Sequence[Any]) -> None:
    space = niwaki.search_space(nn.Sequential(Alternating(repeated(kinds))).eval(), torch.randn(2, 4))
    assert space.notes[-1] == (
        "The model draws from an iterator that it keeps (0.drawn), which cannot be put back: each run goes "
        "on where the last one ended, and may compute something else. Make it anew in each pass, or count in an "
        "attribute instead."
    )
    steady = niwaki.search_space(nn.Sequential(Alternating(repeated([torch.relu]))).eval(), torch.randn(2, 4))
    assert steady.notes == () and steady.num_units == 8


class Caching(nn.Module):
    """Its first run computes what later ones find."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.half = nn.Linear(4, 8), 4

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * _ramp(x.shape[0])[:, None]


@functools.lru_cache
def _ramp(length: int) -> Tensor:
    return torch.arange(length) / 2


@pytest.mark.parametrize("filled", [False, True])
def test_a_cache_that_runs_fill_is_nothing_to_speak_of(filled: bool) -> None:
    _ramp.cache_clear()
    net, x = nn.Sequential(Caching(), nn.Linear(8, 2)).eval(), torch.randn(2, 4)
    if filled:  # for plain numbers, not for tracked ones
        net(x)
    space = niwaki.search_space(net, x)
    assert space.notes == () and (not filled or [group.units for group in space.groups] == [8])


def _traced(net: nn.Module, *inputs: Tensor, modes: tuple[bool, ...] = (False,)) -> Graph:
    return trace(net, [(inputs, {})], modes)


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.w, self.v = [function], nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, *given: Tensor) -> Any:
        return self.function[0](self, *given)


def _raises(error: Exception) -> Any:
    raise error


DIFFERENT: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "operator": (lambda m, x, y: (x + y).relu(), lambda m, x, y: (x + y).tanh(), 1),
    "parameter": (lambda m, x, y: x.abs() * m.w, lambda m, x, y: x.abs() * m.v, 1),
    "input": (lambda m, x, y: x * x, lambda m, x, y: x * y, 0),
    "tensor": (lambda m, x, y: x.abs() + x.relu(), lambda m, x, y: x.abs() + x.abs(), 1),
    "number": (lambda m, x, y: x.sum(0), lambda m, x, y: x.sum(1), 0),
    "kind of number": (lambda m, x, y: x * 2, lambda m, x, y: x * 2.0, 0),
    "keyword": (lambda m, x, y: x.sum(0, keepdim=True)[0], lambda m, x, y: x.sum(0, keepdim=False)[0], 0),
    "shape": (lambda m, x, y: x.new_empty(4, 4), lambda m, x, y: x.new_empty(4, 5), 0),
    "length": (lambda m, x, y: x.abs().relu(), lambda m, x, y: x.abs(), 1),
    "output": (lambda m, x, y: [x.abs(), x.relu()][0], lambda m, x, y: [x.abs(), x.relu()][1], 2),
    "outputs": (lambda m, x, y: (x.abs(), x), lambda m, x, y: x.abs(), 1),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_every_difference_is_seen(what: str) -> None:
    one, other, index = DIFFERENT[what]
    x, y = torch.ones(4, 4), torch.ones(4, 4)
    net = Calls(one)
    graph = _traced(net, x, y)
    net.function[0] = other
    instead = _traced(net, x, y)
    for here, there in ((graph, instead), (instead, graph)):
        found = departure(here, there)
        assert found is not None and found.index == (0, index)
        assert all(location.file == __file__ for location in found.locations)
    assert departure(graph, graph) is None and departure(instead, _traced(net, x, y)) is None


def test_other_errors_and_other_modes_are_differences() -> None:
    net = Calls(lambda m, x: _raises(ValueError("train")) if m.training else x.abs())
    graph = _traced(net, torch.ones(4), modes=(False, True))
    net.function[0] = lambda m, x: _raises(TypeError("train")) if m.training else x.abs()
    other = _traced(net, torch.ones(4), modes=(False, True))
    net.function[0] = lambda m, x: x.abs()
    both = _traced(net, torch.ones(4), modes=(False, True))
    assert departure(graph, other).index == (1, 0)
    assert departure(graph, both).index == (0, 1)
    assert departure(graph, replace(graph, runs=graph.runs[:1])).index == (1, 0)
    net.function[0] = lambda m, x, y: x
    first = _traced(net, torch.ones(4), torch.ones(4))
    net.function[0] = lambda m, x, y: y
    found = departure(first, _traced(net, torch.ones(4), torch.ones(4)))
    assert found.index == (0, 0) and str(found.location) == "the start of the model"
    assert departure(graph, graph) is None
