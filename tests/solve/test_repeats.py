"""A call that a run before has made is not labelled again, and the space is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO

from niwaki.core.space import SearchSpace
from niwaki.solve.build import Builder
from niwaki.solve.propagate import propagate
from niwaki.trace.graph import Graph
from niwaki.trace.tracer import example_calls, trace


class _Twice(nn.Module):
    """Another path in train mode, numbers from shapes and attributes, a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.one, self.two, self.three = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.two(self.two(self.one(x)).relu_())
        hidden = hidden.view(len(x), self.heads, hidden.shape[1] // self.heads).flatten(1)
        if self.training:
            hidden = hidden + self.three(hidden)
        return self.last(hidden)


_CASES = {name: (ZOO[name].build, ZOO[name].inputs) for name in ("resnet18", "densenet121", "timm_swin_tiny", "llama")}
_CASES["twice"] = (_Twice, lambda: torch.randn(2, 4))


def _space(model: nn.Module, graph: Graph, repeats: bool) -> tuple[SearchSpace, int]:
    facts = propagate(graph, repeats=repeats)
    assert len(facts.touched) == sum(len(run.nodes) for run in graph.runs)
    return Builder(model, graph, facts).space(), len(facts.equal)


@pytest.mark.parametrize("name", _CASES)
def test_the_space_is_the_same(name: str) -> None:
    build, inputs = _CASES[name]
    model = build()
    graph = trace(model, example_calls(inputs()), every=True)
    ours, said = _space(model, graph, repeats=True)
    plain, more = _space(model, graph, repeats=False)
    assert said < more
    assert [(g.name, g.units) for g in ours.groups] == [(g.name, g.units) for g in plain.groups]
    assert ours.pins == plain.pins
    assert ours.coverage == plain.coverage
    assert ours.ties == plain.ties
    assert ours.cost() == plain.cost()
    assert ours.least_cost() == plain.least_cost()
    assert {str(e.expression) for e in ours.numbers.equations} == {str(e.expression) for e in plain.numbers.equations}


def test_calls_that_are_alike_are_recalled_in_their_order() -> None:
    """Two calls of which the same is said, each with ids of its own: another run goes on with the right ones, so that
    it needs no more."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.one, self.two = 4, nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.one(x)
            queries, keys = (hidden.view(-1, self.heads, hidden.shape[1] // self.heads) for _ in range(2))
            return self.two((queries.softmax(1) + keys).flatten(1))

    model, calls = Net(), example_calls(torch.randn(2, 4))
    once, twice = (propagate(trace(model, calls, modes=modes, every=True)) for modes in ((False,), (False, True)))
    assert twice.ids == once.ids
    assert len(twice.equal) == len(once.equal)
