"""`niwaki.choose(..., remove="both")`: units and structures under one budget, against all choices there are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.dying import structure_units
from niwaki.errors import BudgetError
from niwaki.selection.both import CommonScale


class Branches(nn.Module):
    """Residual branches on a stream that cannot get narrower, the last with a branch inside."""

    def __init__(self, widths: tuple[int, ...] = (2, 3), nested: bool = True) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(6, width, bias=False) for width in widths)
        self.down = nn.ModuleList(nn.Linear(width, 6, bias=False) for width in widths)
        self.first, self.inner, self.last = nn.Linear(6, 2), nn.Linear(2, 2), nn.Linear(2, 6)
        self.nested, self.head = nested, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        if self.nested:
            y = self.first(x).relu()
            x = x + self.last(y + self.inner(y).relu())
        result: Tensor = self.head(x)
        return result


def space_of(model: nn.Module) -> niwaki.SearchSpace:
    return niwaki.search_space(model, torch.randn(2, 6), erase=True, as_graph=True)


def around(space: niwaki.SearchSpace) -> dict[int, list[int]]:
    assert space.erasures is not None
    units = structure_units(space)
    return {number: [one for one in space.erasures.around(number) if one in units] for number in units}


def all_choices(space: niwaki.SearchSpace) -> Iterator[np.ndarray]:
    """Every mask that leaves a unit of each group: those of structures are any."""
    per_group = []
    for group in space.groups:
        some = [np.array(bits) for bits in product((False, True), repeat=group.units)]
        per_group.append([bits for bits in some if group.structure is not None or bits.any()])
    for bits in product(*per_group):
        yield np.concatenate(bits)


def worth(space: niwaki.SearchSpace, values: CommonScale, keep: np.ndarray) -> float:
    """By the definition: what is kept and not inside of something erased."""
    units = structure_units(space)
    total = 0.0
    for unit in np.flatnonzero(keep).tolist():
        gone = any(values.inside[place, unit] and not keep[own] for place, own in enumerate(units.values()))
        total += 0.0 if gone else float(values.own[unit])
    return total


def values_of(space: niwaki.SearchSpace, saliency: np.ndarray) -> CommonScale:
    everything = np.ones(space.num_units, dtype=bool)
    return CommonScale.of(space, structure_units(space), around(space), everything, saliency, saliency, "space")


def test_what_a_choice_is_worth() -> None:
    """A structure is worth its own score, or that of what is inside if that is more; nothing counts twice."""
    space = space_of(Branches())
    saliency = np.ones(space.num_units)
    names = {space.structures[number].name: unit for number, unit in structure_units(space).items()}
    saliency[names["up.0..down.0"]], saliency[names["up.1..down.1"]] = 5.0, 2.0
    saliency[names["inner"]], saliency[names["first..last"]] = 0.5, 7.0
    values = values_of(space, saliency)
    assert values.own[names["up.0..down.0"]] == 3.0  # 5 less two units
    assert values.own[names["up.1..down.1"]] == 0.0  # three units are worth more than 2
    assert values.own[names["inner"]] == 0.5 and values.own[names["first..last"]] == 7.0 - 0.5 - 2.0
    everything = np.ones(space.num_units, dtype=bool)
    assert worth(space, values, everything) == 5.0 + 3.0 + 7.0


def test_structures_are_worth_what_their_scores_say() -> None:
    """Not what they cost: of two of equal scores the one that costs more is worth no more, and goes first."""
    space = space_of(Branches((2, 6), nested=False))
    units = structure_units(space)
    small, large = (
        next(unit for number, unit in units.items() if space.structures[number].name == f"up.{place}..down.{place}")
        for place in (0, 1)
    )
    saliency, everything = np.ones(space.num_units), np.ones(space.num_units, dtype=bool)
    price = space.cost_model.price(np.ones(space.num_units), "macs")
    values = CommonScale.of(space, units, around(space), everything, saliency, price, "group")
    whole = dict(zip(units.values(), values.inside @ values.own, strict=True))
    assert price[large] == 3 * price[small] and whole[large] == pytest.approx(whole[small])
    assert sum(whole.values()) == pytest.approx(price[list(units.values())].sum())
    budget = niwaki.Budget(macs=int(space.cost().macs - price[large]))
    kept = space.keep_of(niwaki.choose(space, niwaki.score(space, lambda _: saliency), budget, remove="both"))
    assert not kept[large] and kept[small]


@pytest.mark.parametrize("measure", ["macs", "params"])
def test_against_all_choices(measure: str) -> None:
    """Scores that add up, random ones: nothing better exists, up to steps that are too coarse for a sweep."""
    space = space_of(Branches())
    found = {keep.tobytes(): keep for keep in all_choices(space)}
    cost = {key: getattr(space.cost_of(keep), measure) for key, keep in found.items()}
    dense = getattr(space.cost(), measure)
    shares = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        saliency = generator.random(space.num_units) ** 2
        for unit in structure_units(space).values():
            saliency[unit] *= 4
        values = values_of(space, saliency)
        value = {key: worth(space, values, keep) for key, keep in found.items()}
        for share in (0.35, 0.5, 0.7, 0.9):
            limit = share * dense
            best = max(value[key] for key in found if cost[key] <= limit)
            scores = niwaki.score(space, lambda _: saliency)  # noqa: B023
            plan = niwaki.choose(space, scores, niwaki.Budget(**{measure: share}), remove="both", compare="space")
            keep = space.keep_of(plan)
            assert getattr(space.cost(plan), measure) <= limit
            shares.append(worth(space, values, keep) / best)
    assert np.mean(np.array(shares) > 1 - 1e-9) > 0.95 and min(shares) > 0.8


@pytest.mark.parametrize("measure", ["macs", "params", "memory"])
def test_no_worse_than_either_alone(measure: str) -> None:
    """Within the limit, as good as any choice of units alone or of structures alone, and never better than can be."""
    space = space_of(Branches((2, 2)))
    cost, dense = {keep.tobytes(): keep for keep in all_choices(space)}, getattr(space.cost(), measure)
    within = [(getattr(space.cost_of(keep), measure) / dense, keep) for keep in cost.values()]
    for seed, share in product(range(3), (0.65, 0.8)):
        saliency = np.random.default_rng(seed).random(space.num_units) ** 2
        for unit in structure_units(space).values():
            saliency[unit] *= 4
        values, scores = values_of(space, saliency), niwaki.score(space, lambda _: saliency)  # noqa: B023
        found = {}
        for remove in ("units", "structures", "both"):
            compare = None if remove == "structures" else "space"
            budget = niwaki.Budget(**{measure: share})
            plan = niwaki.choose(space, scores, budget, remove=remove, compare=compare)  # type: ignore[arg-type]
            assert getattr(space.cost(plan), measure) <= share * dense
            found[remove] = worth(space, values, space.keep_of(plan))
        best = max(worth(space, values, keep) for used, keep in within if used <= share)
        assert max(found.values()) <= best + 1e-9 and found["both"] >= 0.9 * best
        assert found["both"] >= max(found.values()) - 1e-9


class Residual(nn.Module):
    """Convolutional blocks on a stream of its own width, with norms."""

    def __init__(self, blocks: int = 3, inner: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, 8, 3, padding=1)
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


IMAGES = torch.randn(4, 3, 6, 6)


def residual(as_graph: bool = False, **more: int) -> niwaki.SearchSpace:
    torch.manual_seed(0)
    return niwaki.search_space(Residual(**more), IMAGES, erase=True, as_graph=as_graph)


@pytest.mark.parametrize("compare", ["group", "isomorphic", "space"])
@pytest.mark.parametrize("budget", [{"macs": 0.4}, {"params": 0.5}, {"memory": 0.3}, {"macs": 0.6, "params": 0.4}])
def test_the_budget_is_tight_and_the_cut_is_exact(
    budget: dict[str, float], compare: niwaki.criteria.normalise.Compare
) -> None:
    space = residual()
    with torch.no_grad():
        for weight in space.model.blocks[1].parameters():  # type: ignore[union-attr]
            weight.mul_(0.05)
    scores = niwaki.score(space, "magnitude_l1")
    plan = niwaki.choose(space, scores, niwaki.Budget(**budget), remove="both", compare=compare)
    used = {measure: getattr(space.cost(plan), measure) / getattr(space.cost(), measure) for measure in budget}
    assert all(used[measure] <= limit for measure, limit in budget.items())
    tightest = max(used[measure] / limit for measure, limit in budget.items())
    assert tightest >= 0.99 or "tight" in plan.provenance
    assert plan.provenance["remove"] == "both" and plan.provenance.get("compare", "group") == compare
    kept = space.keep_of(plan)
    gone = {space.structures[number].name for number, unit in structure_units(space).items() if not kept[unit]}
    assert "blocks.1" in gone and not plan.kept["blocks.1.0"]
    assert 0 < len(plan.kept["blocks.0.0"]) <= 8
    assert niwaki.check(space.model, plan, IMAGES).holds
    small = niwaki.cut(space.model, plan)
    assert sum(p.numel() for p in small.parameters()) == space.cost(plan).params


def test_a_unit_in_what_is_erased_is_not_paid_for_twice() -> None:
    """A block that is worth nothing goes; the others then keep as much as if it had never been."""
    space = residual()
    with torch.no_grad():
        for weight in space.model.blocks[1].parameters():  # type: ignore[union-attr]
            weight.zero_()
    scores = niwaki.score(space, "magnitude_l1")
    budget = niwaki.Budget(macs=space.cost().macs - max(one.macs for one in space.structures))
    without = niwaki.choose(space, scores, budget, remove="both")
    others = ["stem", "blocks.0.0", "blocks.2.0"]
    assert [len(without.kept[name]) for name in others] == [8, 8, 8] and not without.kept["blocks.1.0"]
    widths = niwaki.choose(space, scores, budget)
    assert sum(len(widths.kept[name]) for name in others) < 3 * 8


def test_widths_stay_multiples_and_above_the_least() -> None:
    space = residual()
    budget = niwaki.Budget(macs=0.3, round_to=4, min_units=4)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude_l1"), budget, remove="both")
    kept = space.keep_of(plan)
    erased = [number for number, unit in structure_units(space).items() if not kept[unit]]
    assert erased and space.cost(plan).macs <= 0.3 * space.cost().macs
    for group in space.width_groups:
        left = len(plan.kept[group.name])
        inside = any(group.name.startswith(f"{space.structures[number].name}.") for number in erased)
        assert left == 0 if inside else left in (4, 8)


def test_what_neither_reaches_alone() -> None:
    """Widths alone cannot go so low, since every group keeps a unit, and neither can structures."""
    space = residual()
    scores = niwaki.score(space, "magnitude_l1")
    limit = space.least_cost().macs - 50
    with pytest.raises(BudgetError, match="with every group at its least size"):
        niwaki.choose(space, scores, niwaki.Budget(macs=limit))
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=limit), remove="both")
    assert space.cost(plan).macs <= limit
    with pytest.raises(BudgetError, match=r"with every group at its least size and without \d structures .* remain"):
        niwaki.choose(space, scores, niwaki.Budget(macs=150), remove="both")


def test_a_little_is_not_worth_a_structure() -> None:
    """A few weak units are removed, and nothing is erased; where it is the reverse, a weak block goes."""
    space = residual(as_graph=True)
    saliency = np.ones(space.num_units)
    groups = {group.name: group for group in space.groups}
    for number, unit in structure_units(space).items():
        saliency[unit] = 8.0 if space.structures[number].name != "blocks.2" else 8.1
    saliency[groups["blocks.0.0"].numbers][:3] = 0.01
    scores = niwaki.score(space, lambda _: saliency)
    block = space.structures[groups["blocks.2 (whole)"].structure or 0].macs
    limit = space.cost().macs - block * 3 // 8
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=limit), remove="both", compare="space")
    assert list(plan.kept["blocks.0.0"]) == [3, 4, 5, 6, 7] and space.keep_of(plan)[groups["blocks.2 (whole)"].first]
    saliency[groups["blocks.2.0"].numbers] = 0.001
    saliency[structure_units(space)[groups["blocks.2 (whole)"].structure or 0]] = 0.5
    limit = space.cost().macs - block
    plan = niwaki.choose(space, niwaki.score(space, lambda _: saliency), niwaki.Budget(macs=limit), remove="both")
    kept = space.keep_of(plan)
    assert not kept[groups["blocks.2 (whole)"].first] and len(plan.kept["blocks.0.0"]) == 8


def test_errors() -> None:
    space = residual()
    scores = niwaki.score(space, "magnitude_l1")
    with pytest.raises(BudgetError, match="A number of units cannot be shared out between units and whole structures"):
        niwaki.choose(space, scores, niwaki.Budget(units=0.5), remove="both")
    bare = niwaki.search_space(Residual(), IMAGES)
    with pytest.raises(BudgetError, match="There is no structure that could be erased: the search space was made with"):
        niwaki.choose(bare, niwaki.score(bare, "magnitude"), niwaki.Budget(macs=0.5), remove="both")


def test_a_measured_limit() -> None:
    """Networks without structures are cut and run, too."""
    torch.manual_seed(0)
    space = niwaki.search_space(Residual(inner=32), IMAGES.repeat(2, 1, 3, 3), erase=True)
    budget = niwaki.Budget(latency=0.7)
    scores = niwaki.score(space, "magnitude_l1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timings that vary
        plan = niwaki.choose(space, scores, budget, remove="both", example_inputs=IMAGES.repeat(2, 1, 3, 3))
    told = plan.provenance["measured"]["latency"]
    assert told["kept"] <= 0.7 * told["dense"] and plan.provenance["remove"] == "both"
    assert niwaki.check(space.model, plan, IMAGES).holds


def test_groups_that_weigh_more_keep_more() -> None:
    """On the common scale, too, where units are compared in their groups."""
    space = residual()
    saliency, everything = np.ones(space.num_units), np.ones(space.num_units, dtype=bool)
    groups = {group.name: (number, group) for number, group in enumerate(space.groups)}
    number, stem = groups["stem"]
    weight = np.ones(len(space.groups))
    weight[number] = 3.0
    found = [
        CommonScale.of(space, structure_units(space), around(space), everything, saliency, saliency, "group", weights)
        for weights in (None, weight)
    ]
    assert np.allclose(found[1].own[stem.numbers], 3 * found[0].own[stem.numbers])
    others = groups["blocks.0.0"][1].numbers
    assert np.allclose(found[1].own[others], found[0].own[others])
