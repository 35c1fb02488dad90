"""No identity of an object decides a result: copies, and equal objects that are one or several, give the same space."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from replay.networks import REFERENCES
from torch import Tensor, nn

import niwaki
import niwaki.solve.propagate as propagation
from niwaki.core.space import SearchSpace
from niwaki.rules.axis import Axis
from niwaki.rules.label import Label
from niwaki.solve.build import Builder
from niwaki.trace.graph import Graph, Node
from niwaki.trace.tracer import example_calls, trace

QUICK = [
    name
    for name, reference in REFERENCES.items()
    if reference.libraries == ("torch",) and name not in ("meta", "exported", "exported_recurrent")
]


class TwoAverages(nn.Module):
    """Two averages over the same channels are added: their factors are one, which ``scale`` takes up."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.scale = nn.Linear(4, 8), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x).relu()
        return self.scale * (hidden.mean(1, keepdim=True) + hidden.abs().mean(1, keepdim=True))


class Shaped(nn.Module):
    """A layer that remembers its sizes in a tuple, for another method than ``forward``."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.first, self.second = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[0])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())

    def noise(self) -> Tensor:
        return torch.randn(self.sizes)


NETWORKS: dict[str, Callable[[], tuple[Any, Any]]] = {
    **{name: REFERENCES[name].build for name in QUICK},
    "two averages": lambda: (TwoAverages(), torch.randn(3, 4)),
    "shaped": lambda: (nn.Sequential(*[Shaped((16, 300)) for _ in range(2)], nn.Linear(16, 2)), torch.randn(3, 16)),
}


def found(space: SearchSpace) -> dict[str, Any]:
    """What an analysis found, as plain data."""
    return {
        "groups": [
            (str(group), [(str(piece), piece.parameter, piece.index.tolist()) for piece in group.slices])
            for group in space.groups
        ],
        "pins": [str(pin) for pin in space.pins],
        "ties": space.ties,
        "notes": space.notes,
        "coverage": space.coverage,
        "costs": (space.cost(), space.least_cost()),
        "repairs": [
            (rule.tensor, rule.shift, [(factor.size, factor.power) for factor in rule.factors])
            for rule in space.repairs.tensors
        ],
        "numbers": {(str(it.expression), it.what, it.location) for it in space.numbers.equations},
    }


def another(value: Any) -> Any:
    """An equal object with another identity, where Python has several for equal values."""
    if type(value) is int:
        return int(str(value))
    if type(value) is str:
        return "".join(list(value))
    if type(value) is tuple:
        return tuple([another(item) for item in value])
    if type(value) is dict:
        return {key: another(item) for key, item in value.items()}
    return value


class Interned:
    """Hands out one object for all equal ones."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        if type(value) in (int, str):
            return self._known.setdefault((type(value), value), value)
        if type(value) is tuple:
            items = tuple(map(self, value))
            return self._known.setdefault((tuple, repr(items)), items)
        if type(value) is dict:
            return {key: self(item) for key, item in value.items()}
        return value


def with_attributes(model: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    for module in model.modules():
        internal = nn.Module().__dict__
        for name, value in module.__dict__.items():
            if name not in internal:
                module.__dict__[name] = change(value)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_whose_numbers_and_words_are_other_objects(name: str) -> None:
    model, inputs = NETWORKS[name]()
    options = REFERENCES[name].options if name in REFERENCES else {}
    expected = found(niwaki.search_space(model, inputs, **options))
    assert found(niwaki.search_space(copy.deepcopy(model), inputs, **options)) == expected
    assert found(niwaki.search_space(with_attributes(model, another), inputs, **options)) == expected
    assert found(niwaki.search_space(with_attributes(model, Interned()), inputs, **options)) == expected


def test_another_object_is_another_and_equal() -> None:
    known = Interned()
    for value in (1000, "a name", (64, 1000), {"width": 1000}):
        assert another(value) == value and another(value) is not value
        assert known(another(value)) == value
    assert known(another((64, 1000))) is known((64, 1000))


def several(graph: Graph) -> Graph:
    """The graph with objects of its own for each call, number and line of each node."""

    def apart(node: Node) -> Node:
        call = replace(node.call, numbers=copy.deepcopy(node.call.numbers), scalars=copy.deepcopy(node.call.scalars))
        return replace(node, call=call, location=replace(node.location))

    def frozen(run: Any) -> tuple[Any, ...]:
        return tuple(
            replace(one, expression=copy.deepcopy(one.expression), location=replace(one.location)) for one in run.frozen
        )

    runs = tuple(replace(run, nodes=tuple(map(apart, run.nodes)), frozen=frozen(run)) for run in graph.runs)
    return replace(graph, runs=runs)


def single(graph: Graph) -> Graph:
    """The graph with one object for all calls and all lines that are equal."""
    known: dict[Any, Any] = {}

    def one(node: Node) -> Node:
        call = known.setdefault(node.call, node.call)
        return replace(node, call=call, location=known.setdefault(node.location, node.location))

    return replace(graph, runs=tuple(replace(run, nodes=tuple(map(one, run.nodes))) for run in graph.runs))


def copied(label: Label) -> Label:
    """The label with arrays of its own."""

    def own(axis: Axis) -> Axis:
        return Axis(axis.ids.copy(), axis.why)

    scale = tuple(replace(factor, axis=own(factor.axis)) for factor in label.scale)
    index_of = None if label.index_of is None else own(label.index_of)
    return replace(label, axes=tuple(map(own, label.axes)), scale=scale, index_of=index_of)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_whose_equal_parts_are_one_object_or_several(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = NETWORKS[name]()
    graph = trace(model, example_calls(inputs), every=True)

    def space(of: Graph) -> dict[str, Any]:
        return found(Builder(model, of, propagation.propagate(of)).space())

    expected = space(graph)
    assert space(several(graph)) == expected
    assert space(single(graph)) == expected
    apply = propagation._apply
    monkeypatch.setattr(propagation, "_apply", lambda *given: [copied(label) for label in apply(*given)])
    assert space(graph) == expected


def test_the_networks_have_what_identities_would_tell_apart() -> None:
    """Otherwise the tests above would show nothing."""
    models = [build() for build in NETWORKS.values()]
    graphs = [trace(model, example_calls(inputs)) for model, inputs in models]
    calls = [{node.call for run in graph.runs for node in run.nodes} for graph in graphs]
    alike = [len(these) - len({replace(call, key=0) for call in these}) for these in calls]
    assert max(alike) > 0, "no two calls are equal but for their keys"
    averages, shaped = (niwaki.search_space(*model) for model in models[-2:])
    assert [repair.tensor for repair in averages.repairs.tensors] == ["scale"], "the factors are not followed"
    assert any("0.sizes[1] is 300, read by noise (and so for 1 like it)" in note for note in shaped.notes), shaped.notes
