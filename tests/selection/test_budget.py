"""Budgets are met from below, tightly, for any scores; what cannot be met is explained."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, Overlap, conv_space, mlp_space, overlap_space
from torch import nn

from niwaki.choosing import choose
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace, Tie
from niwaki.criteria import Scores, score
from niwaki.errors import BudgetError, MethodError
from niwaki.methods import HESSO, HSPG, Schedule
from niwaki.search import search_space
from niwaki.selection import costs, prices, select
from niwaki.selection.budget import Budget

SPACES = {
    "mlp": lambda: mlp_space(MLP(16, 40, 30)),
    "conv": lambda: conv_space(ConvNet(16, 24)),
    "overlap": lambda: overlap_space(Overlap()),
}

BUDGETS = [
    Budget(macs=0.7),
    Budget(macs=0.25),
    Budget(params=0.5),
    Budget(units=0.5),
    Budget(memory=0.6),
    Budget(macs=0.6, params=0.4),
    Budget(macs=0.5, units=0.6),
]


def drawn(space: SearchSpace, seed: int) -> Scores:
    """Scores whose groups have very different scales."""
    random = np.random.default_rng(seed)
    values = random.lognormal(size=space.num_units)
    for group in space.groups:
        values[group.numbers] *= 10.0 ** random.uniform(-3, 3)
    return Scores(values, "drawn")


def sizes(space: SearchSpace, plan: Plan) -> list[int]:
    return [len(plan.kept[group.name]) for group in space.groups]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("name", SPACES)
def test_met_from_below_and_tight(name: str, budget: Budget) -> None:
    space = SPACES[name]()
    limits = budget.absolute(space)
    for seed in range(5):
        keep = space.keep_of(choose(space, drawn(space, seed), budget))
        reached = costs(space.cost_model, keep, limits)
        assert all(reached[measure] <= limit for measure, limit in limits.items())
        assert all(keep[group.numbers].any() for group in space.groups)
        if max(reached[measure] / limit for measure, limit in limits.items()) >= 0.99:
            continue
        for unit in np.flatnonzero(~keep):  # nothing more fits
            more = keep.copy()
            more[unit] = True
            assert any(cost > limits[measure] for measure, cost in costs(space.cost_model, more, limits).items())


@pytest.mark.parametrize("round_to", [2, 4, 5])
def test_round_to_is_kept_inside_the_selection(round_to: int) -> None:
    space = SPACES["conv"]()
    for seed in range(5):
        for limit in (0.3, 0.5, 0.8):
            budget = Budget(macs=limit, round_to=round_to)
            plan = choose(space, drawn(space, seed), budget)
            for group, kept in zip(space.groups, sizes(space, plan), strict=True):
                assert kept % round_to == 0 or kept == group.units
            assert 0.6 * limit < space.cost(plan).macs / space.cost().macs <= limit


def test_tied_groups_leave_together() -> None:
    """Two units of the one with three of the other; and a tie of one group that leaves four at a time."""
    free = SPACES["conv"]()
    for ties in ((Tie((0, 1), (2, 3), 5),), (Tie((2,), (4,), 4), Tie((1, 0), (1, 1), 15))):
        space = dataclasses.replace(free, ties=ties)
        for seed in range(4):
            for budget in (Budget(macs=0.5), Budget(macs=0.6, params=0.5), Budget(macs=0.8, round_to=2)):
                removed = np.zeros(space.num_units, dtype=bool)
                for limit in (0.9, None):  # in two portions, as methods do
                    limits = budget.absolute(space) if limit is None else {"macs": limit * space.cost().macs}
                    keep = select(space, drawn(space, seed).values, limits, removed, steps=budget.steps)
                    assert not keep[removed].any()
                    removed = ~keep
                    gone = [int(removed[group.numbers].sum()) for group in space.groups]
                    for tie in ties:
                        levels = [gone[group] / step for group, step in zip(tie.groups, tie.steps, strict=True)]
                        assert len(set(levels)) == 1 and levels[0] <= tie.most and levels[0].is_integer()
                    kept = np.array([group.units for group in space.groups]) - gone
                    full = np.array(gone) == 0
                    assert ((kept % budget.round_to == 0) | full).all()
                assert all(cost <= limits[measure] for measure, cost in costs(space.cost_model, keep, limits).items())


def test_min_units() -> None:
    space = SPACES["conv"]()
    assert min(sizes(space, choose(space, drawn(space, 0), Budget(macs=0.2, min_units=6)))) >= 6


def test_the_best_of_a_group_stay() -> None:
    space = SPACES["mlp"]()
    scores = drawn(space, 3)
    keep = space.keep_of(choose(space, scores, Budget(macs=0.4)))
    for group in space.groups:
        values, kept = scores.values[group.numbers], keep[group.numbers]
        assert values[kept].min() >= values[~kept].max()


def test_only_the_share_within_its_group_counts() -> None:
    space = SPACES["conv"]()
    scores = drawn(space, 1)
    scaled = scores.values.copy()
    for factor, group in zip((1e-3, 7.0, 40.0), space.groups, strict=True):
        scaled[group.numbers] *= factor
    first, second = (choose(space, Scores(v, ""), Budget(macs=0.5)) for v in (scores.values, scaled))
    assert first.kept == second.kept


def test_compared_across_the_space_scale_counts() -> None:
    space = SPACES["mlp"]()
    values = np.ones(space.num_units)
    values[space.groups[0].numbers] = 1000
    plan = choose(space, Scores(values, ""), Budget(units=0.6), compare="space")
    assert sizes(space, plan) == [40, 2]


def test_equal_saliency_leaves_the_fourth_root_of_the_cost() -> None:
    space = conv_space(ConvNet(64, 96))
    price = prices(space.cost_model, np.ones(space.num_units, dtype=bool), ["macs"])["macs"]
    cost = np.array([price[group.numbers].sum() for group in space.groups])
    for limit in (0.2, 0.4, 0.6):
        kept = sizes(space, choose(space, Scores(np.ones(space.num_units), ""), Budget(macs=limit)))
        share = np.array([k / group.units for k, group in zip(kept, space.groups, strict=True)])
        np.testing.assert_allclose(share / share[0], (cost / cost[0]) ** 0.25, rtol=0.1)


def test_no_group_leaves_alone() -> None:
    """Two groups of equal cost, the saliency of one spread a little wider: both give, that one a little more."""
    space = mlp_space(MLP(3, 100, 100))
    values = np.concatenate([np.linspace(0.8, 1.2, 100), np.linspace(0.6, 1.4, 100)])
    first, second = sizes(space, choose(space, Scores(values, ""), Budget(macs=0.4)))
    assert second < first < second + 25


def test_a_group_is_worth_what_it_was() -> None:
    """In portions, as methods choose, the group that has lost much does not begin anew."""
    space = mlp_space(MLP(3, 100, 100))
    keep = np.ones(space.num_units, dtype=bool)
    keep[:60] = False  # of the first group only
    saliency = np.where(keep, 1.0, 0.0)
    again = select(space, saliency, {"macs": 0.25 * space.cost().macs}, ~keep)
    kept = [int(again[group.numbers].sum()) for group in space.groups]
    assert kept[0] > 33 and kept[1] < 67


def test_useless_units_go_first() -> None:
    space = SPACES["mlp"]()
    values = np.ones(space.num_units)
    useless = [3, 17, 44, 60]
    values[useless] = 0
    keep = space.keep_of(choose(space, Scores(values, ""), Budget(units=0.9)))
    assert not keep[useless].any()


def test_negative_scores_are_scores() -> None:
    space = SPACES["mlp"]()
    plan = choose(space, Scores(np.linspace(-5, 1, space.num_units), ""), Budget(macs=0.5))
    assert space.cost(plan).macs <= 0.5 * space.cost().macs


@pytest.mark.parametrize("name", SPACES)
def test_merged_axes_cost_the_same(name: str) -> None:
    model = SPACES[name]().cost_model
    merged = model.merged()
    assert merged.counts.num_axes < model.counts.num_axes
    for seed in range(5):
        gates = np.random.default_rng(seed).uniform(size=model.counts.num_units)
        assert merged(gates) == model(gates)
        for measure in ("macs", "params", "memory"):
            np.testing.assert_allclose(merged.price(gates, measure), model.price(gates, measure))


def test_removed_units_stay_removed() -> None:
    space = SPACES["conv"]()
    scores = drawn(space, 2).values
    removed = np.zeros(space.num_units, dtype=bool)
    removed[[0, 1, 20, 45]] = True
    keep = select(space, scores, {"macs": 0.5 * space.cost().macs}, removed)
    assert not keep[removed].any()
    again = select(space, scores, {"macs": 0.5 * space.cost().macs}, ~keep)
    assert (again == keep).all()  # nothing to do
    generous = select(space, scores, {"macs": 2.0 * space.cost().macs}, ~keep)
    assert (generous == keep).all()  # and nothing comes back


@pytest.mark.parametrize("ties", [(), (Tie((0, 1), (2, 3), 5), Tie((2,), (4,), 4))], ids=["free", "tied"])
def test_units_that_stay(ties: tuple[Tie, ...]) -> None:
    """Of what leaves in the end, a part: within steps, whatever stays."""
    space = dataclasses.replace(SPACES["conv"](), ties=ties)
    dense = space.cost().macs
    for seed in range(4):
        saliency = drawn(space, seed).values - drawn(space, seed).values.min()
        last = select(space, saliency, {"macs": 0.4 * dense})
        for share in (0.9, 0.7, 0.5):
            for staying in (last, last | (drawn(space, seed + 9).values > 1)):
                keep = select(space, saliency, {"macs": share * dense}, staying=staying)
                assert keep[staying].all()
                gone = [int((~keep)[group.numbers].sum()) for group in space.groups]
                for tie in ties:
                    levels = {gone[group] / step for group, step in zip(tie.groups, tie.steps, strict=True)}
                    assert len(levels) == 1 and levels.pop().is_integer()
            keep = select(space, saliency, {"macs": share * dense}, staying=last)
            assert costs(space.cost_model, keep, ("macs",))["macs"] <= share * dense
        again = select(space, saliency, {"macs": 0.4 * dense}, staying=last)
        assert (again == last).all()
        least = saliency < np.quantile(saliency, 0.2)  # what would leave first
        keep = select(space, saliency, {"macs": 0.7 * dense}, staying=least)
        assert keep[least].all() and costs(space.cost_model, keep, ("macs",))["macs"] <= 0.7 * dense


def test_absolute_limits_and_everything() -> None:
    space = SPACES["mlp"]()
    assert space.cost(choose(space, drawn(space, 0), Budget(params=500))).params <= 500
    assert choose(space, drawn(space, 0), Budget(macs=1.0)).tensors == {}
    assert choose(space, drawn(space, 0), Budget(macs=10**9)).tensors == {}


def test_provenance() -> None:
    space = SPACES["mlp"]()
    plan = choose(space, score(space, "magnitude"), Budget(macs=0.5, round_to=2))
    told = Plan.from_json(plan.to_json()).provenance
    assert told["criterion"] == "magnitude"
    assert told["budget"] == {"macs": 0.5, "round_to": 2, "min_units": 1}
    assert told["dense"]["macs"] == space.cost().macs and told["kept"]["params"] == space.cost(plan).params
    assert told["torch"] == torch.__version__ and "niwaki" in told


def test_what_cannot_be_met_is_explained() -> None:
    space = SPACES["mlp"]()
    with pytest.raises(BudgetError) as caught:
        choose(space, drawn(space, 0), Budget(params=0.001))
    text = str(caught.value)
    least = space.least_cost().params
    assert f"cannot be met: with every group at its least size {least:,} " in text
    assert "Nothing but the least size of every group is in the way. Ask for more params" in text


def test_what_holds_most_is_named_once_for_each_parameter() -> None:
    """The width written as a number is what lifting would help; both kernels of a convolution are not."""

    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3), nn.Conv2d(24, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(self.a(x).view(-1, 24, 8, 8))))

    space = search_space(Literal(), torch.randn(2, 3, 10, 10))
    with pytest.raises(BudgetError) as caught:
        choose(space, score(space, "magnitude"), Budget(params=0.05))
    text = str(caught.value)
    assert "Most is pinned by: a size given to view is written as the number 24 (a.weight, " in text, text
    assert "test_budget.py:" in text and "slides over" not in text and text.endswith("or remove what is in the way.")


@pytest.mark.parametrize("measure", ["macs", "params", "memory"])
def test_a_percentage_is_recognised(measure: str) -> None:
    space = mlp_space(MLP(16, 40, 30))
    with pytest.raises(BudgetError, match=rf"{measure}=12 asks for .* Did you mean {measure}=0.12, 12 %\?"):
        choose(space, drawn(space, 0), Budget(**{measure: 12}))
    with pytest.raises(BudgetError, match=rf"Did you mean {measure}=0.505\?"):
        Budget(**{measure: 50.5})
    kept = choose(space, drawn(space, 0), Budget(units=50)).kept
    assert sum(map(len, kept.values())) == 50


def test_scores_of_another_space() -> None:
    with pytest.raises(BudgetError, match="The scores are for 3 units, but the search space has 70"):
        choose(SPACES["mlp"](), Scores(np.ones(3), ""), Budget(macs=0.5))


@pytest.mark.parametrize("value", [0, 1, -3, 0.0, 1.5, -0.5, True, "half", float("nan"), 50.0])
def test_malformed_limits(value: object) -> None:
    with pytest.raises(
        BudgetError, match=r"macs=.* is not a budget: pass a float in \(0, 1\], the fraction to keep, or a wh"
    ):
        Budget(macs=value)  # type: ignore[arg-type]


def test_other_malformed_budgets() -> None:
    with pytest.raises(BudgetError, match="needs at least one limit, one of macs, params, units, memory"):
        Budget()
    with pytest.raises(BudgetError, match="round_to=0 must be a whole number of entries, 1 or more"):
        Budget(macs=0.5, round_to=0)
    with pytest.raises(BudgetError, match=r"min_units=1\.5 must be a whole number"):
        Budget(macs=0.5, min_units=1.5)  # type: ignore[arg-type]
    assert str(Budget(macs=0.5, params=1000, round_to=8, min_units=2)) == (
        "macs <= 50.0%, params <= 1,000, widths in multiples of 8, at least 2 units per group"
    )


def test_numbers_of_any_library() -> None:
    budget = Budget(macs=np.float32(0.5), params=np.int64(900), round_to=np.int64(2))  # type: ignore[arg-type]
    assert budget == Budget(macs=0.5, params=900, round_to=2)
    space = mlp_space(MLP(16, 40, 30))
    Plan.from_json(choose(space, score(space, "random"), budget).to_json())
    for odd in (True, np.float32(1.5), np.bool_(True), float("nan"), "a"):
        with pytest.raises(BudgetError, match="is not a budget"):
            Budget(macs=odd)  # type: ignore[arg-type]


def test_what_is_no_score_or_budget_is_told() -> None:
    space = mlp_space(MLP())
    with pytest.raises(
        BudgetError, match=r"scores is a ndarray, but must be what niwaki.score returns: niwaki.score\("
    ):
        choose(space, np.ones(space.num_units), Budget(macs=0.5))  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="'mine' is nan for unit 0 of the group 'first'. Scores must be finite"):
        choose(space, Scores(np.full(space.num_units, np.nan), "mine"), Budget(macs=0.5))
    with pytest.raises(MethodError, match=r"space is a MLP, but must be what niwaki.search_space\(model"):
        choose(MLP(), score(space, "magnitude"), Budget(macs=0.5))  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="budget=0.5 is not a budget"):
        choose(space, score(space, "magnitude"), 0.5)  # type: ignore[arg-type]


def enumerated(space: SearchSpace, saliency: np.ndarray, limits: dict[str, float], round_to: int) -> list[np.ndarray]:
    """All choices under ``limits`` that keep the most salient units of each group."""
    ranks = [np.argsort(np.argsort(-saliency[group.numbers])) for group in space.groups]
    allowed = [[k for k in range(1, g.units + 1) if k % round_to == 0 or k == g.units] for g in space.groups]
    choices = (
        np.concatenate([rank < kept for rank, kept in zip(ranks, sizes, strict=True)])
        for sizes in itertools.product(*allowed)
    )
    return [keep for keep in choices if all(costs(space.cost_model, keep, limits)[m] <= limits[m] for m in limits)]


@pytest.mark.parametrize("round_to", [3, 4])
def test_using_up_a_limit_never_costs_what_is_kept(round_to: int) -> None:
    """Coarse steps: near the best of all choices, and no layer is given away for the last per cent of a limit."""
    space = mlp_space(MLP(5, 8, 12))
    for seed in range(8):
        saliency = np.random.default_rng(seed).lognormal(size=space.num_units)
        for budget in (Budget(macs=0.55, round_to=round_to), Budget(macs=0.6, units=0.6, round_to=round_to)):
            limits = budget.absolute(space)
            keep = space.keep_of(choose(space, Scores(saliency, ""), budget, compare="space"))
            best = max(saliency[one].sum() for one in enumerated(space, saliency, limits, round_to))
            assert saliency[keep].sum() >= 0.99 * best


def test_shares_of_any_scale_are_compared() -> None:
    """No sum over several groups loses the small ones."""
    space = SPACES["conv"]()
    saliency = np.random.default_rng(0).lognormal(size=space.num_units)
    first = choose(space, Scores(saliency, ""), Budget(macs=0.4))
    for factors in itertools.permutations((1e-12, 1.0, 1e12)):
        scaled = saliency.copy()
        for factor, group in zip(factors, space.groups, strict=True):
            scaled[group.numbers] *= factor
        assert choose(space, Scores(scaled, ""), Budget(macs=0.4)).kept == first.kept


def test_shares_are_the_decimal_numbers_they_are_written_as() -> None:
    """0.57 * 100 is 56.99999999999999 in floats."""
    space = mlp_space(MLP(4, 60, 40))
    assert [Budget(units=share).absolute(space)["units"] for share in (0.29, 0.57, 0.58, 1.0)] == [29, 57, 58, 100]


class Looked(torch.nn.Module):
    """No multiply-accumulates at all."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = torch.nn.Embedding(5, 8), torch.nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.table(x) * self.scale).sum(-1)


