"""`niwaki.choose(..., remove="structures")`: by score per cost, valid, within the budget; and its errors."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Erase, EraseModules
from niwaki.errors import BudgetError, MethodError, PlanError, UnknownName

X = torch.randn(2, 8)


class Ladder(nn.Module):
    """A chain of residual branches, the last with a branch inside; before, two parallel layers, one of which stays."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(steps))
        self.inner, self.back, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) + self.right(x)
        for step in self.steps:
            x = x + step(x)
        y = x.relu()
        x = x + self.back(y + self.inner(y))
        result: Tensor = self.head(x)
        return result


def space_of(steps: int = 4, **more: object) -> niwaki.SearchSpace:
    return niwaki.search_space(Ladder(steps), X, as_graph=True, erase=True, **more)  # type: ignore[arg-type]


def scores_of(space: niwaki.SearchSpace, by_name: dict[str, float]) -> niwaki.Scores:
    values = np.ones(space.num_units)
    for group in space.groups:
        if group.structure is not None:
            values[group.first] = by_name.get(space.structures[group.structure].name, 1.0)
    return niwaki.score(space, lambda _: values)


def erased(space: niwaki.SearchSpace, plan: niwaki.Plan) -> set[str]:
    kept = space.keep_of(plan)
    return {
        space.structures[group.structure].name
        for group in space.groups
        if group.structure is not None and not kept[group.first]
    }


def test_the_least_score_per_cost_goes_first() -> None:
    space = space_of()
    scores = scores_of(space, {"steps.2": 0.1, "steps.0": 0.2, "back": 0.5})
    for count, names in ((1, {"steps.2"}), (2, {"steps.2", "steps.0"})):
        budget = niwaki.Budget(macs=space.cost().macs - count * 2 * 64)
        plan = niwaki.choose(space, scores, budget, remove="structures")
        assert erased(space, plan) == names
        assert space.cost(plan).macs == budget.macs
        assert plan.provenance["remove"] == "structures"
        assert niwaki.Plan.from_json(plan.to_json()).edits_of(Erase) == plan.edits_of(Erase)


def test_a_structure_is_priced_with_what_is_inside() -> None:
    """At twice the score of the others for twice their cost the branch around is as cheap; below that it goes first,
    and takes the other along."""
    space = space_of()
    around = next(one.name for one in space.structures if one.erasable and one.macs == 4 * 64)
    plan = niwaki.choose(space, scores_of(space, {around: 1.9}), niwaki.Budget(macs=0.76), remove="structures")
    assert erased(space, plan) == {around, "inner"}
    plan = niwaki.choose(
        space, scores_of(space, {around: 1.9, "inner": 0.5}), niwaki.Budget(macs=0.8), remove="structures"
    )
    assert erased(space, plan) > {"inner"} and around not in erased(space, plan)


class Sized(nn.Module):
    """Residual branches of different widths."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(4, size, bias=False) for size in sizes)
        self.down = nn.ModuleList(nn.Linear(size, 4, bias=False) for size in sizes)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        result: Tensor = self.head(x)
        return result


def test_a_large_structure_does_not_go_where_small_ones_are_enough() -> None:
    """By score per cost the large branch is second, and would go alone in the end: 30 where 7 are enough."""
    space = niwaki.search_space(Sized(28, 60, 10), X[:, :4], erase=True)
    names = [one.name for one in space.structures]
    scores = scores_of(space, dict(zip(names, (1.0, 30.0, 6.0), strict=True)))
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=space.cost().macs - 30 * 16), remove="structures")
    assert erased(space, plan) == {names[0], names[2]}


def test_what_would_disconnect_is_skipped() -> None:
    space = space_of()
    scores = scores_of(space, {"left": 0.1, "right": 0.2})
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.7), remove="structures")
    assert "left" in erased(space, plan) and "right" not in erased(space, plan)


def test_a_budget_that_no_valid_choice_reaches() -> None:
    space = space_of(1)
    scores = niwaki.score(space, "magnitude")
    with pytest.raises(BudgetError, match=r"macs <= 67 \(10.0% of 672\) cannot be met by erasing: without 4 of 5 s"):
        niwaki.choose(space, scores, niwaki.Budget(macs=0.1), remove="structures")
    with pytest.raises(BudgetError, match=r"160 \(23.8%\) remain, and no other can go beside them"):
        niwaki.choose(space, scores, niwaki.Budget(macs=0.1), remove="structures")


def test_nothing_to_erase() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    for more, why in (({}, "made without erase=True"), ({"erase": True}, "no result of the network joins others")):
        space = niwaki.search_space(net, X, **more)
        with pytest.raises(BudgetError, match=f"no structure that could be erased: .*{why}"):
            niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5), remove="structures")
    space = space_of(0, ignored=["*"])
    with pytest.raises(BudgetError, match="left: 'left.weight' is ignored by the pattern '\\*'"):
        niwaki.choose(space, niwaki.score(space, lambda s: np.ones(0)), niwaki.Budget(macs=0.5), remove="structures")


class Pooled(nn.Module):
    """All that can be erased is a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.head = nn.Conv1d(1, 3, 1), nn.AvgPool1d(3, 1, 1), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x[:, None])
        result: Tensor = self.head((torch.sin(y) + self.pool(y)).flatten(1))
        return result


