"""Widths in multiples: what counts are the entries of the weights that produce units, for all weights or by pattern."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import niwaki
from niwaki import Budget, Plan
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError, UnknownName
from niwaki.methods import HESSO, HSPG, Schedule
from niwaki.selection import Widths


class Attention(nn.Module):
    """Heads that share keys and values, a temperature for each, and a feed-forward part."""

    def __init__(self, heads: int, repeats: int, head: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.repeats, self.head = heads, repeats, head
        self.q, self.kv = nn.Linear(10, heads * repeats * head), nn.Linear(10, 2 * heads * head)
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1, 1))
        self.out = nn.Linear(heads * repeats * head, 10)
        self.mlp = nn.Sequential(nn.Linear(10, hidden), nn.GELU(), nn.Linear(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.repeats, self.head).permute(0, 2, 3, 1, 4)
        k, v = self.kv(x).view(batch, length, 2, self.heads, 1, self.head).permute(2, 0, 3, 4, 1, 5)
        weights = (q @ k.transpose(-1, -2) * self.temperature).softmax(-1)
        return self.mlp(self.out((weights @ v).permute(0, 3, 1, 2, 4).flatten(2)))


def attention(heads: int = 4, repeats: int = 2, head: int = 8, hidden: int = 48) -> tuple[nn.Module, Tensor]:
    return Attention(heads, repeats, head, hidden), torch.randn(2, 5, 10)


def flattened() -> tuple[nn.Module, Tensor]:
    """The norm has nine entries for each channel; the convolution in front of it has one."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.Flatten(), nn.BatchNorm1d(24 * 9), nn.Linear(24 * 9, 16), nn.ReLU(), nn.Linear(16, 2)
    ), torch.randn(4, 3, 5, 5)


def shuffled() -> tuple[nn.Module, Tensor]:
    """Four entries of the convolution become one channel."""
    return nn.Sequential(nn.Conv2d(3, 48, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(12, 2, 1)), torch.randn(
        2, 3, 4, 4
    )


HEADS = "temperature"  # the group of the heads goes by the name of its first parameter
NETWORKS = {"attention": attention, "flattened": flattened, "shuffled": shuffled}


def kept_entries(space: SearchSpace, plan: Plan, named: str) -> dict[str, tuple[int, int]]:
    """For the groups that a weight produces: how many of its entries stay of how many, counted one by one."""
    found = {}
    for group in space.groups:
        for piece in group.slices:
            if piece.tensor == named and piece.role.produces:
                kept = len(np.unique(piece.index[list(plan.kept[group.name])]))
                found[group.name] = kept, len(np.unique(piece.index))
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("round_to", [4, 6, 8, 16])
def test_every_weight_keeps_a_multiple(name: str, round_to: int) -> None:
    model, x = NETWORKS[name]()
    space = niwaki.search_space(model, x)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), Budget(macs=0.8, round_to=round_to))
    small = niwaki.cut(model, plan)
    assert space.cost(plan).macs < space.cost().macs
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            for kept, full in kept_entries(space, plan, name).values():
                assert kept % round_to == 0 or kept == full
    small(x)


@settings(max_examples=12, deadline=None)
@given(
    heads=st.sampled_from([4, 6]),
    repeats=st.sampled_from([1, 2]),
    head=st.sampled_from([4, 8, 12]),
    round_to=st.sampled_from([1, 2, 4, 8, 12, 16, 32]),
)
def test_heads_leave_by_what_their_rows_need(heads: int, repeats: int, head: int, round_to: int) -> None:
    """The rows of the keys and values, two per position of a head, and those of the queries."""
    model, x = attention(heads, repeats, head)
    space = niwaki.search_space(model, x)
    multiples = dict(zip([group.name for group in space.groups], Widths(round_to).multiples(space), strict=True))
    least = next(k for k in range(1, 99) if k * 2 * head % round_to == 0 and k * repeats * head % round_to == 0)
    assert multiples[HEADS] == least and multiples["mlp.0"] == round_to


def test_heads_as_wide_as_the_multiple_leave_one_by_one() -> None:
    """Failed before: 4 heads are no multiple of 8, so all stayed."""
    model, x = attention()
    space = niwaki.search_space(model, x)
    values = np.ones(space.num_units)
    heads = next(group for group in space.groups if group.name == HEADS)
    values[heads.numbers] = [1e-3, 1, 1, 1]
    scores = niwaki.score(space, lambda space: values)
    plan = niwaki.choose(space, scores, Budget(params=0.85, round_to=8))
    assert len(plan.kept[HEADS]) == 3
    assert niwaki.cut(model, plan).q.weight.shape[0] == 48  # type: ignore[union-attr]


