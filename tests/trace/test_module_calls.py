"""What modules are called with and return, as the tracer notes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from niwaki.trace import tracer
from niwaki.trace.graph import Ref
from niwaki.trace.module_calls import UNKNOWN, Argument


class Store:
    """Something that a module hands through."""


class Inner(nn.Module):
    def forward(self, x: Tensor, *, pair: tuple[Tensor, Any]) -> Any:
        y = x + pair[0]
        return {"sum": y, "rest": (None, 3, pair[1], Store())}


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        found: Tensor = self.inner(y, pair=(x, Store()))["sum"]
        return nn.Identity()(found) - 1


def test_calls_of_modules() -> None:
    graph = tracer.trace(Outer(), tracer.example_calls(torch.ones(2)))
    inner, outer = graph.runs[0].calls
    doubled, added, less = (node.outputs[0] for node in graph.runs[0].nodes)
    assert (inner.module, inner.first, inner.end) == ("inner", 1, 2)
    assert inner.tensors == {(0,): doubled, ("pair", 0): outer.tensors[0,]}
    assert inner.result == {"sum": Ref(added), "rest": (None, 3, Argument(("pair", 1)), UNKNOWN)}  # type: ignore[arg-type]
    assert (outer.module, outer.first, outer.end, outer.result) == ("", 0, 3, Ref(less))  # type: ignore[arg-type]
