"""Functions on a model that remember something from call to call: all copies that `check` compares begin alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def _variable() -> Callable[..., Tensor]:
    count = 0

    def counts(_: Any, __: Any, result: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return result * count

    return counts


def _list() -> Callable[..., Tensor]:
    seen: list[int] = []

    def counts(_: Any, __: Any, result: Tensor) -> Tensor:
        seen.append(1)
        return result * len(seen)

    return counts


def _tensor() -> Callable[..., Tensor]:
    total = torch.ones(())

    def counts(_: Any, __: Any, result: Tensor) -> Tensor:
        return result * total.add_(1)

    return counts


def _default() -> Callable[..., Tensor]:
    def counts(_: Any, __: Any, result: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
        seen.append(1)
        return result * len(seen)

    return counts


def _bound() -> Callable[..., Tensor]:
    def counts(seen: list[int], _: Any, __: Any, result: Tensor) -> Tensor:
        seen.append(1)
        return result * len(seen)

    return partial(counts, [])


_FILES = {
    "global number": """
count = 0

def counts(_, __, result):
    global count
    count += 1
    return result * count
""",
    "global list": """
seen = []

def counts(_, __, result):
    seen.append(1)
    return result * len(seen)
""",
    "global of a helper": """
table = {"seen": []}

def count():
    def inner():
        table["seen"].append(1)
        return len(table["seen"])
    return inner()

def counts(_, __, result):
    return result * count()
""",
    "global that the first call makes": """
def counts(_, __, result):
    global count
    count = 1 + (count if "count" in globals() else 0)
    return result * count
""",
}


def _file(source: str) -> Callable[..., Tensor]:
    """A function in a Python module of its own."""
    variables: dict[str, Any] = {"__name__": "of_a_user"}
    exec(source, variables)
    counts: Callable[..., Tensor] = variables["counts"]
    return counts


_COUNTERS = {
    **{"variable": _variable, "list": _list, "tensor": _tensor, "default": _default, "partial": _bound},
    **{name: partial(_file, source) for name, source in _FILES.items()},
}


def _net(counts: Callable[..., Tensor], place: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    if place == "hook":
        net[1].register_forward_hook(counts)
    else:
        forward = net[1].forward
        net[1].forward = lambda x: counts(None, None, forward(x))
    return net


@pytest.mark.parametrize("place", ["hook", "forward"])
@pytest.mark.parametrize("counter", _COUNTERS)
@pytest.mark.parametrize("calls", [1, 2])
def test_a_right_cut_of_a_network_that_counts_is_exact(counter: str, place: str, calls: int) -> None:
    counts = _COUNTERS[counter]()
    net, inputs = _net(counts, place), [X, X + 1][:calls]
    space = niwaki.search_space(net, inputs)
    assert space.num_units == 8
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    first = _net(_COUNTERS[counter](), place)
    first.load_state_dict(net.state_dict())
    outcome = niwaki.check(net, plan, inputs)
    assert outcome.holds, str(outcome)
    with torch.no_grad():
        assert torch.equal(net(X), first(X))  # nobody has counted before


def test_a_wrong_cut_of_a_network_that_counts_is_not() -> None:
    """It is found in the first module whose outputs can be compared."""
    net = _net(_variable(), "hook")
    space = niwaki.search_space(net, X)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    net[1].register_forward_hook(lambda _, __, result: result + result.shape[-1])
    outcome = niwaki.check(net, plan, X)
    assert not outcome.holds and outcome.diverges == "2"


def test_what_hooks_put_into_variables_of_their_file_is_put_back() -> None:
    """Each of the steps alone; the search leaves nothing there that was not computed."""
    variables: dict[str, Any] = {"__name__": "of_a_user"}
    body = "global last\n    last = result\n    features.append(result)"
    exec(f"features = []\ndef keep(_, __, result):\n    {body}", variables)
    net, features = nn.Sequential(nn.Linear(300, 64), nn.Tanh(), nn.Linear(64, 2)), variables["features"]
    net[1].register_forward_hook(variables["keep"])
    x = torch.randn(64, 300)

    def untouched() -> bool:
        return variables["features"] is features and not features and "last" not in variables

    space = niwaki.search_space(net, x)
    assert untouched()
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    assert niwaki.check(net, plan, x).holds and untouched()
    niwaki.latency({"dense": net, "small": niwaki.cut(net, plan)}, x, seconds=0, rounds=2)
    assert untouched()
