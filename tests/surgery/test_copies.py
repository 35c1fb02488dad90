"""A copy of a model is a network of its own: nothing in it refers to the model that it was made of."""

from __future__ import annotations

import re
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import niwaki
from niwaki.errors import PlanError
from niwaki.surgery.cut import duplicate


def copied(model: nn.Module) -> Any:
    return duplicate(model)


class Net(nn.Module):
    """Computes ``down(relu(up(x)))``; ``read`` is how it comes by the result of ``up``."""

    layers: Any
    features: Any
    queue: Any
    put: Any

    def __init__(self, refer: Callable[[Net], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 4)
        self.read: Any = refer(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.read(x).relu())
        return y

    def through(self, x: Tensor) -> Any:
        return self.up(x)

    def through_layers(self, x: Tensor) -> Any:
        return self.layers["up"](x)


def closure(net: Net) -> Any:
    up = net.up
    return lambda x: up(x)


def closure_in_a_closure(net: Net) -> Any:
    def inner(x: Tensor) -> Any:
        return net.up(x)

    @wraps(inner)
    def outer(*given: Any) -> Any:
        return inner(*given)

    return outer


def parameter_in_a_closure(net: Net) -> Any:
    weight, bias = net.up.weight, net.up.bias
    return lambda x: x @ weight.t() + bias


def recursion(net: Net) -> Any:
    def deeper(x: Tensor, depth: int = 2) -> Any:
        return deeper(x, depth - 1) if depth else net.up(x)

    return deeper


def default_argument(net: Net) -> Any:
    def read(x: Tensor, up: nn.Module = net.up) -> Any:
        return up(x)

    return read


def keyword_default(net: Net) -> Any:
    def read(x: Tensor, *, up: nn.Module = net.up) -> Any:
        return up(x)

    return read


def attribute_of_a_function(net: Net) -> Any:
    def read(x: Tensor) -> Any:
        return read.up(x)  # type: ignore[attr-defined]

    read.up = net.up  # type: ignore[attr-defined]
    return read


def list_in_a_closure(net: Net) -> Any:
    layers = [net.up]
    return lambda x: layers[0](x)


@dataclass
class Helper:
    layers: dict[str, nn.Module]

    def __call__(self, x: Tensor) -> Any:
        return self.layers["up"](x)


def object_in_a_closure(net: Net) -> Any:
    helper = Helper({"up": net.up})
    return lambda x: helper(x)


def weak_reference(net: Net) -> Any:
    up = weakref.ref(net.up)
    return lambda x: up()(x)  # type: ignore[misc]


def weak_dictionary(net: Net) -> Any:
    net.layers = weakref.WeakValueDictionary({"up": net.up})
    return net.through_layers


def bound_to(net: nn.Module, function: Callable[..., Tensor]) -> Any:
    return types.MethodType(function, net)


def replaced_forward(net: Net) -> Any:
    before = net.up.forward
    net.up.forward = bound_to(net.up, lambda self, *given: before(*given))  # type: ignore[method-assign]
    return net.up


def forward_without_gradients(net: Net) -> Any:
    net.up.forward = torch.no_grad()(net.up.forward)  # type: ignore[method-assign]
    return net.up


def hook_that_replaces(net: Net) -> Any:
    up = net.up
    silent = nn.Identity()
    silent.register_forward_hook(lambda module, given, result: up(given[0]))
    net.silent = silent
    return silent


def hook_before(net: Net) -> Any:
    twin = nn.Identity()
    twin.register_forward_pre_hook(lambda module, given: (net.up(given[0]),))
    net.twin = twin
    return twin


def hook_that_keeps(net: Net) -> Any:
    net.features = features = {"up": torch.zeros(0)}
    net.up.register_forward_hook(lambda module, given, result: features.update(up=result))
    return lambda x: (net.up(x), net.features["up"])[1]


def method_of_a_list(net: Net) -> Any:
    net.queue = queue = deque[Tensor](maxlen=1)
    net.put = queue.append
    return lambda x: (net.put(net.up(x)), net.queue[0])[1]


def parametrised_beside(net: Net) -> Any:
    parametrize.register_parametrization(net.down, "bias", nn.Identity())
    up = net.up
    down: Any = net.down
    down.before = lambda x: up(x)
    return lambda x: down.before(x)


KINDS = [
    closure,
    closure_in_a_closure,
    parameter_in_a_closure,
    recursion,
    default_argument,
    keyword_default,
    attribute_of_a_function,
    list_in_a_closure,
    object_in_a_closure,
    weak_reference,
    weak_dictionary,
    replaced_forward,
    forward_without_gradients,
    hook_that_replaces,
    hook_before,
    hook_that_keeps,
    method_of_a_list,
    parametrised_beside,
    lambda net: net.through,
    lambda net: partial(lambda up, x: up(x), net.up),
    lambda net: Helper({"up": net.up}),
    lambda net: partial(Helper.__call__, Helper({"up": net.up})),
    lambda net: partial(lambda layers, x: layers[net.up](x), {net.up: net.up}),
]


def half(net: nn.Module, x: Tensor) -> tuple[niwaki.SearchSpace, niwaki.Plan]:
    space = niwaki.search_space(net, x)
    return space, niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))