def test_what_takes_data_to_be_scored() -> None:
    space = niwaki.search_space(Pooled(), X, erase=True)
    assert [one.name for one in space.structures if one.erasable] == ["pool"]
    scores = niwaki.score(space, "magnitude")
    with pytest.raises(BudgetError, match="1 stay because they have no parameters, and the scores say nothing of them"):
        niwaki.choose(space, scores, niwaki.Budget(macs=0.5), remove="structures")
    told = niwaki.score(space, "magnitude", [X], lambda model, x: model(x).square().mean())
    plan = niwaki.choose(space, told, niwaki.Budget(units=3), remove="structures")
    (edit,) = plan.edits_of(EraseModules)
    assert edit.gated == ("pool",)


@pytest.mark.parametrize("name", ["exemplar", "geometric_median"])
def test_what_is_compared_with_its_peers_says_nothing_of_a_structure(name: str) -> None:
    """It is alone in its group. Both are of value 0 or 1 there, beside which units would be worth all or nothing."""
    space = space_of(0)
    scores, names = niwaki.score(space, name), [group.name for group in space.groups if group.structure is not None]
    assert set(scores.silent) == {group.first for group in space.groups if group.structure is not None}
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.6), remove="both")
    assert all(len(plan.kept[one]) == 1 for one in names)
    with pytest.raises(BudgetError, match=r"\d stay because the scores say nothing of them: their criterion is for un"):
        niwaki.choose(space, scores, niwaki.Budget(macs=0.6), remove="structures")
    optimizer = torch.optim.SGD(space.model.parameters(), lr=0.1)
    with pytest.raises(MethodError, match=f"{name}' compares units with the others of their group, and a structure is"):
        niwaki.HESSO(
            space, optimizer, niwaki.Budget(macs=0.6), niwaki.Schedule(1, 9, 2), criteria={name: 1.0}, remove="both"
        )


def test_other_errors() -> None:
    space = space_of(1)
    scores = niwaki.score(space, "magnitude")
    with pytest.raises(
        UnknownName, match="remove='layers' is not what can be removed: choose 'units', 'structures' or 'both'"
    ):
        niwaki.choose(space, scores, niwaki.Budget(macs=0.5), remove="layers")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="compare='group' is for units. A structure is alone in its group"):
        niwaki.choose(space, scores, niwaki.Budget(macs=0.5), compare="group", remove="structures")
    with pytest.raises(BudgetError, match="A limit on latency is met by measuring networks with narrower layers"):
        niwaki.choose(space, scores, niwaki.Budget(latency=0.5), example_inputs=X, remove="structures")
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.9), remove="structures")
    with pytest.raises(PlanError, match="The plan is for another network: it expects a tensor"):
        niwaki.cut(nn.Linear(8, 2), plan, as_graph=True, example_inputs=X)


class Two(nn.Module):
    """One output of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.head = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        result: Tensor = self.head(self.image(picture) + self.text(words))
        return result


def test_required_inputs() -> None:
    for required, expected in (([], {"image", "text"}), (["words"], {"image"}), (["words", "picture"], set())):
        space = niwaki.search_space(Two(), (X, X.flip(0)), erase=True, as_graph=True, required=required)
        assert {one.name for one in space.structures if one.erasable} == expected
    assert space.structures[0].refused == "an output would no longer depend on an input that is required"
    with pytest.raises(UnknownName, match="no input 'sound' in `required`: the inputs of this model are 'picture', 'w"):
        niwaki.search_space(Two(), (X, X.flip(0)), erase=True, required=["sound"])
    with pytest.raises(UnknownName, match=r"required=\['words'\] is for structures that can be erased"):
        niwaki.search_space(Two(), (X, X.flip(0)), required=["words"])
    with pytest.raises(UnknownName, match="required=3 must be a list of names of inputs"):
        niwaki.search_space(Two(), (X, X.flip(0)), erase=True, required=3)  # type: ignore[arg-type]


def test_validity_is_cheap() -> None:
    """In passes over the network: all of many candidates are asked in the time of a few analyses."""
    begin = time.perf_counter()
    space = niwaki.search_space(Ladder(150), X, erase=True)
    whole = time.perf_counter() - begin
    begin = time.perf_counter()
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.3), remove="structures")
    assert time.perf_counter() - begin < max(2 * whole, 1.0) and len(erased(space, plan)) > 100


@pytest.mark.parametrize("units", [True, False])
def test_what_serves_two_structures_costs_nothing_without_both(units: bool) -> None:
    """Where it has units, these say so; where it has none, nothing but the structures does."""

    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g, self.c, self.d, self.head = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.g(x).relu() if units else self.g(x).softmax(-1)
            x = (x + self.c(y)).relu()
            result: Tensor = self.head(x + self.d(y))
            return result

    space = niwaki.search_space(Joint(), X, as_graph=True, erase=True)
    unit = {space.structures[g.structure].name: g.first for g in space.groups if g.structure is not None}
    for names, layers in ((("c",), 3), (("d",), 3), (("c", "d"), 1)):
        keep = np.ones(space.num_units, dtype=bool)
        keep[[unit[name] for name in names]] = False
        plan = space.plan(keep)
        assert space.cost(plan).params == layers * (8 * 8 + 8)
        small = niwaki.cut(space.model, plan)
        assert sum(parameter.numel() for parameter in small.parameters()) == layers * (8 * 8 + 8)


def test_what_went_first_may_have_to_return() -> None:
    """Of two parallel layers the cheap one is worth least, but only without the other the budget is met."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.thin = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)), nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.wide(x) + self.thin(x))
            return result

    space = niwaki.search_space(Parallel(), X, erase=True)
    scores = scores_of(space, {"wide": 1.0, "thin": 1e-4})
    assert erased(space, niwaki.choose(space, scores, niwaki.Budget(macs=0.95), remove="structures")) == {"thin"}
    assert erased(space, niwaki.choose(space, scores, niwaki.Budget(macs=0.5), remove="structures")) == {"wide"}
