"""`niwaki.choose(..., remove="structures")` beside all valid sets of structures: what it erases is worth least."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.networks.demo_supernet import DemoSupNet
from niwaki.networks.super_resnet import SuperResNet
from niwaki.selection import STRUCTURES, SelectionRequest, branching
from niwaki.selection.structures import erasable, erase_structures


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


class Valid:
    """All sets of structures that can be erased together, none inside of another, and the cost without each."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.space = niwaki.search_space(model, x, erase=True)
        assert self.space.erasures is not None
        self.units = erasable(self.space)
        self.around = {number: {*self.space.erasures.around(number)} & {*self.units} for number in self.units}
        self.sets = [one for one in self._sets([*self.units]) if self.space.erasures.why_not(one) is None]
        self.gone = [[self.units[number] for number in one] for one in self.sets]
        self.cost = {m: np.array([getattr(self.left(one), m) for one in self.gone]) for m in ("macs", "params")}

    def _sets(self, rest: list[int]) -> Iterator[list[int]]:
        if not rest:
            yield []
            return
        first, *others = rest
        yield from self._sets(others)
        apart = [one for one in others if first not in self.around[one] and one not in self.around[first]]
        for some in self._sets(apart):
            yield [first, *some]

    def left(self, gone: list[int]) -> niwaki.Cost:
        keep = np.ones(self.space.num_units, dtype=bool)
        keep[gone] = False
        return self.space.cost_of(keep)

    def lost(self, keep: np.ndarray, saliency: np.ndarray) -> float:
        """Of a choice: the saliency of the outermost structures that it erases."""
        gone = {number for number, unit in self.units.items() if not keep[unit]}
        return float(sum(saliency[self.units[one]] for one in gone if self.around[one] & gone == {one}))

    def drawn(self, seed: int) -> np.ndarray:
        """Saliencies that have nothing to do with the cost (even seeds), or grow with it; those of what is around
        others are, with every second pair of seeds, more than these have together."""
        generator, saliency = np.random.default_rng(seed), np.ones(self.space.num_units)
        for number in sorted(self.units, key=lambda number: -len(self.around[number])):
            inside = [self.units[one] for one in self.units if number in self.around[one] and one != number]
            size = self.space.structures[number].params if seed % 2 else 40.0
            saliency[self.units[number]] = generator.random() * size + saliency[inside].sum() * (seed % 4 < 2)
        return saliency

    def compare(self, seed: int, limits: dict[str, float]) -> tuple[float, float, float]:
        """What is lost: by the best set that meets the limits, by the choice, and by the greedy choice."""
        saliency, request = self.drawn(seed), SelectionRequest(limits)
        met = np.all([self.cost[m] <= limit for m, limit in limits.items()], axis=0)
        best = min(saliency[gone].sum() for gone, fits in zip(self.gone, met, strict=True) if fits)
        keep = STRUCTURES.select(self.space, saliency, request)
        cost = self.space.cost_of(keep)
        assert all(getattr(cost, m) <= limit for m, limit in limits.items())
        greedy = self.lost(erase_structures(self.space, saliency, request), saliency)
        return float(best), self.lost(keep, saliency), greedy


@pytest.fixture(scope="module", params=["branches", "super-resnet", "supernet"])
def valid(request: pytest.FixtureRequest) -> Valid:
    torch.manual_seed(0)
    if request.param == "branches":
        return Valid(Sized(15, 2, 48, 31, 18, 9, 57), torch.randn(2, 4))
    if request.param == "super-resnet":
        return Valid(SuperResNet(10, 1, (4, 8), (1, 1), (3, 5)), torch.randn(1, 1, 8, 8))
    return Valid(DemoSupNet(10, 1, 6), torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize("measures", [("macs",), ("params",), ("macs", "params")])
def test_no_valid_choice_loses_less(valid: Valid, measures: tuple[str, ...]) -> None:
    wasted = []
    for seed in range(4):
        for share in (0.4, 0.51, 0.65, 0.8):
            limits = {m: share * valid.cost[m].max() for m in measures}
            if not np.all([valid.cost[m] <= limit for m, limit in limits.items()], axis=0).any():
                continue
            best, chosen, greedy = valid.compare(seed, limits)
            assert chosen == pytest.approx(best)
            wasted.append(greedy > chosen * (1 + 1e-6))
    assert any(wasted)  # the greedy choice alone would fail


def test_a_budget_is_used_where_that_loses_less() -> None:
    """By score per cost the widest branch is second, and would go alone in the end: 60 where 50 are enough."""
    space = niwaki.search_space(Sized(30, 20, 60), torch.randn(2, 4), erase=True)
    units, saliency = [*erasable(space).values()], np.ones(space.num_units)
    saliency[units] = 2.0, 1.5, 4.2
    each = [one.macs for one in space.structures]
    limit = space.cost().macs - each[0] - each[1]
    plan = niwaki.choose(space, niwaki.score(space, lambda _: saliency), niwaki.Budget(macs=limit), remove="structures")
    assert space.keep_of(plan)[units].tolist() == [False, False, True]
    assert space.cost(plan).macs == limit
    greedy = erase_structures(space, saliency, SelectionRequest({"macs": limit}))
    assert greedy[units].tolist() == [True, True, False]


def test_what_stays_and_what_is_gone_is_left_alone(valid: Valid) -> None:
    """As between the portions of a method."""
    saliency, units = valid.drawn(1), [*valid.units.values()]
    limit = {"macs": 0.6 * valid.cost["macs"].max()}
    first = STRUCTURES.select(valid.space, saliency, SelectionRequest(limit))
    gone = next(unit for unit in units if not first[unit])
    removed = np.arange(valid.space.num_units) == gone
    again = STRUCTURES.select(valid.space, saliency, SelectionRequest(limit, removed))
    assert np.array_equal(again, first)
    staying = np.arange(valid.space.num_units) == gone
    other = STRUCTURES.select(valid.space, saliency, SelectionRequest(limit, staying=staying))
    assert other[gone] and valid.lost(other, saliency) >= valid.lost(first, saliency)


def test_many_structures_are_chosen_greedily(valid: Valid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branching, "_MOST_BLOCKS", 3)
    for seed in range(4):
        _, chosen, greedy = valid.compare(seed, {"macs": 0.65 * valid.cost["macs"].max()})
        assert chosen == greedy


def test_ranks_are_followed_in_order(valid: Valid) -> None:
    for seed in range(4):
        saliency, limits = valid.drawn(seed), {"macs": 0.65 * valid.cost["macs"].max()}
        request = SelectionRequest(limits, in_order=True)
        greedy = erase_structures(valid.space, saliency, request)
        chosen = STRUCTURES.select(valid.space, saliency, request)
        assert valid.lost(chosen, saliency) == valid.lost(greedy, saliency)


def test_it_ends_in_time(valid: Valid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it may not look at any set it returns the greedy choice; after a few, never one that loses more."""
    for erased in (0, 5, 60):
        monkeypatch.setattr(branching, "_MOST_ERASED", erased)
        best, chosen, greedy = valid.compare(3, {"macs": 0.51 * valid.cost["macs"].max()})
        assert best <= chosen * (1 + 1e-9) and chosen <= greedy * (1 + 1e-9)
        assert erased or chosen == greedy