@pytest.mark.parametrize("refer", KINDS, ids=lambda refer: refer.__name__)
def test_what_refers_to_the_model_refers_to_the_copy_in_a_copy(refer: Callable[[Net], Any]) -> None:
    net, x = Net(refer).double(), torch.randn(5, 8, dtype=torch.float64)
    before = net(x)
    space, plan = half(net, x)
    assert space.num_units == 12 and not space.notes
    small = niwaki.cut(net, plan)
    assert niwaki.check(net, plan, x).holds
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert not small(x).any()
    assert torch.equal(net(x), before)


def test_a_trainer_that_replaces_forward_after_the_space_was_made() -> None:
    net, x = Net(lambda net: net.through), torch.randn(5, 8)
    _, plan = half(net, x)
    before = net.forward
    net.forward = bound_to(net, lambda self, *given: before(*given))  # type: ignore[method-assign]
    small = niwaki.cut(net, plan)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert net(x).any() and not small(x).any()


def test_functions_that_do_not_reach_the_model_are_shared() -> None:
    """What a hook writes for its owner, who is not a part of the model, still arrives there."""
    seen: list[int] = []
    width, kernel = 3, torch.ones(2)
    net = nn.Sequential(nn.Linear(2, 3))

    def act(x: Tensor) -> Tensor:
        return x * width * kernel

    net.act = act  # type: ignore[assignment]
    net[0].register_forward_hook(lambda module, given, result: seen.append(len(result)))
    copy = copied(net)
    assert copy.act is act
    copy(torch.randn(4, 2))
    assert seen == [4]


def test_a_closure_over_the_program_around_the_model_copies_none_of_it() -> None:
    class Trainer:
        def __init__(self, model: nn.Module) -> None:
            self.model, self.lock, self.teacher = model, threading.Lock(), nn.Linear(1000, 1000)
            self.steps = 0

        def count(self) -> None:
            self.steps += 1

    net = nn.Sequential(nn.Linear(2, 3))
    inside: Any = net[0]
    trainer = Trainer(net)

    def hook(module: nn.Module, given: Any, result: Tensor) -> Any:
        trainer.count()
        return result + inside.weight.sum()

    net[0].register_forward_hook(hook)
    copy = copied(net)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert not copy(torch.randn(4, 2)).any()
    assert trainer.steps == 1


_elsewhere = nn.Linear(8, 12)


def _by_name(x: Tensor) -> Any:
    return _elsewhere(x)


