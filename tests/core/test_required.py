"""What the description of a model asks of its sizes holds for every choice, whoever makes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import niwaki
from niwaki.core import integrations
from niwaki.core.integrations import Multiple
from niwaki.core.plan import Plan
from niwaki.errors import PlanError


class Heads(nn.Module):
    """A width and a number of heads, with the hidden layer of another part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.query, self.back = nn.Linear(width, 4 * heads), nn.Linear(4 * heads, width)
        self.up, self.down = nn.Linear(width, 40), nn.Linear(40, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        query = self.query(x).unflatten(-1, (-1, 4))
        x = x + self.back((query * query.mean(-1, keepdim=True)).flatten(-2))
        result: torch.Tensor = self.last(x + self.down(self.up(x).relu()))
        return result


class Asking:
    def multiples(self, model: nn.Module) -> Sequence[Multiple]:
        heads = Multiple("embed.weight", 0, "query.weight", 0, 4, "the width")
        return [heads] if isinstance(model, Heads) else []

    def looked_after(self, model: nn.Module) -> Sequence[object]:
        return []

    def after_cut(self, small: nn.Module, plan: Plan) -> None:
        assert {name for name, _ in small.named_parameters()} >= set(plan.tensors)


def _space(monkeypatch: pytest.MonkeyPatch, net: nn.Module, **options: object) -> niwaki.SearchSpace:
    monkeypatch.setattr(integrations, "_REGISTERED", [Asking()])
    return niwaki.search_space(net, torch.randn(2, 5), layout="uniform", **options)  # type: ignore[arg-type]


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(64, 8), (36, 6), (30, 5), (48, 4)]), st.floats(0.25, 0.9), st.sampled_from(["params", "units"])
)
def test_every_choice_is_a_multiple(sizes: tuple[int, int], share: float, measure: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        net = Heads(*sizes)
        space = _space(monkeypatch, net)
        budget = niwaki.Budget(**{measure: share})  # type: ignore[arg-type]
        plan = niwaki.choose(space, niwaki.score(space, "random"), budget)
        small = niwaki.cut(net, plan)
        width, rows = small.embed.out_features, small.query.out_features
        assert width % (rows // 4) == 0
        limit = budget.absolute(space)[measure]
        reached = space.cost(plan).params if measure == "params" else space.keep_of(plan).sum()
        assert reached <= limit
        assert reached >= 0.97 * limit or "tight" in plan.provenance


def test_what_cannot_be_narrowed_asks_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Heads(30, 7)  # the dense network itself does not fulfil it: nothing is asked
    space = _space(monkeypatch, net)
    assert not any("the width" in equation.what for equation in space.numbers.equations)
    net = Heads(30, 6)
    space = _space(monkeypatch, net, ignored=["embed"])
    assert "query" in {group.name for group in space.groups} and "embed" not in {group.name for group in space.groups}
    for share in (0.9, 0.8, 0.7, 0.6):
        plan = niwaki.choose(space, niwaki.score(space, "random"), niwaki.Budget(params=share))
        assert len(plan.kept["query"]) in (1, 2, 3, 5, 6)
    keep = np.ones(space.num_units, dtype=bool)
    keep[next(group for group in space.groups if group.name == "query").first :][:2] = False
    with pytest.raises(PlanError, match=r"the width needs \(size\(30\) % \(size\(24\) // 4\)\) to follow the cut"):
        space.plan(keep)


def test_methods_keep_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Heads(36, 6)
    space = _space(monkeypatch, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(params=0.6), niwaki.Schedule(2, 10, periods=4), shrink=True)
    for _ in range(12):
        net(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    small = niwaki.cut(net, method.plan())
    assert small.embed.out_features % (small.query.out_features // 4) == 0
    assert small.embed.out_features < 36


def test_free_layouts_are_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrations, "_REGISTERED", [Asking()])
    space = niwaki.search_space(Heads(36, 6), torch.randn(2, 5))
    assert not any("the width" in equation.what for equation in space.numbers.equations)