def test_two_factors_of_one_dimension() -> None:
    """Heads and the positions in them both leave: one of the two numbers must be a multiple by itself."""
    model, x = attention(heads=8, head=16)
    space = niwaki.search_space(model, x, inner=True)
    assert max(place.units.shape[1] for place in space.dims) > 1
    for limit in (0.3, 0.5, 0.7):
        plan = niwaki.choose(space, niwaki.score(space, "random"), Budget(params=limit, round_to=4))
        small = niwaki.cut(model, plan)
        assert all(getattr(small, name).weight.shape[0] % 4 == 0 for name in ("q", "kv"))


@pytest.mark.parametrize(
    ("pattern", "rounded", "free"),
    [("mlp", "mlp.0", HEADS), ("*mlp*", "mlp.0", HEADS), ("mlp.0.weight", "mlp.0", HEADS), ("q", HEADS, "mlp.0")],
)
def test_by_pattern(pattern: str, rounded: str, free: str) -> None:
    model, x = attention(head=6)
    space = niwaki.search_space(model, x)
    multiples = dict(
        zip([group.name for group in space.groups], Widths({pattern: 16}).multiples(space).tolist(), strict=True)
    )
    assert multiples[rounded] == {HEADS: 4, "mlp.0": 16}[rounded] and multiples[free] == 1
    both = Widths({pattern: 16, "*": 3}).multiples(space)
    assert both[[group.name for group in space.groups].index("mlp.0")] == (48 if rounded == "mlp.0" else 3)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), Budget(macs=0.7, round_to={pattern: 16}))
    assert all(
        k % 16 == 0 or k == full
        for k, full in kept_entries(space, plan, "q.weight" if rounded == HEADS else "mlp.0.weight").values()
    )
    told = Plan.from_json(plan.to_json())
    assert told.provenance["budget"] == {"macs": 0.7, "round_to": {pattern: 16}, "min_units": 1}
    niwaki.cut(model, told)(x)


@pytest.mark.parametrize("kind", [HSPG, HESSO])
def test_methods_round_by_pattern(kind: type[HSPG] | type[HESSO]) -> None:
    torch.manual_seed(0)
    model, x = attention()
    space = niwaki.search_space(model, x)
    budget = Budget(macs=0.6, round_to={"*mlp*": 16, "q": 8})

    def made(network: nn.Module) -> tuple[torch.optim.Optimizer, HSPG | HESSO]:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        return optimizer, kind(
            niwaki.search_space(network, x), optimizer, budget, Schedule(start=1, until=6, periods=1)
        )

    optimizer, method = made(model)
    for _ in range(7):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    plan = method.plan()
    assert space.cost(plan).macs <= 0.6 * space.cost().macs
    assert len(plan.kept["mlp.0"]) % 16 == 0 and niwaki.cut(model, plan).q.weight.shape[0] % 8 == 0  # type: ignore[union-attr]
    other, resumed = made(copy.deepcopy(model))
    other.load_state_dict(optimizer.state_dict())
    assert resumed.plan().kept == plan.kept


def test_what_matches_nothing_is_told() -> None:
    model, x = attention()
    space = niwaki.search_space(model, x)
    budget = Budget(macs=0.5, round_to={"*mlp*": 4, "*feed*": 8})
    with pytest.raises(
        UnknownName, match=r"The pattern '\*feed\*' in `round_to` matches no group and no weight .* 'temperature'"
    ):
        niwaki.choose(space, niwaki.score(space, "random"), budget)
    with pytest.raises(UnknownName, match=r"The pattern '\*feed\*' in `round_to`"):
        HSPG(space, torch.optim.SGD(model.parameters(), lr=0.1), budget, Schedule(start=1, until=3, periods=1))


@pytest.mark.parametrize("wrong", [0, -8, 1.5, True, "8", None, {}, {"*": 0}, {"*": 2.5}, {3: 4}, ["*"]])
def test_malformed(wrong: object) -> None:
    with pytest.raises(
        BudgetError, match=r"must be a whole number of entries, 1 or more, or such numbers by the names"
    ):
        Budget(macs=0.5, round_to=wrong)  # type: ignore[arg-type]


def test_budgets_are_values() -> None:
    given = {"*mlp*": np.int64(32)}
    budget = Budget(macs=0.5, round_to=given)  # type: ignore[arg-type]
    given["*q*"] = np.int64(2)
    assert budget.round_to == {"*mlp*": 32} and hash(budget) == hash(Budget(macs=0.5))
    assert str(budget) == "macs <= 50.0%, widths in multiples of 32 for *mlp*"
    assert Budget(macs=0.5, round_to={"a": 2}) != Budget(macs=0.5, round_to={"a": 4})


def test_a_space_without_units_has_an_empty_choice() -> None:
    space = niwaki.search_space(nn.Linear(3, 4), torch.randn(1, 3))
    with pytest.warns(UserWarning, match="The search space has no units, so the plan removes nothing"):
        plan = niwaki.choose(space, niwaki.score(space, "magnitude"), Budget(units=0.5, round_to=2))
    assert plan.kept == {} and not space.groups
