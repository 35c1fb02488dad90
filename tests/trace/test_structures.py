"""Tensors in containers of any class, at any depth, are inputs and outputs; those in other objects are named."""

from __future__ import annotations

from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import niwaki
from niwaki.performance.meters import meters
from niwaki.trace.structures import map_tensors, objects_in, tensors_in


class AttributeDict(dict):  # type: ignore[type-arg]
    __getattr__ = dict.get


class SelfDict(dict):  # type: ignore[type-arg]
    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.__dict__ = self


class FrozenOrdered(OrderedDict):  # type: ignore[type-arg]
    def __init__(self, given: Any) -> None:
        for name, value in given.items():
            OrderedDict.__setitem__(self, name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError("It cannot be written to.")


class Counted(defaultdict):  # type: ignore[type-arg]
    pass


class Features(list):  # type: ignore[type-arg]
    pass


class Pair(tuple):  # type: ignore[type-arg]
    __slots__ = ()


class Recent(deque):  # type: ignore[type-arg]
    pass


class Named(NamedTuple):
    first: Any
    rest: Any = 3


Old = namedtuple("Old", "value")


@dataclass
class Plain:
    value: Any
    number: int = 1


@dataclass(frozen=True, slots=True)
class Frozen:
    value: Any
    name: str = ""


@dataclass
class Both(OrderedDict):  # type: ignore[type-arg]
    """As the outputs of transformers: the same things as items and as fields."""

    logits: Any = None

    def __post_init__(self) -> None:
        OrderedDict.__setitem__(self, "logits", self.logits)


class Rows(Sequence):  # type: ignore[type-arg]
    """A class of one's own that behaves like a list."""

    def __init__(self, items: Any) -> None:
        self.items = list(items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


class Table(Mapping):  # type: ignore[type-arg]
    def __init__(self, item: Any) -> None:
        self.item = item

    def __getitem__(self, key: Any) -> Any:
        return {"item": self.item}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["item"])

    def __len__(self) -> int:
        return 1


KINDS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda item: {"item": item},
    "list": lambda item: [item],
    "tuple": lambda item: (item, 1),
    "OrderedDict": lambda item: OrderedDict(item=item),
    "AttributeDict": lambda item: AttributeDict(item=item),
    "SelfDict": lambda item: SelfDict({"item": item}),
    "FrozenOrdered": lambda item: FrozenOrdered({"item": item}),
    "Counted": lambda item: Counted(list, item=item),
    "Features": lambda item: Features([0, item]),
    "Pair": lambda item: Pair((item,)),
    "Recent": lambda item: Recent([item], maxlen=4),
    "deque": lambda item: deque([item], maxlen=4),
    "Named": Named,
    "Old": Old,
    "Plain": Plain,
    "Frozen": Frozen,
    "Both": Both,
    "Rows": lambda item: Rows([item, "a"]),
    "Table": Table,
    "UserDict": lambda item: UserDict({"item": item}),
    "UserList": lambda item: UserList([item]),
    "ChainMap": lambda item: ChainMap({"item": item}),
    "MappingProxyType": lambda item: MappingProxyType({"item": item}),
}
HASHABLE = {"tuple", "Pair", "Named", "Old", "Frozen"}
structures = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3)


def nested(kinds: Sequence[str], item: Any) -> Any:
    for kind in kinds:
        item = KINDS[kind](item)
    return item


@given(structures)
def test_tensors_are_found_and_replaced_in_any_container(kinds: list[str]) -> None:
    one, two = torch.zeros(2), torch.ones(3)
    given = nested(kinds, [one, two])
    assert [id(tensor) for tensor in tensors_in((given, one))] == [id(one), id(two), id(one)]
    made = map_tensors(given, lambda tensor: tensor + 1)
    assert [tensor.tolist() for tensor in tensors_in(made)] == [[1, 1], [2, 2, 2]]
    assert type(made) is type(given) and made is not given
    assert [tensor.tolist() for tensor in tensors_in(given)] == [[0, 0], [1, 1, 1]]
    assert objects_in((given, one)) == []


