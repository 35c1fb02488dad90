"""Layers that are left out as a whole although no zeros make them the identity: post-norm, with allow_inexact=True."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.absent import Absent
from niwaki.core.compose import composed, difference
from niwaki.core.edits import EraseModules
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import randomised
from niwaki.testing.rivals import Rivals

X = torch.randn(2, 5, 3, dtype=torch.float64)


class Layer(nn.Module):
    """Two branches, each with a norm behind its addition, or before it."""

    def __init__(self, post: bool) -> None:
        super().__init__()
        self.post, self.first, self.second = post, nn.Linear(6, 6), nn.Linear(6, 6)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(2))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        for branch, norm in zip((self.first, self.second), self.norms, strict=True):
            x = norm(x + torch.relu(branch(x))) if self.post else x + torch.relu(branch(norm(x)))
        return x, scale


class Stack(nn.Module):
    """Layers in a row; ``way``: what else happens to what they return."""

    def __init__(self, way: str = "", layers: int = 4) -> None:
        super().__init__()
        self.way, self.stem, self.head = way, nn.Linear(3, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(Layer(way != "pre-norm") for _ in range(layers))

    def forward(self, x: Tensor) -> Any:
        x, seen, scale = self.stem(x), [], torch.ones(1, dtype=x.dtype)
        for number, layer in enumerate(self.layers):
            x, scale = layer(x, scale)
            if self.way == "counted" and number == 1:
                seen.append(x)
            if self.way == "written":
                x.mul_(2)
        if self.way == "read inside":
            return self.head(x) + self.layers[0].first.weight.sum()
        return [self.head(x), *seen] if seen else self.head(x)


def model_of(way: str = "") -> Any:
    torch.manual_seed(0)
    return randomised(Stack(way).eval()).double()


def without(space: SearchSpace, names: Collection[str], widths: int | None = None) -> Plan:
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.structure is not None:
            keep[group.first] = space.structures[group.structure].name not in names
        elif widths is not None and group.inexact is None:
            keep[group.first] = False
    return Plan.from_json(space.plan(keep).to_json())


def layers_of(space: SearchSpace) -> dict[str, str | None]:
    return {one.layer: one.refused for one in space.structures if one.layer is not None}


def space_of(model: nn.Module, **more: Any) -> SearchSpace:
    return niwaki.search_space(model, X, erase=True, allow_inexact=True, **more)


@pytest.mark.parametrize("widths", [None, 0])
def test_a_layer_is_deleted(widths: int | None) -> None:
    """The cut network equals the one in which it hands on what it is given, and `check` says that this is inexact."""
    model = model_of()
    space = space_of(model)
    assert layers_of(space) == {f"layers.{number}": None for number in range(4)}
    assert "inexact" in str(space) and all(g.inexact for g in space.groups if g.name.startswith("all of"))
    plan = without(space, ["all of layers.1", "all of layers.2", "layers.3.first"], widths)
    (edit,) = plan.edits_of(EraseModules)
    assert edit.entries == ("layers.1", "layers.2") and edit.renumbered == {"layers.3": "1"}
    assert "all of layers.1" in str(plan) and "(inexact)" in str(plan)
    small = niwaki.cut(model, plan)
    assert len(small.layers) == 2 and tensor_shapes(small) == smaller_shapes(plan)
    cost = space.cost(plan)
    assert cost.params == sum(p.numel() for p in small.parameters())
    rivals = Rivals(model, plan)
    gradients = rivals.gradients(((X,), {}))
    assert rivals.outputs(((X,), {})).deviation < 1e-10 and gradients is not None and gradients.deviation < 1e-8
    if widths is None:
        model.layers = nn.ModuleList([model.layers[0], model.layers[3]])
        nn.init.zeros_(model.layers[1].first.weight)
        nn.init.zeros_(model.layers[1].first.bias)
        assert torch.allclose(small(X), model(X))


def test_check_says_that_it_is_inexact() -> None:
    model = model_of()
    outcome = niwaki.check(model, without(space_of(model), ["all of layers.1"]), X)
    assert outcome.holds and outcome.inexact == ("layers.1",) and not outcome.zero
    assert str(outcome).startswith(
        "Inexact: the plan leaves out 'layers.1', which no zeros do. The cut network equals the masked one in which "
        "this layer hands on what it is given (max. relative difference "
    )
    assert niwaki.check(model, without(space_of(model), ["layers.1.first"]), X).inexact == ()


def test_where_code_counts_layers_it_hands_on() -> None:
    model = model_of("counted")
    space = space_of(model)
    plan = without(space, ["all of layers.1", "all of layers.2"])
    (edit,) = plan.edits_of(EraseModules)
    assert not edit.entries and set(edit.absent) == {"layers.1", "layers.2"}
    small = niwaki.cut(model, plan)
    assert isinstance(small.layers[1], Absent) and len(small.layers) == 4
    assert all(torch.equal(*pair) for pair in zip(small(X), zeroed(model, plan)(X), strict=True))


@pytest.mark.parametrize("way", ["pre-norm", "written"])
def test_what_is_not_listed(way: str) -> None:
    """Pre-norm layers are the identity without their halves; and what is written to is not what was given."""
    assert layers_of(space_of(model_of(way))) == {}


def test_what_is_refused() -> None:
    model = model_of()
    refused = layers_of(space_of(model, ignored=["layers.1.norms.*"]))
    assert refused["layers.1"] == "'layers.1.norms.0.weight' is ignored by the pattern 'layers.1.norms.*'"
    assert refused["layers.0"] is None
    assert layers_of(niwaki.search_space(model, X, erase=True)) == {}
    why = layers_of(space_of(model_of("read inside")))["layers.0"]
    assert (
        why == "its code fails without it: AttributeError: 'Absent' object has no attribute 'first'; use as_graph=True"
    )


def test_plans_in_a_row_and_files(tmp_path: Path) -> None:
    model = model_of()
    space = space_of(model)
    first, whole = without(space, ["all of layers.0"]), without(space, ["all of layers.0", "all of layers.2"])
    small = niwaki.cut(model, first)
    again = space_of(small)
    both = composed(first, without(again, ["all of layers.1"]))
    expected = niwaki.cut(model, whole)(X)
    assert torch.equal(niwaki.cut(model, both)(X), expected)
    assert torch.equal(zeroed(model, both)(X), expected)
    assert torch.equal(niwaki.cut(small, difference(first, whole))(X), expected)
    niwaki.save(small, tmp_path / "out")
    assert torch.equal(niwaki.load(Stack().eval().double(), tmp_path / "out")(X), small(X))


def test_a_choice_takes_layers_by_their_scores() -> None:
    """No method can: no zeros make a network without one."""
    model = model_of()
    space = space_of(model, layout="uniform")
    scores = np.ones(space.num_units)
    named = {group.name: group.first for group in space.groups}
    scores[named["all of layers.2 (whole)"]] = 0.1
    kept = niwaki.score(space, lambda _: scores)
    plan = niwaki.choose(space, kept, niwaki.Budget(params=0.8), remove="structures")
    (edit,) = plan.edits_of(EraseModules)
    assert edit.entries == ("layers.2",) and "(inexact)" in str(plan)
    assert space.cost(plan).params == sum(p.numel() for p in niwaki.cut(model, plan).parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    why = "all that can be erased are post-norm layers, and no zeros make a network without one. Erase layers before or"
    with pytest.raises(BudgetError, match=why):
        niwaki.H2SPG(space, optimizer, niwaki.Budget(params=0.8), niwaki.Schedule(start=1, until=40))
