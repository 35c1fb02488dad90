"""Tensors that a model has made for itself since its search space was made do not go into the cut network."""

from __future__ import annotations

import warnings
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import NiwakiError, PlanError
from niwaki.surgery.cut import duplicate
from niwaki.surgery.leftovers import forget_leftovers, remember_beside


class Net(nn.Module):
    """Adds something of the width of ``up``, which it makes when it is first needed and keeps."""

    kept: Any
    store: Any
    late: Any
    number: Any
    pair: Any

    def __init__(self, way: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.way = nn.Linear(5, 12), nn.Linear(12, 3), way
        self.kept = self.pair = None
        self.number = 0.0
        self.table: dict[Any, Any] = {}
        self.nested: dict[str, Any] = {"tables": {}, "names": ["a"]}
        self.row: list[Any] = [None, None]
        self.queue: deque[Any] = deque(maxlen=2)
        self.recent: OrderedDict[Any, Any] = OrderedDict()
        self.object = SimpleNamespace(mem=None, width=12)

    def forward(self, x: Tensor) -> Any:
        y = self.up(x)
        return self.down(self.way(self, y).relu())


def made(y: Tensor) -> Tensor:
    return torch.full((1, y.shape[1]), 0.5, dtype=y.dtype)


def in_a_dictionary(net: Net, y: Tensor) -> Any:
    return y + net.table.setdefault(torch.Size([len(y)]), made(y))


def in_a_nested_dictionary(net: Net, y: Tensor) -> Any:
    return y + net.nested["tables"].setdefault(len(y), {"half": made(y)})["half"]


def in_a_dictionary_with_order(net: Net, y: Tensor) -> Any:
    return y + net.recent.setdefault(y.dtype, made(y))


def in_an_attribute(net: Net, y: Tensor) -> Any:
    net.kept = made(y) if net.kept is None else net.kept
    return y + net.kept


def in_a_number(net: Net, y: Tensor) -> Any:
    net.number = net.number * 0.5 + y  # a membrane potential
    return net.number


def in_a_pair(net: Net, y: Tensor) -> Any:
    net.pair = (2, [made(y)]) if net.pair is None else net.pair
    return y + net.pair[1][0]


def in_a_list(net: Net, y: Tensor) -> Any:
    net.row[1] = made(y) if net.row[1] is None else net.row[1]
    return y + net.row[1]


def in_a_queue(net: Net, y: Tensor) -> Any:
    net.queue.append(made(y))
    return y + sum(net.queue) / len(net.queue)


def in_an_object(net: Net, y: Tensor) -> Any:
    net.object.mem = made(y) if net.object.mem is None else net.object.mem
    return y + net.object.mem


def in_a_late_attribute(net: Net, y: Tensor) -> Any:
    net.late = getattr(net, "late", made(y))
    return y + net.late


WAYS: dict[Any, str] = {
    in_a_dictionary: "table[torch.Size([4])]",
    in_a_nested_dictionary: "nested['tables'][4]",
    in_a_dictionary_with_order: "recent[dtype 0]",
    in_an_attribute: "kept",
    in_a_number: "number",
    in_a_pair: "pair",
    in_a_list: "row[1]",
    in_a_queue: "queue[0]",
    in_a_late_attribute: "late",
}


def trained(way: Callable[[Net, Tensor], Tensor]) -> tuple[Net, niwaki.Plan, Tensor]:
    """A network that has run after its space was made, in a training step, and a plan."""
    net, x = Net(way), torch.randn(4, 5)
    space = niwaki.search_space(net, x)
    assert space.num_units == 12
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    net(x).sum().backward()
    return net, plan, x


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_cut_network_starts_without_them(way: Callable[[Net, Tensor], Tensor]) -> None:
    net, plan, x = trained(way)
    before = duplicate(net)(x)
    with pytest.warns(UserWarning, match="The cut network starts without tensors that the model has made") as caught:
        small = niwaki.cut(net, plan)
    assert repr(WAYS[way]) in str(caught[0].message)
    fresh = Net(way)
    fresh.load_state_dict(net.state_dict())
    niwaki.zero_(fresh, plan)
    assert torch.allclose(small(x), fresh(x), atol=1e-6)
    assert torch.equal(duplicate(net)(x), before)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_network_that_shrinks_goes_on_without_them(way: Callable[[Net, Tensor], Tensor]) -> None:
    net, plan, x = trained(way)
    with pytest.warns(UserWarning, match="starts without tensors"):
        niwaki.shrink(net, plan)
    net(x).sum().backward()


def test_in_an_object_that_hangs_on_the_model() -> None:
    net, x = Net(in_an_object), torch.randn(4, 5)
    remember_beside(net)
    net(x)
    copy: Any = duplicate(net)
    assert forget_leftovers(copy, only_look=True) == forget_leftovers(copy) == ["object.mem"]
    assert copy.object.mem is None and net.object.mem is not None
    assert not forget_leftovers(copy)


def test_what_was_there_when_the_space_was_made_stays() -> None:
    net, x = Net(in_a_dictionary), torch.randn(4, 5)
    net.object.bias, net.kept = torch.ones(3), [torch.ones(2), {"a": torch.ones(2)}]
    net.table[net.up] = net.up.weight
    net(x)
    space = niwaki.search_space(net, x)
    assert not space.num_units
    plan = space.plan(torch.ones(0).bool().numpy())
    net.steps = torch.ones(())
    net.row[0] = net.up.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small: Any = niwaki.cut(net, plan)
    assert set(map(str, small.table)) == set(map(str, net.table))
    assert small.object.bias.shape == (3,) and len(small.kept) == 2 and small.steps == 1
    assert small.row[0] is small.table[small.up] is small.up.weight


def test_check_tells_what_a_cut_loses_with_them() -> None:
    """A table that is made anew is not a loss; a potential that carries on from the last batch is."""
    net, plan, x = trained(in_a_dictionary)
    assert niwaki.check(net, plan, x).holds
    net, plan, x = trained(in_a_number)
    outcome = niwaki.check(net, plan, x)
    assert not outcome.holds and "it starts without number" in str(outcome)
    net.number = 0.0
    assert niwaki.check(net, plan, x).holds


def test_check_says_that_the_cut_network_does_not_run() -> None:
    """A plan for a network that niwaki has not analysed in this process: nothing is known of its tables."""
    net, plan, x = trained(in_a_dictionary)
    other = Net(in_a_dictionary)
    other(x)
    with pytest.raises(PlanError, match=r"The cut network does not run .*: RuntimeError: .*dense size"):
        niwaki.check(other, plan, x)


def test_check_says_that_the_model_does_not_run_either() -> None:
    net, plan, x = trained(in_a_number)
    with pytest.raises(NiwakiError, match="The model does not run"):
        niwaki.check(net, plan, x[:3])


class Trainer:
    """Refers to the model, as Lightning's does, and fills its lists when the training begins."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.optimizers, self.batches = net, [], []  # type: ignore[var-annotated]


@pytest.mark.parametrize("in_place", [False, True])
def test_what_trains_the_model_is_none_of_its_tensors(in_place: bool) -> None:
    """A model that holds its optimizer, its trainer and its method keeps them; what it has made for itself goes."""
    net: Any = Net(in_an_attribute)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net.optimizer, net.trainer = optimizer, Trainer(net)
    space = niwaki.search_space(net, torch.randn(2, 5))
    schedule = niwaki.Schedule(start=1, until=3, periods=1)
    net.method = niwaki.HESSO(space, optimizer, niwaki.Budget(units=0.5), schedule)
    net.trainer.optimizers.append(optimizer)
    net.trainer.batches.append(torch.randn(4, 5))
    net.trainer.loaders = [torch.randn(4, 5)]
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    with pytest.warns(UserWarning, match="its search space was made: 'kept'. They may"):
        if in_place:
            net.method.shrink()
        else:
            assert niwaki.cut(net, net.method.plan()).kept is None
    assert net.optimizer is optimizer and net.trainer.optimizers == [optimizer] and net.method.done
    assert len(net.trainer.batches) == len(net.trainer.loaders) == 1 and len(optimizer.state) == 4
    assert (net.kept is None) is in_place
    net(torch.randn(4, 5)).sum().backward()
    optimizer.step()


class Cache:
    """Of what a network has computed, to which it refers."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.kept = net, None


def test_a_cache_that_refers_to_the_model_is_emptied() -> None:
    """It does not train the model; what it holds has the dense sizes."""
    net: Any = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    net.cache = Cache(net)
    space = niwaki.search_space(net, torch.randn(2, 5))
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    net.cache.kept = torch.randn(3, 6)
    with pytest.warns(UserWarning, match="its search space was made: 'cache.kept'. They may"):
        small = niwaki.cut(net, plan)
    assert small.cache.kept is None and small.cache.net is small and net.cache.kept is not None