def test_a_network_without_macs() -> None:
    model = Looked()
    space = search_space(model, torch.tensor([[1, 2]]))
    for budget in (Budget(macs=0.5), Budget(macs=100), Budget(macs=0.5, params=0.5)):
        with pytest.raises(BudgetError, match="has no macs .*so macs=.* limits nothing. Set a limit in something else"):
            choose(space, score(space, "magnitude"), budget)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = HESSO(space, optimizer, Budget(params=0.5), Schedule(1, 3, 1))
    assert method.progress.macs == 1.0 and method.progress.params == 1.0
    method.detach()
    assert "100.0% of the MACs" in repr(HSPG(space, optimizer, Budget(params=0.5), Schedule(1, 3, 1)))


def test_nothing_to_choose_from_is_told() -> None:
    space = search_space(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.warns(UserWarning, match="The search space has no units, so the plan removes nothing. print"):
        plan = choose(space, score(space, "magnitude"), Budget(units=0.5))
    assert not plan.tensors
    with pytest.warns(UserWarning), pytest.raises(BudgetError, match="cannot be met"):
        choose(space, score(space, "magnitude"), Budget(macs=0.5))


def test_a_plan_prints_what_it_costs_and_what_was_asked() -> None:
    space = SPACES["mlp"]()
    plan = choose(space, score(space, "magnitude"), Budget(macs=0.5, params=1500))
    text = str(Plan.from_json(plan.to_json()))
    dense, kept = space.cost(), space.cost(plan)
    assert f"MACs: {dense.macs:,} -> {kept.macs:,} ({kept.macs / dense.macs:.1%}, budget 50.0%)" in text
    assert f"parameters: {dense.params:,} -> {kept.params:,} ({kept.params / dense.params:.1%}, budget 1,500)" in text
    assert re.search(r"  first: keeps \d+ of 40", text)
    bare = dataclasses.replace(plan, provenance={"dense": "edited by hand"})
    assert str(bare).startswith("Plan: ") and "->" not in str(bare)


def test_a_plan_says_how_wide_its_units_are_and_where_steps_are_coarse() -> None:
    space = overlap_space(Overlap())
    coarse = dataclasses.replace(space, ties=(Tie((0,), (2,), space.groups[0].units // 2 - 1),))
    plan = choose(coarse, drawn(coarse, 0), Budget(units=space.num_units - 1))
    wide = {g.name: g.slices[0].index.shape[1] for g in space.groups if g.slices[0].index.shape[1] > 1}
    assert plan.provenance["entries_per_unit"] == wide
    for name, width in wide.items():
        if len(plan.kept[name]) < plan.units[name]:
            assert f"{name}: keeps {len(plan.kept[name])} of {plan.units[name]} blocks of {width} entries" in str(plan)
    assert plan.provenance.get("tight", "") in str(plan)