@pytest.mark.parametrize(
    "read", [lambda x: _elsewhere(x), _by_name, lambda x: _by_name(x), wraps(_by_name)(partial(_by_name))]
)
def test_a_function_that_names_the_model_globally_is_refused(read: Callable[[Tensor], Tensor]) -> None:
    net, x = Net(lambda net: net.through), torch.randn(5, 8)
    _, plan = half(net, x)
    net.up, net.down.read = _elsewhere, read  # type: ignore[assignment]
    for attempt in (lambda: niwaki.cut(net, plan), lambda: niwaki.search_space(net, x)):
        with pytest.raises(PlanError, match=r"on the attribute 'down\.read', refers to the model by the global"):
            attempt()


class Mode:
    """A sentinel, as many write instead of an Enum."""

    def __init__(self, number: int) -> None:
        self.number = number


EXACT = Mode(1)


class Modes:
    EXACT = Mode(2)


MODES = {"exact": Mode(3)}
SETTINGS = Helper({})
NOTHING = object()


@pytest.mark.parametrize("mode", [EXACT, Modes.EXACT, MODES["exact"], NOTHING])
def test_what_the_code_has_a_name_for_is_the_same_in_a_copy(mode: object) -> None:
    class Sentinel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mode, self.inside = mode, {"mode": [mode]}

        def forward(self, x: Tensor) -> Tensor:
            assert self.mode is self.inside["mode"][0]
            return x if any(self.mode is known for known in (EXACT, Modes.EXACT, MODES["exact"], NOTHING)) else -x

    copy, x = copied(Sentinel()), torch.ones(2)
    assert torch.equal(copy(x), x)


def test_a_variable_around_a_method_is_the_same_in_a_copy() -> None:
    kept = Mode(1)

    class Sentinel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mode, self.own, self.settings = kept, Mode(1), SETTINGS

        def forward(self, x: Tensor) -> Tensor:
            return x if self.mode is kept else -x

    model: Any = Sentinel()
    copy = copied(model)
    assert copy.mode is kept
    assert copy.own is not model.own
    assert copy.settings == SETTINGS and copy.settings is not SETTINGS


