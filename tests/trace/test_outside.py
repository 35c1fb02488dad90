"""What passes leave outside of the modules is what a pass of the user's would leave, and dense networks stay what they
are."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet
from hypothesis import HealthCheck, given, settings
from networks import Image, Tokens, build, networks
from torch import Tensor, nn
from zoo import ZOO

import niwaki
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import example_calls, trace

WIDTH, SIDE = 16, 48  # large enough for results to be left uncomputed in a trace
FREQUENCIES = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
TABLES: dict[Any, Any] = {}
SEEN: list[Any] = []
LAST: Any = None
STATE = torch.zeros(2)


def table(side: int, channels: int) -> Tensor:
    """Positions [1, channels, side, side], by a product that only constants have a part in."""
    steps = torch.linspace(-1, 1, side, dtype=torch.get_default_dtype())
    ys, xs = torch.meshgrid(steps, steps, indexing="ij")
    phases = torch.stack([ys, xs], -1).reshape(-1, 2) @ FREQUENCIES.to(steps.dtype)
    return phases.sin().sum(-1).reshape(1, 1, side, side).repeat(1, channels, 1, 1)


cached = lru_cache(maxsize=None)(table)


@cache
def weighted(net: Any, side: int) -> Tensor:
    """A table that weights have a part in, too."""
    made: Tensor = net.first.weight.detach().sum((1, 2, 3)).reshape(1, -1, 1, 1) * table(side, 1)
    return net.mix(made).detach()


class Held:
    """A plain object with slots, a closure and generators."""

    __slots__ = ("count", "draws", "generator", "store", "tables")

    def __init__(self) -> None:
        self.count, self.tables = 0, dict[Any, Any]()
        self.generator, self.draws = torch.Generator().manual_seed(0), np.random.default_rng(0)
        kept: list[int] = []

        def store(number: int) -> int:
            kept.append(number)
            return len(kept)

        self.store = store


class Net(nn.Module):
    tables: ClassVar[dict[Any, Any]] = {}
    last: ClassVar[Any] = None

    def __init__(self, place: str) -> None:
        super().__init__()
        self.first, self.mix = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.final = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, 2, 1))
        self.place = place
        self.held = Held()

    def positions(self, x: Tensor) -> Tensor:
        global LAST
        side, channels = x.shape[-1], x.shape[1]
        if self.place == "lru_cache":
            return cached(side, channels)
        if self.place == "lru_cache of weights":
            return weighted(self, side)
        if self.place in ("global dict", "class-level dict", "object"):
            known = {"global dict": TABLES, "class-level dict": Net.tables, "object": self.held.tables}[self.place]
            if (side, channels) not in known:
                known[side, channels] = table(side, channels)
            return known[side, channels]
        if self.place == "train":
            return cached(side, channels) if self.training else table(side, channels)
        made = self.mix(x)
        if self.place == "global variable":
            LAST = made if LAST is None else LAST
            SEEN.append(made)
        elif self.place == "class attribute":
            Net.last = made if Net.last is None else Net.last
        elif self.place == "global tensor":
            STATE.add_(made.detach().mean().to(STATE.dtype))
            return made + STATE.sum().to(made.dtype)
        elif self.place == "notes":
            self.first.weight.calls = getattr(self.first.weight, "calls", 0) + 1
            self.held.count += 1
            self.held.store(1)
            return made * self.held.count * self.first.weight.calls
        elif self.place == "generator":
            return made + torch.rand(1, generator=self.held.generator) + self.held.draws.random()
        return made

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x)
        return self.final((hidden + self.positions(hidden)).relu())


PLACES = (
    *("lru_cache", "lru_cache of weights", "global dict", "class-level dict", "object", "train", "global variable"),
    *("class attribute", "global tensor", "notes", "generator"),
)
OWN = {"object", "notes", "generator"}  # what hangs on modules: put back whole
EACH = {"global tensor"}  # every pass adds to it


def clear() -> None:
    global LAST
    cached.cache_clear()
    weighted.cache_clear()
    for held in (TABLES, Net.tables, SEEN):
        held.clear()
    LAST, Net.last = None, None
    STATE.zero_()


@pytest.fixture(autouse=True)
def cleared() -> Iterator[None]:
    clear()
    yield
    clear()


def generators() -> list[Any]:
    numpy_state: Any = np.random.get_state()
    return [torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()]


def everything(net: nn.Module, inputs: Any) -> tuple[niwaki.SearchSpace, nn.Module]:
    """What a user calls on a dense network."""
    space = niwaki.search_space(net, inputs)
    scores = niwaki.score(space, "magnitude")
    if not space.num_units:
        return space, net
    plan = niwaki.choose(space, scores, niwaki.Budget(units=0.9))
    small = niwaki.cut(net, plan)
    assert niwaki.check(net, plan, inputs).holds or getattr(net, "place", "") in EACH
    niwaki.latency({"dense": net, "small": small}, inputs, seconds=0, rounds=2)
    return space, small


@pytest.mark.parametrize("place", PLACES)
def test_what_is_kept_outside_of_modules_is_of_real_passes(place: str) -> None:
    net, x = Net(place).eval(), torch.randn(1, 3, SIDE, SIDE)
    if place == "train":
        net.train()
    with torch.no_grad():
        expected = copy.deepcopy(net)(x)
        increment = STATE.clone()
        clear()
        before, stored = generators(), net.held.store(0)
        _, small = everything(net, x)
        assert generators() == before
        if place == "notes":
            assert net.held.store(0) == stored + 1, "what its closure holds is put back"
        if place in EACH:
            times = (STATE / increment).round()
            assert 1 <= times[0] <= 40
            torch.testing.assert_close(STATE, increment * times)
            return
        assert LAST is None and Net.last is None and not (SEEN or TABLES or Net.tables), "these are put back whole"
        assert torch.equal(copy.deepcopy(net)(x), expected)
        ours = copy.deepcopy(small)(x)
        clear()
        assert torch.equal(copy.deepcopy(small)(x), ours)


def test_what_passes_count_and_append_outside_is_put_back() -> None:
    """Each of the steps alone: a cut network has other shapes, and `check` computes in another precision."""

    class Counted(Net):
        calls: ClassVar[int] = 0

        def forward(self, x: Tensor) -> Any:
            type(self).calls += 1
            return super().forward(x)

    net, x = Counted("global variable").eval(), torch.randn(1, 3, SIDE, SIDE)
    net(x)
    before = list(SEEN)
    space = niwaki.search_space(net, x)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.9))
    assert Counted.calls == 1 and SEEN == before
    assert niwaki.check(net, plan, x).holds
    assert Counted.calls == 1 and SEEN == before
    niwaki.latency({"dense": net, "small": niwaki.cut(net, plan)}, x, seconds=0, rounds=2)
    assert Counted.calls == 1 and SEEN == before


@pytest.mark.parametrize("place", ["lru_cache", "global dict"])
def test_exporting_leaves_nothing_fake_behind(place: str) -> None:
    net, x = Net(place).eval(), torch.randn(1, 3, SIDE, SIDE)
    expected = net(x)
    clear()
    niwaki.search_space(net, x, as_graph=True)
    assert torch.equal(net(x), expected)


def test_a_cut_network_finds_no_zeros_of_a_rehearsal() -> None:
    """Tables that are kept by the number of channels, which constants alone have a part in."""

    class Channels(Net):
        def positions(self, x: Tensor) -> Tensor:
            return cached(x.shape[-1], x.shape[1])

    net, x = Channels("").eval(), torch.randn(1, 3, SIDE, SIDE)
    trace(net, example_calls(x))  # without a real pass
    for channels in range(1, WIDTH + 1):
        for arguments in ((SIDE, channels),):
            assert torch.equal(cached(*arguments), table(*arguments))


class Memory:
    """As the caches of generating networks."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []


def test_objects_among_the_inputs_are_left_as_they_were() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, memory: Memory) -> Tensor:
            memory.tensors.append(x)
            return self.last(self.first(torch.cat(memory.tensors)).relu())

    memory = Memory()
    net, inputs = Remembering().eval(), {"x": torch.randn(3, 4), "memory": memory}
    space, _ = everything(net, inputs)
    assert space.num_units == 8 and memory.tensors == []


SMALL: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "mlp": lambda: (MLP(), torch.randn(3, 6)),
    "convnet": lambda: (ConvNet(), torch.randn(2, 1, 8, 8)),
    **{name: lambda name=name: (ZOO[name].build(), ZOO[name].inputs()) for name in ("resnet18", "bert", "llama")},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("resnet18", "bert") else []) for name in SMALL]
)
def test_dense_networks_stay_what_they_are(name: str) -> None:
    stays(*SMALL[name]())


@settings(deadline=None, max_examples=5, suppress_health_check=list(HealthCheck))
@given(networks)
def test_random_networks_stay_what_they_are(spec: Image | Tokens) -> None:
    stays(*build(spec))


def stays(net: nn.Module, inputs: Any) -> None:
    """Outputs, weights, buffers, attributes and random states are bit-identical after all that a user calls."""
    net.eval()
    args, kwargs = example_calls(inputs)[0]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    attributes = {path: dict(vars(module)) for path, module in net.named_modules()}
    with torch.no_grad():
        before = [tensor.clone() for tensor in tensors_in(net(*args, **kwargs))]
        drawn = generators()
        everything(net, inputs)
        assert generators() == drawn
        after = list(tensors_in(net(*args, **kwargs)))
    assert len(after) == len(before) and all(torch.equal(*pair) for pair in zip(after, before, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    for path, module in net.named_modules():
        assert vars(module).keys() == attributes[path].keys()
        assert all(value is attributes[path][key] for key, value in vars(module).items())


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda made: made,
    "tuple": lambda made: (made, 1),
    "mapping": lambda made: {"made": made},
    "nested": lambda made: [{"made": (made,)}],
}
TAKEN: dict[str, Callable[[Any], Tensor]] = {
    "tensor": lambda found: found,
    "tuple": lambda found: found[0],
    "mapping": lambda found: found["made"],
    "nested": lambda found: found[0]["made"][0],
}


@pytest.mark.parametrize("kind", RESULTS)
def test_caches_of_functions_hold_no_zeros_of_the_analysis(kind: str) -> None:
    """Whatever a function returns; a cache that the analysis put nothing uncomputed into is kept."""

    @lru_cache(maxsize=8)
    def mixed(net: Any, side: int) -> Any:
        return RESULTS[kind](net.mix(table(side, WIDTH)).detach())

    @lru_cache(maxsize=8)
    def constant(side: int) -> Tensor:
        return table(side, WIDTH)

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mix = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
            self.final = nn.Conv2d(WIDTH, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            side = x.shape[-1]
            return self.final(torch.relu(self.first(x) + TAKEN[kind](mixed(self, side)) + constant(side)))

    net, x = Cached().eval(), torch.randn(1, 3, SIDE, SIDE)
    expected = copy.deepcopy(net)(x)
    constant.cache_clear()
    mixed.cache_clear()
    other = constant(5)
    niwaki.search_space(net, x)
    assert torch.equal(net(x), expected)
    assert constant(5) is other
