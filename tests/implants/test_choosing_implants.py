"""Which units are implanted: prices against cut networks, budgets, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from implanted import Blocks, blocks_space, images, randomised
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Implant
from niwaki.core.positions import Positions
from niwaki.errors import BudgetError, PlanError, UnknownName
from niwaki.implants import ImplantLayers, choose, hap
from niwaki.implants.hap import planned_with
from niwaki.implants.value import ByValue


def small_space(wide: int = 3, deep: int = 3) -> ImplantLayers:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, wide, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(wide, deep, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(deep, 1, 1),
    )
    return ImplantLayers.of(niwaki.search_space(network, torch.randn(1, 1, 6, 6)))


@pytest.mark.parametrize("measure", ["macs", "params"])
def test_prices_are_what_a_step_saves(measure: str) -> None:
    """Of every step from every state of a small network, against the cost of the plans before and after."""
    layers = small_space(3, 2)
    space = layers.space
    ways = ByValue(layers, np.ones(space.num_units), {})
    cost: dict[tuple[int, ...], float] = {}
    for state in itertools.product(range(3), repeat=space.num_units):
        whole = np.array(state) == 0
        if all(whole[group.numbers].any() for group in space.groups):
            plan = planned_with(layers, np.array(state) < 2, np.array(state) == 1)
            cost[state] = getattr(space.cost(plan), measure)
    checked = 0
    for state, before in cost.items():
        keep, slim = np.array(state) < 2, np.array(state) == 1
        implanting, removing = layers.prices(keep, measure), ways._removing(keep, slim, measure)
        for unit, now in enumerate(state):
            for to, price in ((1, implanting), (2, removing)):
                after = (*state[:unit], to, *state[unit + 1 :])
                if now < to and after in cost and (to == 2 or now == 0):
                    saved = before - cost[after]
                    # Implants among the readers pay less for what they read; parameters ignore that.
                    exact = to == 2 and measure == "macs" or not slim.any()
                    if exact:
                        assert price[unit] == pytest.approx(saved, rel=1e-9), (state, unit, to)
                        checked += 1
    assert checked > 40


@pytest.mark.parametrize("implants", [0, 0.1, 0.5, "value"])
@pytest.mark.parametrize("share", [0.6, 0.2])
def test_budgets_are_met(implants: Any, share: float) -> None:
    network, layers = blocks_space()
    space = layers.space
    batches = [(images(8), torch.arange(8) % 4)]
    scores = niwaki.score(space, "taylor2", batches, nn.CrossEntropyLoss())
    plan = choose(space, scores, niwaki.Budget(macs=share, params=0.7), implants=implants)
    cost, dense = space.cost(plan), space.cost()
    assert share - 0.1 < cost.macs / dense.macs <= share and cost.params <= 0.7 * dense.params
    small = niwaki.cut(network, plan)
    assert niwaki.search_space(small, images()).cost().macs == cost.macs
    assert niwaki.check(network, plan, images()).holds
    rows = sum(len(edit.slim) for edit in plan.edits_of(Implant))
    assert rows == 0 if implants == 0 else rows > 0 or implants != 0.5
    assert plan.provenance["implants"] == implants


@pytest.mark.parametrize("step", [2, 4])
def test_by_value_in_multiples(step: int) -> None:
    """Whole outputs and implants of every layer are multiples of the step, or all; one step more would be too much."""
    network, layers = blocks_space()
    space = layers.space
    with torch.no_grad():  # most lies in the centres of half of the kernels
        for layer in layers.layers:
            weight = network.get_submodule(layer.module).weight[::2]
            middle = tuple(size // 2 for size in weight.shape[2:])
            weight[(..., *middle)] *= 20
    scores = niwaki.score(space, "magnitude")
    budget = niwaki.Budget(macs=0.55, round_to=step)
    plan = choose(space, scores, budget)
    dense, cost = space.cost().macs, space.cost(plan).macs
    assert 0.4 * dense < cost <= 0.55 * dense and niwaki.check(network, plan, images()).holds
    edits = plan.edits_of(Implant)
    assert edits
    for edit in edits:
        whole, full = len(edit.kept) - len(edit.slim), space.model.get_submodule(edit.module).out_channels
        assert whole % step == 0 and (len(edit.slim) % step == 0 or len(edit.kept) == full)
    assert all(len(kept) % step == 0 or len(kept) == plan.units[name] for name, kept in plan.kept.items())


def test_by_value_takes_what_loses_least_per_cost() -> None:
    """Against all choices of a small network: within a few per cent of the least loss."""
    layers = small_space()
    space = layers.space
    with torch.no_grad():  # small entries around the centres of some kernels
        for weight in (space.model[0].weight, space.model[2].weight):
            middle = weight[:2, :, weight.shape[2] // 2, weight.shape[3] // 2].clone()
            weight[:2] *= 0.05
            weight[:2, :, weight.shape[2] // 2, weight.shape[3] // 2] = middle
    saliency = np.random.default_rng(0).random(space.num_units) + 0.1
    share = layers.lost_share()
    for part in (0.7, 0.5, 0.3):
        limit = part * space.cost().macs
        keep, slim = ByValue(layers, saliency, {"macs": limit}).chosen()
        assert space.cost(planned_with(layers, keep, slim)).macs <= limit
        lost = saliency[~keep].sum() + (saliency * share)[slim].sum()
        least = np.inf
        for state in itertools.product(range(3), repeat=space.num_units):
            one = np.array(state)
            if all((one[group.numbers] == 0).any() for group in space.groups):
                if space.cost(planned_with(layers, one < 2, one == 1)).macs <= limit:
                    least = min(least, saliency[one == 2].sum() + (saliency * share)[one == 1].sum())
        assert lost <= least + 0.15 * saliency.sum() and slim.any()


def network_with(layer: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1), layer(), nn.ReLU(), nn.Conv2d(6, 2, 1))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "even": (lambda: nn.Conv2d(4, 6, 4, padding=2), r"its kernel \(4, 4\) has no centre, since a size is even"),
    "padding": (lambda: nn.Conv2d(4, 6, 3), r"its padding \(0, 0\) is not half of its kernel, \(1, 1\)"),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), "it has groups=2, and only convolutions with groups=1"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), "which produces them, is not the weight of a convolution"),
    "normed": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3, padding=1)),
        "no kernel of more than one entry produces them",
    ),
    "one": (lambda: nn.Conv2d(4, 6, 1), "no kernel of more than one entry produces them"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_layers_that_cannot_have_implants(kind: str) -> None:
    make, why = REFUSED[kind]
    space = niwaki.search_space(network_with(make), torch.randn(1, 2, 8, 8))
    layers = ImplantLayers.of(space)
    group = next(
        group for group in space.groups if any(s.tensor.startswith("1.") and s.role.produces for s in group.slices)
    )
    assert not layers.can[group.numbers].any()
    slim = np.zeros(space.num_units, dtype=bool)
    slim[group.first] = True
    with pytest.raises(PlanError, match=rf"Units of '.*' cannot be implanted: .*{why}.*Keep or remove them"):
        planned_with(layers, np.ones(space.num_units, dtype=bool), slim)


def test_hooks_would_be_lost() -> None:
    network = Blocks()
    network.stem.register_forward_hook(lambda *_: None)
    layers = ImplantLayers.of(niwaki.search_space(network.double(), images()))
    assert "hooks on it would be lost" in layers.refused["stem"]
    assert layers.can.any()


def test_a_shared_kernel_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.second.weight = self.first.weight
            self.stem, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(self.stem(x)).relu()))

    layers = ImplantLayers.of(niwaki.search_space(Shared(), torch.randn(1, 1, 5, 5)))
    assert any("is the weight of several layers" in why for why in layers.refused.values())


def test_what_makes_no_plan_is_a_sentence() -> None:
    network, layers = blocks_space()
    space = layers.space
    scores = niwaki.score(space, "magnitude")
    everything = np.ones(space.num_units, dtype=bool)
    with pytest.raises(PlanError, match="would implant all 10 outputs of 'stem' that stay. Leave one as it is"):
        stem = next(group for group in space.groups if group.name == "stem")
        slim = ~everything
        slim[stem.numbers] = True
        planned_with(layers, everything, slim)
    with pytest.raises(PlanError, match="cannot be removed and implanted at once"):
        planned_with(layers, ~slim | (np.arange(len(slim)) == stem.first), slim)
    for wrong in (-0.1, 2, "much"):
        with pytest.raises(BudgetError, match=r"implants=.* must be"):
            choose(space, scores, niwaki.Budget(macs=0.5), implants=wrong)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"removed=2 must be a fraction from 0 to 1"):
        hap(space, scores, 2)
    with pytest.raises(BudgetError, match="limits macs and params, and the latency .* and this one limits units"):
        choose(space, scores, niwaki.Budget(units=0.5))
    with pytest.raises(UnknownName, match="The pattern 'nowhere' in `round_to` matches no group"):
        choose(space, scores, niwaki.Budget(macs=0.5, round_to={"nowhere": 4}))
    with pytest.raises(BudgetError, match="of 56 units. Score the space that you choose from"):
        choose(space, niwaki.score(small_space().space, "magnitude"), niwaki.Budget(macs=0.5))
    with pytest.raises(BudgetError, match="least"):
        choose(space, scores, niwaki.Budget(params=0.001))
    program = niwaki.search_space(network, images(), as_graph=True)
    with pytest.raises(PlanError, match="take the place of layers, and the space is of an exported program"):
        ImplantLayers.of(program)


def test_plans_edited_by_hand() -> None:
    network = randomised(Blocks())
    shape, every = (10, 3, 3, 3), Positions(range(10))
    plan = niwaki.search_space(network, images()).plan(np.ones(56, dtype=bool))
    for edit, why in (
        (Implant("nowhere", every, (1,), shape, True), "implants into 'nowhere', which the network it is for does not"),
        (Implant("stem", (0, 1), (1,), shape, True), r"implants into other rows of 'stem\.weight' than it keeps"),
        (Implant("stem", every, (1,), (9, 3, 3, 3), True), r"implants into other rows of 'stem\.weight' than it keeps"),
        (Implant("stem", every, (3, 1), shape, True), "are not an ascending choice of some it keeps"),
        (Implant("stem", every, every, shape, True), "are not an ascending choice of some it keeps"),
        (Implant("head", Positions(range(4)), (1,), (4, 10), True), "takes the centre of 'head.weight', whose shape"),
        (Implant("stem", every, (1,), shape, True, rank=2), "makes rows of 'stem.weight' of rank 2, and it is not a"),
    ):
        with pytest.raises(PlanError, match=why):
            niwaki.cut(network, plan.with_edits([edit]))
    network.stem.padding = (0, 0)
    with pytest.raises(PlanError, match=r"implants into 'stem': its padding \(0, 0\) is not half of its kernel"):
        niwaki.cut(network, plan.with_edits([Implant("stem", every, (1,), shape, True)]))
