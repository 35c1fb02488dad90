"""The cases that the OTOv3 paper constructs: what disconnects is skipped, isolated remains go, each alone but not both.

In programs and in classes, by what the cut network has and computes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import PlanError
from niwaki.testing import check_erasing, random_erasure
from niwaki.testing.models import randomised

FORMS = pytest.mark.parametrize("as_graph", [True, False], ids=["program", "class"])


class Two(nn.Module):
    """Two layers of one input, added to one another and to nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        return self.head(self.a(h) + self.b(h))


class Coded(nn.Module):
    """A layer of the input, added to one of a table, which knows nothing of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.code, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 2)
        self.table = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.input(x) + self.code(self.table))


class Shared(nn.Module):
    """A layer that only two branches read, and a norm that only one of them does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.shared, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(5, 4)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        s = torch.relu(self.shared(h))
        h = h + self.a(s)
        return self.head(h + self.b(self.norm(s)))


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def space_of(model: nn.Module, as_graph: bool) -> niwaki.SearchSpace:
    return niwaki.search_space(randomised(model.eval()), X, as_graph=as_graph, erase=True)


def without(space: niwaki.SearchSpace, names: Collection[str]) -> niwaki.Plan:
    """The plan that erases the structures of these names."""
    numbers = {one.name: number for number, one in enumerate(space.structures)}
    units = {group.structure: group.first for group in space.groups if group.structure is not None}
    keep = torch.ones(space.num_units, dtype=torch.bool).numpy()
    keep[[units[numbers[name]] for name in names]] = False
    return space.plan(keep)


def tensors(model: nn.Module, plan: niwaki.Plan, as_graph: bool) -> set[str]:
    """The modules and parameters at the top of the cut network, which is exact."""
    assert niwaki.check(model, plan, X, as_graph=as_graph).holds
    if as_graph:
        small: nn.Module = niwaki.cut(model, plan, as_graph=True, example_inputs=X).module()
    else:
        small = niwaki.cut(model, plan)
    return {name.split(".")[0] for name, _ in small.named_parameters()}


@FORMS
@pytest.mark.parametrize(("gone", "kept"), [("a", "b"), ("b", "a")])
def test_each_of_two_alone(as_graph: bool, gone: str, kept: str) -> None:
    model = Two()
    space = space_of(model, as_graph)
    assert {one.name for one in space.structures if one.erasable} == {"a", "b"}
    assert tensors(model, without(space, [gone]), as_graph) == {"stem", kept, "head"}


@FORMS
def test_but_not_both(as_graph: bool) -> None:
    space = space_of(Two(), as_graph)
    expected = r"^b cannot be erased beside a: nothing would be left to .*\. Keep it, or keep one of the others\.$"
    with pytest.raises(PlanError, match=expected):
        without(space, ["a", "b"])


@FORMS
def test_what_disconnects_is_skipped(as_graph: bool) -> None:
    """The addition would have an operand left, and the output would no longer depend on the input."""
    model = Coded()
    space = space_of(model, as_graph)
    found = {one.name: one.refused for one in space.structures}
    assert found["input"] == "an output would no longer depend on any input"
    code = next(name for name in found if name != "input")
    if as_graph:
        assert found[code] is None
        assert tensors(model, without(space, [code]), as_graph) == {"input", "head"}
    else:  # nothing that lives tells the size of what the layer of the table returned
        assert (found[code] or "").startswith("its code fails without it: ")


@FORMS
def test_what_disconnects_beside_others_is_skipped(as_graph: bool) -> None:
    """Each of two ways from the input can go, and the last one stays, in any order."""

    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.code = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(5, 4)
            self.table, self.head = nn.Parameter(torch.randn(6, 5)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.left(x) + self.code(self.table)
            return self.head(h + self.right(x))

    model = Ways()
    space = space_of(model, as_graph)
    assert {"left", "right"} <= {one.name for one in space.structures if one.erasable}
    for order in (["left", "right"], ["right", "left"]):
        with pytest.raises(PlanError, match=r"right cannot be erased beside left: an output would no longer depend"):
            without(space, order)
    check_erasing(model, X, plans=4, share=1.0, as_graph=as_graph)


@FORMS
def test_isolated_remains_go(as_graph: bool) -> None:
    """What only one branch reads goes with it; what both read stays until both are erased."""
    model = Shared()
    space = space_of(model, as_graph)
    by_last = {one.parameters[-1].split(".")[0]: one.name for one in space.structures if one.erasable}
    a, b = by_last["a"], next(one.name for one in space.structures if "norm.weight" in one.parameters)
    assert tensors(model, without(space, [a]), as_graph) == {"stem", "head", "shared", "b", "norm"}
    assert tensors(model, without(space, [b]), as_graph) == {"stem", "head", "shared", "a"}
    both = without(space, [a, b])
    assert tensors(model, both, as_graph) == {"stem", "head"}
    assert space.cost(both).params >= sum(p.numel() for p in (*model.stem.parameters(), *model.head.parameters()))


@FORMS
def test_random_erasures_are_valid(as_graph: bool) -> None:
    """Asked for all of it, in any order: no plan is refused, and something always stays."""
    for build in (Two, Coded, Shared):
        model = build()
        space = space_of(model, as_graph)
        rng = np.random.default_rng(0)
        for _ in range(3):
            plan = space.plan(random_erasure(space, rng, share=1.0))
            assert {"head"} < tensors(model, plan, as_graph)