def test_what_is_met_twice_stays_one_and_links_stay_links() -> None:
    x = torch.zeros(2)
    loop: list[Any] = [x]
    loop.append(loop)
    made = map_tensors({"query": x, "key": x, "loop": loop}, torch.clone)
    assert made["query"] is made["key"] is made["loop"][0] and made["loop"][1] is made["loop"]
    linked = map_tensors(SelfDict({"a": x}), lambda tensor: tensor + 1)
    assert linked.a is linked["a"] and linked.a.tolist() == [1, 1]
    both = map_tensors(Both(x), lambda tensor: tensor + 1)
    assert both.logits is both["logits"] and both.logits.tolist() == [1, 1]
    result = map_tensors(torch.ones(2, 2).max(0), lambda tensor: tensor + 1)
    assert type(result) is torch.return_types.max and result.values.tolist() == [2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_sets_come_in_the_same_order_for_equal_contents(seed: int) -> None:
    torch.manual_seed(seed)
    tensors = [torch.randn(3) for _ in range(6)]
    orders = []
    for _ in range(4):
        copies = {tensors[number].clone() for number in torch.randperm(6).tolist()}
        orders.append([tensor.tolist() for tensor in tensors_in((copies, {Frozen(tensor) for tensor in copies}))])
    assert all(order == orders[0] for order in orders)


class Net(nn.Module):
    """Its logits lie in what ``wrap`` makes of them, beside a loss."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 10)
        self.wrap = wrap

    def forward(self, x: Any, out: Any = None) -> Any:
        (x,) = tensors_in(x)
        logits = self.head(self.body(x).relu())
        if out is not None:
            out["logits"] = logits
        return logits.square().sum(), self.wrap(logits)


class Zeros(Net):
    """Wraps something that a cut changes."""

    def forward(self, x: Any, out: Any = None) -> Any:
        logits, _ = super().forward(x, out)
        return logits, self.wrap((self.body.weight == 0).sum())


def units(space: niwaki.SearchSpace) -> dict[str, int]:
    return {group.name: group.units for group in space.groups}


def halved(net: nn.Module, space: niwaki.SearchSpace) -> niwaki.Plan:
    return niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))


@settings(deadline=None, max_examples=12)
@given(structures, structures)
def test_what_lies_in_containers_is_an_output_and_is_compared(outer: list[str], inner: list[str]) -> None:
    net = Net(lambda logits: nested(outer, logits)).eval()
    x = nested(inner, torch.randn(4, 6))
    space = niwaki.search_space(net, (x,))
    assert units(space) == {"body": 16} and space.notes == ()
    plan = halved(net, space)
    assert niwaki.check(net, plan, (x,)).holds
    small = niwaki.cut(net, plan)
    assert [tensor.shape for tensor in tensors_in(small(x))] == [(), (4, 10)]
    wrong = Zeros(net.wrap).eval()
    assert not niwaki.check(wrong, plan, (x,)).holds, "a difference in there is seen"


@pytest.mark.parametrize("wrap", [lambda logits: {logits}, lambda logits: frozenset([(logits, 1)])])
def test_sets_are_outputs_too(wrap: Callable[[Tensor], Any]) -> None:
    net, x = Net(wrap).eval(), torch.randn(4, 6)
    space = niwaki.search_space(net, x)
    assert units(space) == {"body": 16}
    assert niwaki.check(net, halved(net, space), x).holds


def test_values_of_a_dict_are_outputs_too() -> None:
    net, x = Net(lambda logits: {"logits": logits}.values()).eval(), torch.randn(4, 6)
    assert units(niwaki.search_space(net, x)) == {"body": 16}


class Cache:
    """Holds tensors, parameters and a module."""

    def __init__(self, net: Net, tensor: Tensor) -> None:
        self.tensor, self.weight, self.module = tensor, net.body.weight, net


class Attributed(list):  # type: ignore[type-arg]
    extra: Tensor


def attributed(logits: Tensor) -> Any:
    made = Attributed()
    made.extra = logits
    return made


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda logits: SimpleNamespace(logits=logits), "SimpleNamespace"),
        (lambda logits: {"deep": [SimpleNamespace(logits=logits)]}, "SimpleNamespace"),
        (lambda logits: zip([logits], [1], strict=True), "zip"),
        (lambda logits: (tensor for tensor in [logits]), "generator"),
        (attributed, "Attributed"),
        (lambda logits: {logits: 1}, "the keys of dict"),
        (lambda logits: [AttributeDict({(1, logits): 1})], "the keys of AttributeDict"),
        (lambda logits: lambda: logits, "function"),
        (lambda logits: partial(torch.add, logits), "partial"),
        (lambda logits: logits.sum, "builtin_function_or_method"),
        (lambda logits: Attributed([logits]).count, "builtin_function_or_method"),
    ],
)
def test_what_lies_in_other_objects_is_named(wrap: Callable[[Tensor], Any], named: str) -> None:
    net, x = Net(wrap).eval(), torch.randn(4, 6)
    space = niwaki.search_space(net, x)
    assert units(space) == {"body": 16, "head": 10}
    assert space.notes == (
        f"The model also returns {named}; tensors inside do not count as outputs and may get smaller.",
    )
    assert niwaki.check(net, halved(net, space), x).holds


class Tagged(Tensor):
    pass


def pointed(logits: Tensor) -> Tensor:
    made = torch.empty_like(logits)
    made.data = logits
    return made


@pytest.mark.parametrize("width", [6, 3000], ids=["computed", "hollow"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits.as_subclass(Tagged),
        lambda logits: [{"logits": logits.t().as_subclass(Tagged)}],
        lambda logits: Tensor._make_subclass(Tagged, logits),
        lambda logits: nn.Parameter(logits, requires_grad=False),
        lambda logits: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(logits)),
        lambda logits: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(logits[:, 1:])),
        pointed,
        lambda logits: pointed(logits).as_subclass(Tagged),
    ],
    ids=["subclass", "transposed", "made", "parameter", "dlpack", "view", "pointed", "both"],
)
def test_what_is_wrapped_without_an_operator_is_an_output(wrap: Callable[[Tensor], Any], width: int) -> None:
    net, x = Net(wrap).eval(), torch.randn(4, width)
    net.body = nn.Linear(width, 16)
    space = niwaki.search_space(net, x)
    assert units(space) == {"body": 16}
    plan = halved(net, space)
    assert niwaki.check(net, plan, x).holds
    before, after = (list(tensors_in(network(x))) for network in (net, niwaki.cut(net, plan)))
    assert [tensor.shape for tensor in after] == [tensor.shape for tensor in before]


@pytest.mark.parametrize("wrap", [nn.Parameter, pointed])
def test_what_is_wrapped_on_the_meta_device_is_an_output(wrap: Callable[[Tensor], Any]) -> None:
    net = Net(wrap).eval().to("meta")
    assert units(niwaki.search_space(net, torch.randn(4, 6, device="meta"))) == {"body": 16}


class Wrapping(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 4)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wrap(self.first(x).relu())
        out: Tensor = self.last(self.second(hidden).relu())
        return out


@pytest.mark.parametrize("wrap", [lambda h: h.as_subclass(Tagged).as_subclass(Tensor), nn.Parameter, pointed])
def test_what_is_wrapped_on_the_way_can_still_be_cut(wrap: Callable[[Tensor], Tensor]) -> None:
    net, x = Wrapping(wrap).eval(), torch.randn(4, 6)
    space = niwaki.search_space(net, x)
    assert units(space) == {"first": 16, "second": 12}
    assert niwaki.check(net, halved(net, space), x).holds


class Standardised(Wrapping):
    """Writes its weight anew in each pass, with the mean of its entries taken out."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight
        weight.data = weight.data - weight.data.mean(1, keepdim=True)
        return super().forward(x)


def test_data_that_a_pass_gives_a_weight_is_followed() -> None:
    net, x = Standardised(lambda h: h).eval(), torch.randn(4, 6)
    before = net.second.weight.clone()
    space = niwaki.search_space(net, x)
    assert torch.equal(net.second.weight, before)
    assert units(space) == {"second": 12}, "the mean runs over all columns, so these stay"
    assert niwaki.check(net, halved(net, space), x).holds


def test_an_output_that_nobody_knows_is_named() -> None:
    known, x = np.ones((4, 10), np.float32), torch.randn(4, 6)
    space = niwaki.search_space(Net(lambda logits: torch.from_numpy(known)).eval(), x)
    assert space.notes == (
        "The model returns a tensor of shape [4, 10] that no operator returned and no module holds, so it counts as "
        "a constant. If it is made of computed values, return those too: it may get smaller.",
    )


def test_an_object_alone_is_the_output_but_not_what_it_refers_to() -> None:
    class Alone(Net):
        def forward(self, x: Tensor, out: Any = None) -> Any:
            return Cache(self, self.head(self.body(x).relu()))

    net = Alone(nn.Identity()).eval()
    space = niwaki.search_space(net, torch.randn(4, 6))
    assert units(space) == {"body": 16}


@pytest.mark.parametrize("read", [Tensor.numpy, np.asarray, np.from_dlpack])
def test_what_numpy_reads_stays(read: Callable[[Tensor], Any]) -> None:
    net, x = Net(lambda logits: read(logits.detach())).eval(), torch.randn(4, 6)
    space = niwaki.search_space(net, x)
    assert units(space) == {"body": 16}
    (pin,) = [pin for pin in space.pins if pin.parameter == "head.weight" and pin.dim == 0]
    assert pin.reason == "it is read by code that niwaki does not follow" and "test_structures.py" in str(pin.location)
    small = niwaki.cut(net, halved(net, space))
    assert small(x)[1].shape == (4, 10)


@pytest.mark.parametrize("kind", [dict, AttributeDict])
def test_a_container_that_the_model_fills_is_noted(kind: type[dict[str, Any]]) -> None:
    net, x = Net(lambda logits: None).eval(), torch.randn(4, 6)
    given = kind()
    space = niwaki.search_space(net, {"x": x, "out": given})
    assert not given, "the user's own is left alone"
    assert space.notes == (
        "The model puts tensors into a container among its inputs; these do not count as outputs and may get "
        "smaller. Return them beside the others if they have to keep their size.",
    )
    assert niwaki.search_space(net, x).notes == ()


def test_inputs_in_containers_of_other_classes_count_as_given() -> None:
    """Their memory is not what the network computes."""
    net = Net(lambda logits: logits).eval()
    space = niwaki.search_space(net, torch.randn(4, 6))
    read = [
        meters(space, {"activations": 1.0}, inputs)["activations"].read(net)
        for inputs in (torch.randn(400, 6), {"x": AttributeDict(item=torch.randn(400, 6))})
    ]
    assert read[0] == read[1]