class AttrDict(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def test_a_dictionary_that_answers_with_a_key_error() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    config: Any = AttrDict(width=3, inside=AttrDict(names=["a"]))
    net.config = config
    copy = copied(net)
    assert type(copy.config) is AttrDict and copy.config == config
    assert copy.config["inside"]["names"] is not config["inside"]["names"]


@pytest.mark.parametrize("kind", [KeyError, AttributeError, NotImplementedError, ValueError])
def test_whatever_copying_raises_becomes_a_sentence(kind: type[Exception]) -> None:
    class Stubborn:
        def __reduce_ex__(self, protocol: object) -> Any:
            raise kind("no copies of this")

    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    settings: Any = {"deep": [Stubborn()]}
    net[1].settings = settings
    with pytest.raises(PlanError, match=rf"the attribute '1\.settings' fails with {kind.__name__}: .*no copies"):
        niwaki.search_space(net, torch.randn(2, 4))


def test_an_error_without_words_makes_no_broken_sentence() -> None:
    class Frozen:
        __slots__ = ("value",)

        def __init__(self) -> None:
            object.__setattr__(self, "value", 1)

        def __setattr__(self, name: str, value: object) -> None:
            raise TypeError

    net: Any = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    net.frozen = Frozen()
    with pytest.raises(PlanError, match=r"the attribute 'frozen' fails with TypeError\. Something in it"):
        niwaki.search_space(net, torch.randn(2, 4))


@dataclass
class State:
    kept: Any


@pytest.mark.parametrize(
    "holder",
    [
        lambda y: y,
        lambda y: {"a": y},
        lambda y: [y, [y]],
        lambda y: (y, {"b": (y,)}),
        lambda y: State({"a": [y]}),
        lambda y: deque([y]),
        lambda y: AttrDict(a=y),
        lambda y: partial(torch.add, y),
    ],
)
def test_features_kept_after_a_training_step(holder: Callable[[Tensor], Any]) -> None:
    class Keeping(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.read(x)
            self.kept = holder(y)
            return self.down(y.relu())

    net, x = Keeping(closure), torch.randn(5, 8)
    _, plan = half(net, x)
    net(x).sum().backward()
    kept = net.kept
    small: Any = niwaki.cut(net, plan)
    assert small.down.in_features == 6
    assert niwaki.search_space(net, x).num_units == 12
    assert net.kept is kept
    net(x).sum().backward()


class Key:
    """An object that is known elsewhere by its identity alone."""


KNOWN: set[int] = set()


class ByIdentity(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.up(x)
        return self.down(y.relu() if id(self.key) in KNOWN else y.tanh())

    def recognise(self) -> ByIdentity:
        self.key: Any = Key()
        KNOWN.add(id(self.key))
        return self


class ByClass(Net):
    layers: Any = None

    def forward(self, x: Tensor) -> Any:
        return self.down((self.up if self.layers is None else self.layers[0])(x).relu())

    def recognise(self) -> ByClass:
        type(self).layers = [self.up]
        return self

    through = forward


class ScaledByClass(Net):
    """Nothing of what its class holds gets smaller: only the identity of the tensor tells."""

    scales: Any = None

    def recognise(self) -> ScaledByClass:
        self.scale = nn.Parameter(torch.ones((), device=self.up.weight.device))
        type(self).scales = [self.scale]
        return self

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x).relu()) * self.scales[0]


@pytest.fixture
def forgotten() -> Any:
    yield
    ByClass.layers = ScaledByClass.scales = None
    KNOWN.clear()


@pytest.mark.parametrize("kind", [ByIdentity, ByClass, ScaledByClass])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_space_says_that_a_copy_is_another_network(kind: Any, device: str, forgotten: None) -> None:
    net = kind(closure).to(device).recognise()
    space = niwaki.search_space(net, torch.randn(5, 8, device=device))
    assert not space.groups
    assert [note for note in space.notes if "A copy of the model computes something else than the model" in note]
    assert any(f"{__file__}:" in pin.reason for pin in space.pins)


def test_the_note_names_the_weights_of_the_model_that_a_copy_reads(forgotten: None) -> None:
    space = niwaki.search_space(ByClass(closure).recognise(), torch.randn(5, 8))
    (note,) = [note for note in space.notes if "A copy of the model" in note]
    assert re.search(
        r"is pinned: aten\.t\.default at .* reads no parameter of its own instead of '\w+\.weight'\. ", note
    )


def test_check_compares_with_the_model_itself(forgotten: None) -> None:
    net, x = ByIdentity(closure), torch.randn(5, 8)
    net.key = None
    _, plan = half(net, x)
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    assert niwaki.check(net, plan, x).holds
    net.recognise()
    outcome = niwaki.check(net, plan, x)
    assert not outcome.holds
    assert "a copy, which computes something else than the model" in str(outcome)
    assert all(map(torch.equal, weights, net.parameters())) and net.training


def test_check_says_that_a_copy_computes_with_the_weights_of_the_model(forgotten: None) -> None:
    """Also where that changes nothing, since what was removed is zero already."""
    net, x = ByClass(closure), torch.randn(5, 8)
    _, plan = half(net, x)
    niwaki.zero_(net, plan)
    assert niwaki.check(net, plan, x).holds
    net.recognise()
    with pytest.raises(PlanError, match=r"A copy of the model computes with 'up.weight' of the model itself"):
        niwaki.check(net, plan, x)


def test_a_graph_recorded_before_a_check_is_still_good() -> None:
    net, x = Net(closure), torch.randn(5, 8)
    _, plan = half(net, x)
    loss = net(x).square().sum()
    assert niwaki.check(net, plan, x).holds
    loss.backward()
